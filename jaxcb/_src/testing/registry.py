"""Examples of every built-in callback, on which the laws are tested."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

import jaxcb.callbacks
from jaxcb._src.callbacks.backup_and_restore import BackupAndRestore
from jaxcb._src.callbacks.csv_logger import CSVLogger
from jaxcb._src.callbacks.early_stopping import EarlyStopping
from jaxcb._src.callbacks.freeze import Freeze
from jaxcb._src.callbacks.gradient_accumulation import GradientAccumulation
from jaxcb._src.callbacks.html_report import HTMLReport
from jaxcb._src.callbacks.hub_upload import HubUpload
from jaxcb._src.callbacks.json_logger import JSONLogger
from jaxcb._src.callbacks.lambda_callback import LambdaCallback
from jaxcb._src.callbacks.learning_rate_monitor import LearningRateMonitor
from jaxcb._src.callbacks.learning_rate_scheduler import LearningRateScheduler
from jaxcb._src.callbacks.log_to import LogTo
from jaxcb._src.callbacks.median_stopping import MedianStopping
from jaxcb._src.callbacks.mlflow_logger import MLflowLogger
from jaxcb._src.callbacks.model_checkpoint import ModelCheckpoint
from jaxcb._src.callbacks.model_summary import ModelSummary
from jaxcb._src.callbacks.norm_monitor import NormMonitor
from jaxcb._src.callbacks.population_based_training import PopulationBasedTraining
from jaxcb._src.callbacks.progress_bar import ProgressBar
from jaxcb._src.callbacks.reduce_lr_on_plateau import ReduceLROnPlateau
from jaxcb._src.callbacks.remote_monitor import RemoteMonitor
from jaxcb._src.callbacks.spike_detection import SpikeDetection
from jaxcb._src.callbacks.stochastic_weight_averaging import StochasticWeightAveraging
from jaxcb._src.callbacks.stopping import StoppingCallback
from jaxcb._src.callbacks.successive_halving import SuccessiveHalving
from jaxcb._src.callbacks.swap_ema_weights import SwapEMAWeights
from jaxcb._src.callbacks.tensorboard import TensorBoard
from jaxcb._src.callbacks.terminate_on_nan import TerminateOnNaN
from jaxcb._src.callbacks.throughput import Throughput
from jaxcb._src.callbacks.timer import Timer
from jaxcb._src.callbacks.tracker_logger import TrackerLogger
from jaxcb._src.callbacks.trackio_logger import TrackioLogger
from jaxcb._src.callbacks.wandb_logger import WandbLogger
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.chain import Chain
from jaxcb._src.writers.trackers.http import HTTPTracker


def _gap(metrics: Any) -> Any:
    return metrics["val_loss"] - metrics["loss"]


def _halved(epoch: int, lr: float) -> float:
    return lr if epoch < 2 else lr * 0.5


def _decay(step: Any) -> Any:
    return 0.1 * jnp.exp(-step / 10)


def _nothing(*_: Any) -> None:
    pass


# In addition, every callback that can be made without arguments is tested so without an entry here.
_EXAMPLES: tuple[Callable[[], Callback], ...] = (
    lambda: BackupAndRestore("runs/a", save_freq=2),
    lambda: BackupAndRestore("runs/a"),
    lambda: CSVLogger("log.csv"),
    lambda: CSVLogger("log.csv", arrays=True),
    lambda: EarlyStopping("val_loss", min_delta=0.25, patience=2, restore_best_weights=True, start_from_epoch=1),
    lambda: EarlyStopping("val_accuracy", patience=1, baseline=0.5, verbose=1, restore_best_weights=True),
    lambda: EarlyStopping(_gap, mode="min", patience=2),
    lambda: EarlyStopping(
        min_delta=0.25,
        patience=3,
        threshold_mode="rel",
        patience_in="steps",
        stopping_threshold=-1.0,
        divergence_threshold=2.0,
        check_finite=True,
    ),
    lambda: EarlyStopping(patience=1, min_epochs=2, min_steps=3, verbose=1, report=True),
    lambda: EarlyStopping("loss", patience=2, baseline=0.5, threshold_mode="rel", patience_in="epochs"),
    lambda: Freeze("backbone/**"),
    lambda: Freeze(("backbone/**", "*/bias"), until_epoch=2),
    lambda: GradientAccumulation(2),
    lambda: GradientAccumulation({1: 3, 3: 1}),
    lambda: HTMLReport("pages/run.html"),
    lambda: HubUpload("user/name", kind="run"),
    lambda: JSONLogger("log.jsonl", every=2),
    lambda: LambdaCallback(on_batch_begin=_nothing, on_test_begin=print, on_test_end=print),
    lambda: LambdaCallback(on_epoch_end=_nothing, on_train_batch_end=_nothing, on_train_begin=_nothing),
    lambda: LearningRateMonitor(2),
    lambda: LearningRateScheduler(_halved, verbose=1),
    lambda: LearningRateScheduler(_decay, by="step"),
    lambda: LogTo(_nothing),
    lambda: LogTo(_nothing, every=3),
    lambda: MLflowLogger("experiment", tags={"a": "b"}, every=2),
    lambda: ModelCheckpoint("{epoch:02d}-{val_loss:.2f}", save_best_only=True, initial_value_threshold=1.0, verbose=1),
    lambda: ModelCheckpoint("{epoch}-{batch}-{val_loss:.2f}", save_best_only=True, save_freq=2, async_=True),
    lambda: ModelCheckpoint("{step}", _gap, mode="max", keep_best=2, max_to_keep=3, every_n_epochs=2, save_at_end=True),
    lambda: ModelCheckpoint("{step}", keep_best=1, every_minutes=0.05, verbose=1),
    lambda: ModelSummary(depth=1, verbose=0),
    lambda: ProgressBar(verbose=0),
    lambda: ReduceLROnPlateau("val_accuracy", factor=0.5, patience=1, verbose=1, cooldown=1, min_lr=1e-3),
    lambda: ReduceLROnPlateau(
        patience=3, min_delta=0.25, cooldown=2, threshold_mode="rel", patience_in="steps", report=True
    ),
    lambda: RemoteMonitor(headers={"a": "b"}, send_as_json=True, every=2),
    lambda: SpikeDetection(_gap, factor=1.0, window=4, warmup=1),
    lambda: SpikeDetection(
        factor=2.0, window=3, action="rollback", snapshot_every=2, max_skips=3, verbose=1, min_steps=5
    ),
    lambda: StochasticWeightAveraging(1, every=2, learning_rate=0.05, of="model"),
    lambda: SwapEMAWeights(decay=0.5, every=2, start_step=3, of="model"),
    lambda: SwapEMAWeights(True),
    lambda: SwapEMAWeights(decay=0.9, start_epoch=1, warmup=3),
    lambda: TensorBoard("tb", 2, write_images=True, update_freq=2, histograms=("params", "grads", "updates")),
    lambda: TensorBoard(histogram_freq=1, update_freq="batch", write_steps_per_second=True),
    lambda: TensorBoard(write_graph=False, profile_batch=(2, 3), embeddings_freq=2, embeddings_metadata={"w": "a.tsv"}),
    lambda: TerminateOnNaN(monitor="val_accuracy"),
    lambda: TerminateOnNaN(raise_error=True, monitor="val_loss", min_epochs=2),
    lambda: TrackerLogger(HTTPTracker("http://localhost:9000"), every=2),
    lambda: TrackioLogger("project", "name", config={"layers": [1, 2]}, every=2),
    lambda: WandbLogger("project", config={"layers": [1, 2]}, every=2),
    lambda: MedianStopping("val_accuracy", warmup=0, least=2),
    lambda: MedianStopping(warmup=0, least=2, min_epochs=2),
    lambda: PopulationBasedTraining(
        "val_accuracy", every=2, fraction=0.5, numbers=("controls.beta",), factors=(0.5, 2)
    ),
    lambda: SuccessiveHalving("val_accuracy", factor=1.5),
    lambda: SuccessiveHalving(factor=1.5, min_epochs=2, min_steps=3),
    lambda: NormMonitor(every=2, of=("grad_norm",)),
    lambda: Throughput(every=2, tokens_per_example=4, verbose=1),
    lambda: Timer(2.0),
    lambda: Timer(1.0, min_steps=4),
)


@functools.cache
def builtin_examples() -> tuple[Callback, ...]:
    """Returns examples of every callback that `jaxcb.callbacks` exports.

    Returns:
        Each callback without arguments, if that is possible, and configurations that test other arguments.

    Raises:
        LookupError: if an exported callback needs arguments and has no example.

    Example:
        >>> import jaxcb.testing
        >>> sorted({type(c).__name__ for c in jaxcb.testing.builtin_examples()})[:2]
        ['BackupAndRestore', 'CSVLogger']
    """
    examples = [make() for make in _EXAMPLES]
    for name in jaxcb.callbacks.__all__:
        kind = getattr(jaxcb.callbacks, name)
        if not (isinstance(kind, type) and issubclass(kind, Callback)) or kind in (Chain, StoppingCallback):
            continue
        try:
            examples.append(kind())
        except TypeError:  # it needs arguments
            if not any(type(example) is kind for example in examples):
                raise LookupError(
                    f"jaxcb.callbacks exports {name}, which cannot be made without arguments and has no example in "
                    "jaxcb/_src/testing/registry.py. Add a line there, so that the laws are tested on it."
                ) from None
    return tuple(sorted(examples, key=lambda c: type(c).__name__))
