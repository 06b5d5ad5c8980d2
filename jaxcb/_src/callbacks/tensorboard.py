"""`TensorBoard`: logs curves, histograms, images and more for TensorBoard."""

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax.numpy as jnp

from jaxcb._src.core.actions.host import Profile
from jaxcb._src.core.actions.tensorboard import Embedding, Graph, Histogram, HParams, Image, LogConfiguration, Scalars
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.metrics import Metrics, fresh_scalars
from jaxcb._src.utils.errors import check_bool, check_choice, check_int, check_texts, shown
from jaxcb._src.utils.local_path import path_text
from jaxcb._src.utils.names import is_rate
from jaxcb._src.utils.pytree import Struct, static, to_strong_types

_TAGS = {"params": "weights", "grads": "gradients", "updates": "updates", "activations": "activations"}
_VALIDATION = "val_"
_EMBEDDINGS = "**embedding"  # Flax's name for them
_NO_CURVES = ("base_learning_rate", "lr_scale")  # redundant next to the effective rate


class TensorBoardState(Struct):
    """State of `TensorBoard`."""

    looked: Any  # int32 (), the last epoch whose first step was logged from within; -1 before the first


class TensorBoard(Callback):
    """Logs a run for TensorBoard, without TensorFlow and without waiting for the device.

    Args:
        log_dir: directory of the event files; a relative path is below `run_dir` if there is one.
        histogram_freq: epochs between two histograms of the arrays that `histograms` names, from the first epoch on; 0
            for none.
        write_graph: whether to draw the operations that compute the loss.
        write_images: whether to draw the weights as images, as often as histograms.
        write_steps_per_second: whether to log the steps per second as well.
        update_freq: "epoch", "batch", or a number of steps between two points of the `batch_` curves.
        profile_batch: the training batch, counted from 1, to profile with `jax.profiler`, or the first and the last
            one of several; 0 for none.
        embeddings_freq: epochs between two copies of embeddings for the projector, from the first epoch on; 0 for none.
        embeddings_metadata: a text for each row of an embedding, or the path of a file with one line per row; or a dict
            of parameter pattern -> one of these, or None. Without patterns, all parameters whose name ends in
            `embedding` are logged.
        histograms: the arrays to log: "params", and where the loop has them "grads", "updates" and "activations" of a
            Flax model, which are those of the first step of an epoch.
        hparams: further settings for the HParams page, besides those of `fit`: name -> number, text or boolean.

    State:
        `looked`.

    Raises:
        TypeError: if a path is not a path.
        ValueError: if an argument is out of range, or a path is empty or an address that no store serves.

    Example:
        >>> import jaxcb as jc
        >>> callback = jc.TensorBoard()
        >>> metrics = jc.Metrics({"loss": 0.5, "val_loss": 0.75})
        >>> state, actions = callback.on_epoch_end(callback.init(), metrics)
        >>> [(action.run, sorted(action.values)) for action in actions]
        [('train', ['epoch_loss']), ('validation', ['epoch_loss'])]

    Source: `keras.callbacks.TensorBoard`.
    """

    logs_only: ClassVar[bool] = True

    log_dir: str = static(default="logs")
    histogram_freq: int = static(default=0)
    write_graph: bool = static(default=True)
    write_images: bool = static(default=False)
    write_steps_per_second: bool = static(default=False)
    update_freq: int | Literal["epoch", "batch"] = static(default="epoch")
    profile_batch: Any = static(default=0)
    embeddings_freq: int = static(default=0)
    embeddings_metadata: Any = static(default=None)
    histograms: tuple[str, ...] = static(default=("params",), kw_only=True)
    hparams: Any = static(default=(), kw_only=True)

    def __post_init__(self) -> None:
        for name in ("write_graph", "write_images", "write_steps_per_second"):
            self._set(name, check_bool("TensorBoard", name, getattr(self, name)))
        self._set("log_dir", path_text("TensorBoard", "log_dir", self.log_dir))
        self._set("histogram_freq", check_int("TensorBoard", "histogram_freq", self.histogram_freq))
        if isinstance(self.update_freq, str):
            check_choice("TensorBoard", "update_freq", self.update_freq, ("epoch", "batch"))
        else:
            self._set("update_freq", check_int("TensorBoard", "update_freq", self.update_freq, least=1))
        self._set("histograms", check_texts("TensorBoard", "histograms", self.histograms))
        if self.write_images and not self.histogram_freq:
            raise ValueError(
                "TensorBoard: write_images=True draws weights as often as histograms; pass histogram_freq=1."
            )
        for of in self.histograms:
            check_choice("TensorBoard", "histograms", of, tuple(_TAGS))
        self._set("profile_batch", _batches(self.profile_batch))
        self._set("embeddings_freq", check_int("TensorBoard", "embeddings_freq", self.embeddings_freq))
        if self.embeddings_metadata is not None and not self.embeddings_freq:
            raise ValueError("TensorBoard: embeddings_metadata needs embeddings_freq, such as embeddings_freq=1.")
        self._set("embeddings_metadata", _labels(self.embeddings_metadata))
        if not isinstance(self.hparams, Mapping) and not _are_pairs(self.hparams):  # pairs are what the field keeps
            raise TypeError(
                f"TensorBoard: hparams must be a dict of numbers, texts and booleans, got {shown(self.hparams)}."
            )
        self._set("hparams", HParams(self.hparams).settings)

    @property
    def _every(self) -> int | None:
        """Steps between two points of the batch curves; None for no such curves."""
        return {"epoch": None, "batch": 1}.get(self.update_freq, self.update_freq)  # pyright: ignore

    @property
    def _inside(self) -> tuple[str, ...]:
        """The arrays to log that exist only within a step."""
        return tuple(of for of in self.histograms if of != "params") if self.histogram_freq else ()

    def hooks(self) -> frozenset[str]:
        hooks = {"on_train_begin", "on_eval_end", "on_epoch_end", "on_train_end"}
        if self._every is not None or self.profile_batch:
            hooks.add("on_batch_end")
        if self._inside:
            hooks.add("on_before_update")
        return frozenset(hooks)

    def init(self) -> TensorBoardState:
        return to_strong_types(TensorBoardState(looked=-1))

    def on_train_begin(self, state: TensorBoardState, metrics: Metrics) -> Any:
        actions: tuple[Any, ...] = (LogConfiguration(log_dir=self.log_dir), HParams(self.hparams, log_dir=self.log_dir))
        if self.write_graph:
            actions += (Graph(log_dir=self.log_dir),)
        if self.profile_batch and self.profile_batch[0] == 1:
            actions += (Profile(True, log_dir=self.log_dir),)
        return state, actions

    def on_before_update(self, state: TensorBoardState, metrics: Metrics) -> Any:
        due = (metrics.epoch > state.looked) & (metrics.epoch % self.histogram_freq == 0)
        actions = tuple(self._histogram(of, due) for of in self._inside)
        return TensorBoardState(looked=jnp.maximum(state.looked, metrics.epoch)), actions

    def on_batch_end(self, state: TensorBoardState, metrics: Metrics) -> Any:
        actions: tuple[Any, ...] = ()
        if self._every is not None:
            due = metrics.step % self._every == 0
            actions += self._scalars("batch_", *fresh_scalars(metrics), metrics, due, by="step")
        if self.profile_batch:
            first, last = self.profile_batch
            if first > 1:
                actions += (Profile(True, log_dir=self.log_dir, when=metrics.step == first - 1),)
            actions += (Profile(False, log_dir=self.log_dir, when=metrics.step == last),)
        return state, actions

    def on_eval_end(self, state: TensorBoardState, metrics: Metrics) -> Any:
        values, fresh = fresh_scalars(metrics)
        names = [name for name in values if name.startswith(_VALIDATION)]
        tags = {name: f"evaluation_{name.removeprefix(_VALIDATION)}_vs_iterations" for name in names}
        return state, self._curves(
            "validation", {tags[n]: values[n] for n in names}, {tags[n]: fresh[n] for n in names}
        )

    def on_epoch_end(self, state: TensorBoardState, metrics: Metrics) -> Any:
        actions = self._scalars("epoch_", *fresh_scalars(metrics), metrics, True, by="epoch")
        if self.histogram_freq:
            due = metrics.epoch % self.histogram_freq == 0
            if "params" in self.histograms:
                actions += (self._histogram("params", due),)
            if self.write_images:
                actions += (Image("images", of="params", log_dir=self.log_dir, by="epoch", when=due),)
        if self.embeddings_freq:
            due = metrics.epoch % self.embeddings_freq == 0
            actions += tuple(self._embedding(where, labels, due) for where, labels in self.embeddings_metadata)
        return state, actions

    def on_train_end(self, state: TensorBoardState, metrics: Metrics) -> Any:
        final = {name: value for name, value in fresh_scalars(metrics)[0].items() if not is_rate(name)}
        table = HParams(final=final, log_dir=self.log_dir)
        if not self.write_steps_per_second or "steps_per_second" not in metrics:
            return state, table
        # a run that ends before its pace is measured has no other point of it
        pace = {"run_steps_per_second": metrics["steps_per_second"]}
        fresh = {name: jnp.isfinite(value) for name, value in pace.items()}
        return state, (table, self._curves("train", pace, fresh, when=True, by="epoch"))

    def _scalars(
        self, prefix: str, values: dict[str, Any], fresh: dict[str, Any], metrics: Metrics, due: Any, *, by: str
    ) -> tuple[Scalars, ...]:
        """Returns a point of each curve of the two runs; `val_` names go to the run "validation"."""
        runs: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        for name, value in values.items():
            kind, slash, of = name.partition("/")
            if kind in _NO_CURVES and f"learning_rate{slash}{of}" in values:
                continue
            run = "validation" if name.startswith(_VALIDATION) else "train"
            curves = runs.setdefault(run, ({}, {}))
            tag = prefix + name.removeprefix(_VALIDATION)
            curves[0][tag], curves[1][tag] = value, fresh[name]
        if self.write_steps_per_second and "steps_per_second" in metrics:
            pace = metrics["steps_per_second"]
            curves = runs.setdefault("train", ({}, {}))
            curves[0][f"{prefix}steps_per_second"], curves[1][f"{prefix}steps_per_second"] = pace, jnp.isfinite(pace)
        return tuple(self._curves(run, *curves, when=due, by=by) for run, curves in sorted(runs.items()))

    def _curves(self, run: str, values: Any, fresh: Any, **more: Any) -> Scalars:
        return Scalars(values, fresh=fresh, run=run, log_dir=self.log_dir, **more)

    def _histogram(self, of: str, due: Any) -> Histogram:
        return Histogram(_TAGS[of], of=of, log_dir=self.log_dir, by="epoch", when=due)

    def _embedding(self, where: str, labels: Any, due: Any) -> Embedding:
        more = {"of": "params", "where": where, "log_dir": self.log_dir, "by": "epoch", "when": due}
        return Embedding("weights", labels=labels, **more)


