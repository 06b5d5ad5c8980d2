"""Where a run's arrays lie: on one device, or over the devices of a mesh."""

from jaxcb.parallel._own import gathered, own
from jaxcb.parallel._placement import ONE_DEVICE, Placement

__all__ = ["ONE_DEVICE", "Placement", "gathered", "own"]
