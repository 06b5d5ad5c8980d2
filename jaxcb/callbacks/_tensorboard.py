"""`TensorBoard`: curves, histograms, pictures and more of a run, for TensorBoard."""

from typing import Any

import jax.numpy as jnp

from jaxcb._actions import Histogram, Image, Scalars
from jaxcb._callback import Callback, Metrics
from jaxcb._check import one_of, whole
from jaxcb._rows import fresh_scalars
from jaxcb._struct import Struct, static, strong_tree

_TAGS = {"params": "weights", "grads": "gradients", "updates": "updates", "activations": "activations"}
_VALIDATION = "val_"
_NO_CURVES = ("base_learning_rate", "lr_scale")  # beside the rate in force


class TensorBoardState(Struct):
    """What `TensorBoard` remembers."""

    looked: Any  # int32 (), the last epoch whose first step it has looked into; -1 before the first


class TensorBoard(Callback):
    """Writes a run for TensorBoard. Neither TensorFlow nor a wait for the device is needed.

    Args:
        log_dir: directory of the event files; a relative one lies below `run_dir` where there is one.
        histogram_freq: epochs between two histograms of what `histograms` names, from the first epoch on; 0 for none.
        write_graph: whether the model's operations are drawn.
        write_images: whether weights are drawn as pictures, as often as histograms.
        write_steps_per_second: whether the pace is written as well.
        update_freq: "epoch", "batch", or a number of steps between two points of the `batch_` curves.
        histograms: of what: "params", and where the loop knows them "grads", "updates" and "activations" of a Flax
            model, which are those of the first step of an epoch.

    State:
        `looked`.

    Raises:
        ValueError: for arguments out of range.

    Example:
        >>> import jaxcb as jc
        >>> callback = jc.TensorBoard()
        >>> metrics = jc.Metrics({"loss": 0.5, "val_loss": 0.75})
        >>> state, actions = callback.on_epoch_end(callback.init(), metrics)
        >>> [(action.run, sorted(action.values)) for action in actions]
        [('train', ['epoch_loss']), ('validation', ['epoch_loss'])]

    Source: `keras.callbacks.TensorBoard`.
    """

    log_dir: str = static(default="logs")
    histogram_freq: int = static(default=0)
    write_graph: bool = static(default=True)
    write_images: bool = static(default=False)
    write_steps_per_second: bool = static(default=False)
    update_freq: int | str = static(default="epoch")
    histograms: tuple[str, ...] = static(default=("params",), kw_only=True)

    def __post_init__(self) -> None:
        self._set("log_dir", str(self.log_dir))
        self._set("histogram_freq", whole("TensorBoard", "histogram_freq", self.histogram_freq))
        if isinstance(self.update_freq, str):
            one_of("TensorBoard", "update_freq", self.update_freq, ("epoch", "batch"))
        else:
            self._set("update_freq", whole("TensorBoard", "update_freq", self.update_freq, least=1))
        self._set("histograms", (self.histograms,) if isinstance(self.histograms, str) else tuple(self.histograms))
        if self.write_images and not self.histogram_freq:
            raise ValueError(
                "TensorBoard: write_images=True draws weights as often as histograms; pass histogram_freq=1."
            )
        for of in self.histograms:
            one_of("TensorBoard", "histograms", of, tuple(_TAGS))

    @property
    def _every(self) -> int | None:
        """Steps between two points of the batch curves."""
        return {"epoch": None, "batch": 1}.get(self.update_freq, self.update_freq)  # pyright: ignore

    @property
    def _inside(self) -> tuple[str, ...]:
        """What is looked at between the halves of a step."""
        return tuple(of for of in self.histograms if of != "params") if self.histogram_freq else ()

    def hooks(self) -> frozenset[str]:
        own = {"on_eval_end", "on_epoch_end"}
        if self._every is not None:
            own.add("on_batch_end")
        if self._inside:
            own.add("on_before_update")
        return frozenset(own)

    def init(self) -> TensorBoardState:
        return strong_tree(TensorBoardState(looked=-1))

    def on_before_update(self, state: TensorBoardState, metrics: Metrics) -> Any:
        due = (metrics.epoch > state.looked) & (metrics.epoch % self.histogram_freq == 0)
        actions = tuple(self._histogram(of, due) for of in self._inside)
        return TensorBoardState(looked=jnp.maximum(state.looked, metrics.epoch)), actions

    def on_batch_end(self, state: TensorBoardState, metrics: Metrics) -> Any:
        every = self._every
        if every is None:
            return state, None
        due = metrics.step % every == 0
        return state, self._scalars("batch_", *fresh_scalars(metrics), metrics, due, by="step")

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
                actions += (Image("weights", of="params", log_dir=self.log_dir, by="epoch", when=due),)
        return state, actions

    def _scalars(
        self, prefix: str, values: dict[str, Any], fresh: dict[str, Any], metrics: Metrics, due: Any, *, by: str
    ) -> tuple[Scalars, ...]:
        """A point of each curve of the two runs; `val_` names go to the validation's."""
        runs: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        for name, value in values.items():
            if name in _NO_CURVES and "learning_rate" in values:
                continue
            run = "validation" if name.startswith(_VALIDATION) else "train"
            own = runs.setdefault(run, ({}, {}))
            tag = prefix + name.removeprefix(_VALIDATION)
            own[0][tag], own[1][tag] = value, fresh[name]
        if self.write_steps_per_second and "steps_per_second" in metrics:
            pace = metrics["steps_per_second"]
            own = runs.setdefault("train", ({}, {}))
            own[0][f"{prefix}steps_per_second"], own[1][f"{prefix}steps_per_second"] = pace, jnp.isfinite(pace)
        return tuple(self._curves(run, *own, when=due, by=by) for run, own in sorted(runs.items()))

    def _curves(self, run: str, values: Any, fresh: Any, **more: Any) -> Scalars:
        return Scalars(values, fresh=fresh, run=run, log_dir=self.log_dir, **more)

    def _histogram(self, of: str, due: Any) -> Histogram:
        return Histogram(_TAGS[of], of=of, log_dir=self.log_dir, by="epoch", when=due)
