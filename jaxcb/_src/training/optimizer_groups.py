"""Several optimizers, each for a group of parameters, and each with a learning rate of its own name."""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from jaxcb._src.models.trainable import describe, selected
from jaxcb._src.training.learning_rate import AdjustableOptimizer
from jaxcb._src.utils.errors import did_you_mean
from jaxcb._src.utils.names import leaf_name


def group_name(given: Any) -> str:
    """Returns the name of a group: its filter without the wildcards of whole parts at both ends.

    Example:
        >>> [group_name(pattern) for pattern in ("head/**", "**/bias", ("embed", "norm/**"), "**")]
        ['head', 'bias', 'embed+norm', 'all']
    """
    if isinstance(given, tuple | list):
        return "+".join(map(group_name, given))
    if not isinstance(given, str):
        return describe(given)
    parts = given.split("/")
    while parts and parts[0] in ("*", "**"):
        parts = parts[1:]
    while parts and parts[-1] in ("*", "**"):
        parts = parts[:-1]
    return "/".join(parts) or "all"


def named_groups(groups: Mapping[Any, Any], owner: str) -> dict[str, Any]:
    """Returns name -> filter of each group.

    Raises:
        ValueError: for no group, and for two of one name.
    """
    if not groups:
        raise ValueError(f"{owner}: optimizer is an empty dict, expected an optimizer for each group of parameters.")
    found: dict[str, Any] = {}
    for given in groups:
        name = group_name(given)
        if name in found:
            raise ValueError(
                f"{owner}: the groups {describe(found[name])} and {describe(given)} of optimizer have the same name, "
                f"{name!r}, under which their rates would be reported. Join them, or write one of the patterns in full."
            )
        found[name] = given
    return found


def rates_of_groups(groups: Mapping[Any, Any], rates: Any, owner: str) -> dict[str, Any]:
    """Returns the learning rate of each group, by name; None where none was given.

    Args:
        groups: filter -> optimizer or factory.
        rates: one rate for all factories, or a dict of groups to rates.
        owner: begins error messages.

    Raises:
        ValueError: for a rate of a group that does not exist.
    """
    names = named_groups(groups, owner)
    if not isinstance(rates, Mapping):
        ready = {name for name, given in names.items() if isinstance(groups[given], optax.GradientTransformation)}
        return {name: None if name in ready else rates for name in names}
    known = {given: name for name, given in names.items()} | {name: name for name in names}
    found: dict[str, Any] = dict.fromkeys(names)
    for given, rate in rates.items():
        if given not in known:
            listed = ", ".join(map(describe, names.values()))
            raise ValueError(
                f"{owner}: learning_rate has a rate for {describe(given)}, which is no group of optimizer. Groups: "
                f"{listed}.{did_you_mean(str(given), [*names, *filter(lambda g: isinstance(g, str), groups)])}"
            )
        found[known[given]] = rate
    return found


def labels_of(names: Mapping[str, Any], params: Any, types: Mapping[str, type] | None, owner: str) -> list[str]:
    """Returns for each parameter the name of its group.

    Args:
        names: name -> filter.
        params: the parameters, or their shapes.
        types: path -> type of the NNX Variable; None for other models.
        owner: begins error messages.

    Raises:
        ValueError: for a group without parameters, a parameter of two groups, and one of none.
    """
    paths = [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    labels: list[str | None] = [None] * len(paths)
    for name, given in names.items():
        for i, yes in enumerate(selected(given, params, types, owner, "the group of optimizer")):
            if not yes:
                continue
            other = labels[i]
            if other is not None:
                raise ValueError(
                    f"{owner}: the parameter {paths[i]} is in two groups of optimizer, {describe(names[other])} and "
                    f"{describe(given)}. Give one of them a narrower pattern, or jc.models.AllBut(...)."
                )
            labels[i] = name
    missing = [path for path, label in zip(paths, labels, strict=True) if label is None]
    if missing:
        rest = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise ValueError(
            f"{owner}: no group of optimizer has the parameters {', '.join(missing[:10])}{rest}. Add a group for them, "
            "or leave them out with trainable=."
        )
    return [label for label in labels if label is not None]


class GroupedOptimizer(optax.GradientTransformationExtraArgs):
    """The optax transformation of several optimizers, by `optax.partition`.

    Two of them with equal program keys differ at most in constant rates, which are in the optimizers' states.

    Attributes:
        rate: name -> constant rate, of the groups that have one; None if no group has.
    """

    rate: dict[str, float] | None
    _made_from: tuple[dict[str, Any], list[str]]

    @classmethod
    def make(cls, transforms: Mapping[str, Any], labels: list[str]) -> "GroupedOptimizer":
        """Makes it.

        Args:
            transforms: name -> optax transformation.
            labels: for each parameter the name of its group.
        """

        def tree_of_labels(tree: Any) -> Any:
            return jax.tree.unflatten(jax.tree.structure(tree), labels)

        # extra arguments such as `grad` are masked like the updates
        own: Any = dict(transforms)  # names are strings, and optax accepts any hashable key
        tx = optax.partition(own, tree_of_labels, mask_compatible_extra_args=True)
        self = cls(tx.init, tx.update)
        self._made_from = (dict(transforms), labels)
        rates = {name: getattr(each, "rate", None) for name, each in transforms.items()}
        self.rate = {name: rate for name, rate in rates.items() if rate is not None} or None
        return self

    def with_rate(self, rates: Mapping[str, Any]) -> "GroupedOptimizer":
        """Returns the optimizer with other constant rates, which may be traced."""
        transforms, labels = self._made_from
        new = dict(transforms)
        for name, rate in rates.items():
            own = transforms[name]
            assert isinstance(own, AdjustableOptimizer)
            new[name] = own.with_rate(rate)
        return GroupedOptimizer.make(new, labels)

    def program_key(self) -> Any:
        """Returns what decides its programs; see `key_of`."""
        transforms, labels = self._made_from
        return tuple(transforms.items()), tuple(labels)
