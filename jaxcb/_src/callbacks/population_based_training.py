"""`PopulationBasedTraining`: the worst members of a sweep copy the best ones and change their hyperparameters."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxcb._src.callbacks.standings import is_due, ranks, scores
from jaxcb._src.core.actions.control import Exploit, ScaleHyperparameter, ScaleLearningRate, SetControl
from jaxcb._src.core.callback import PopulationCallback
from jaxcb._src.core.metric_names import resolve_mode
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.errors import check_int, check_number, check_seed, check_texts, shown
from jaxcb._src.utils.pytree import static


class PopulationBasedTraining(PopulationCallback):
    """Every few epochs, the worst members copy the best ones and perturb their hyperparameters.

    A member is copied with its weights, model state, optimizer state and controls (exploit). Then each hyperparameter
    is multiplied by one of the factors, drawn independently for each member and hyperparameter (explore).

    Args:
        monitor: a metric's name.
        every: epochs between two exchanges.
        fraction: fraction of members that copy, and that are copied; above 0, at most 0.5.
        numbers: paths of the hyperparameters: `optimizer.learning_rate`, `optimizer.GROUP.learning_rate` of one of
            several optimizers, `optimizer.NAME` of a swept number, `controls.NAME`.
        factors: the factors to draw from.
        seed: seed of the draws.
        mode: "min", "max", or "auto" to derive it from the name.

    Raises:
        ValueError: if an argument is out of range, or the mode cannot be derived from the name.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp
        >>> pbt = jc.callbacks.PopulationBasedTraining(every=1, fraction=0.5)
        >>> metrics = jc.Metrics({"val_loss": jnp.array([0.3, 0.1])}, alive=jnp.ones(2, bool), member=jnp.arange(2))
        >>> copy = pbt.on_epoch_end((), metrics)[1][0]
        >>> copy.when.tolist(), int(copy.source[0])
        ([True, False], 1)

    Source: Jaderberg et al., Population Based Training of Neural Networks, 2017; truncation selection.
    """

    monitor: str = static(default="val_loss")
    every: int = static(default=1)
    fraction: float = static(default=0.25)
    numbers: tuple[str, ...] = static(default=("optimizer.learning_rate",))
    factors: tuple[float, ...] = static(default=(0.8, 1.25))
    seed: int = static(default=0)
    mode: Literal["auto", "min", "max"] = static(default="auto")

    def __post_init__(self) -> None:
        owner = "PopulationBasedTraining"
        self._set("every", check_int(owner, "every", self.every, least=1))
        self._set("seed", check_seed(owner, self.seed))
        self._set("fraction", check_number(owner, "fraction", self.fraction))
        if not 0 < self.fraction <= 0.5:
            raise ValueError(f"{owner}: fraction must be above 0 and at most 0.5, got {self.fraction}.")
        self._set("numbers", check_texts(owner, "numbers", self.numbers))
        if not isinstance(self.factors, tuple | list) or not self.factors:
            kind = ValueError if isinstance(self.factors, tuple | list) else TypeError
            raise kind(f"{owner}: factors must be a tuple of at least one number, got {shown(self.factors)}.")
        self._set("factors", tuple(check_number(owner, "each of factors", f) for f in self.factors))
        if min(self.factors) <= 0:
            raise ValueError(f"{owner}: each of factors must be above 0, got {self.factors}.")
        for path in self.numbers:
            if path.partition(".")[0] not in ("optimizer", "controls") or not path.partition(".")[2]:
                raise ValueError(f"{owner}: numbers must be paths such as optimizer.learning_rate, got {path!r}.")
        self._set("mode", resolve_mode(owner, self.monitor, self.mode))

    def on_epoch_end(self, state: Any, metrics: Metrics) -> Any:
        score = scores("PopulationBasedTraining", self.monitor, self.mode, metrics)
        place, alive = ranks(score, metrics.member), metrics.alive.sum()
        count = jnp.floor(alive.astype(jnp.float32) * self.fraction + 1e-6).astype(jnp.int32)
        due = is_due(metrics, self.every) & (count > 0)
        # The worst member copies the best, the second worst the second best, and so on.
        partner = alive - 1 - place
        when = metrics.alive & (partner < count) & (partner < place) & due
        at = jnp.argsort(place)  # rank -> row
        source = jnp.where(when, at[jnp.clip(partner, 0, len(place) - 1)], jnp.arange(len(place)))
        explore = (self._perturb(p, self._drawn(i, metrics), metrics, source, when) for i, p in enumerate(self.numbers))
        return state, (Exploit(source, when=when), *explore)

    def _drawn(self, index: int, metrics: Metrics) -> Any:
        """Returns a factor per member, which depends only on the seed, the epoch, the hyperparameter and the member."""
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), index), metrics.epoch)
        known = jnp.asarray(self.factors, jnp.float32)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, metrics.member)
        return known[jax.vmap(lambda k: jax.random.randint(k, (), 0, len(self.factors)))(keys)]

    def _perturb(self, path: str, factor: Any, metrics: Metrics, source: Any, when: Any) -> Any:
        head, _, name = path.partition(".")
        if head == "controls":
            return SetControl(name, metrics[name][source] * factor, when=when)
        of, _, number = name.rpartition(".")
        if number == "learning_rate":
            return ScaleLearningRate(factor, of=of or None, when=when)
        return ScaleHyperparameter(name, factor, when=when)
