"""jaxcb: the training loop and callbacks for JAX and Flax, as pure values."""

import importlib as _importlib
from typing import Any as _Any

__version__ = "0.1.0"

# The modules of public names, imported when they are first used.
_MODULES = (
    "actions",
    "callbacks",
    "distributed",
    "errors",
    "logs",
    "models",
    "probes",
    "search",
    "testing",
    "writers",
)
# Module in `jaxcb._src` -> the public names that it defines. `__init__.pyi` gives type checkers the same list.
_NAMES = {
    "callbacks.backup_and_restore": "BackupAndRestore",
    "callbacks.csv_logger": "CSVLogger",
    "callbacks.early_stopping": "EarlyStopping",
    "callbacks.history": "History",
    "callbacks.host_callback": "HostCallback",
    "callbacks.lambda_callback": "LambdaCallback",
    "callbacks.learning_rate_scheduler": "LearningRateScheduler",
    "callbacks.model_checkpoint": "ModelCheckpoint",
    "callbacks.progress_bar": "ProgressBar",
    "callbacks.reduce_lr_on_plateau": "ReduceLROnPlateau",
    "callbacks.remote_monitor": "RemoteMonitor",
    "callbacks.swap_ema_weights": "SwapEMAWeights",
    "callbacks.tensorboard": "TensorBoard",
    "callbacks.terminate_on_nan": "TerminateOnNaN",
    "checkpointing.load": "load",
    "core.actions.records": "fired stop_reasons",
    "core.actions.utils": "stop_requested",
    "core.callback": "Callback PopulationCallback make_callback",
    "core.chain": "chain",
    "core.metrics": "Metrics",
    "fit": "evaluate fit predict",
    "inspection.summary": "model_summary",
    "loop.config": "Checkpointing Execution",
    "loop.loop": "Loop",
    "loop.result": "Result last_result",
    "loop.scan": "scan",
    "models.linen": "linen",
    "models.pytree": "with_state",
    "replay.replay": "replay",
    "sweep.lr_find": "lr_find",
    "sweep.sweep": "sweep",
    "training.apply": "apply",
    "training.learning_rate": "adjustable_lr",
    "training.loss": "Out",
    "training.probes": "probe",
    "training.train_state": "TrainState",
    "training.train_step": "EvalStep Step",
    "utils.kept_programs": "clear_caches",
    "utils.pytree": "Struct static",
    "writers.recorder": "Recorder",
    "writers.run_handle": "Run",
}
_HOME = {name: f"jaxcb._src.{module}" for module, names in _NAMES.items() for name in names.split()}

__all__ = [*_MODULES, *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> _Any:
    """Imports a public name when it is first used."""
    if name in _MODULES:
        return _importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"jaxcb has no {name!r}.", name=name, obj=_importlib.import_module(__name__))
    value = globals()[name] = getattr(_importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
