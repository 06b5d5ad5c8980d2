"""Models: adapters of Flax NNX, Flax Linen, Equinox and pytrees."""

from jaxcb._src.models.adapt import adapt
from jaxcb._src.models.adapter import Adapter
from jaxcb._src.models.linen import Linen, LinenModel, linen
from jaxcb._src.models.pytree import Pytree, with_state
from jaxcb._src.models.trainable import AllBut

__all__ = [
    "Adapter",
    "AllBut",
    "Linen",
    "LinenModel",
    "Pytree",
    "adapt",
    "linen",
    "with_state",
]