def _are_pairs(given: Any) -> bool:
    return isinstance(given, tuple) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in given)


def _batches(profile_batch: Any) -> tuple[int, int] | None:
    """Returns the first and the last batch to profile; None for no profile."""
    if isinstance(profile_batch, tuple | list):
        if len(profile_batch) != 2:
            raise ValueError(f"TensorBoard: profile_batch must be a batch or (first, last), got {profile_batch!r}.")
        first, last = (check_int("TensorBoard", "profile_batch", batch, least=1) for batch in profile_batch)
        if last < first:
            raise ValueError(f"TensorBoard: profile_batch={profile_batch!r} ends before it begins.")
        return first, last
    batch = check_int("TensorBoard", "profile_batch", profile_batch)
    return (batch, batch) if batch else None


def _labels(metadata: Any) -> tuple[tuple[str, Any], ...]:
    """Returns pairs of a pattern and the labels of the parameters that match it."""
    pairs = metadata.items() if isinstance(metadata, Mapping) else [(_EMBEDDINGS, metadata)]
    return tuple((pattern, _label(labels)) for pattern, labels in pairs)


def _label(labels: Any) -> Any:
    if isinstance(labels, str | bytes | os.PathLike):
        return path_text("TensorBoard", "embeddings_metadata", labels, buckets=False)
    return tuple(labels) if isinstance(labels, list) else labels
