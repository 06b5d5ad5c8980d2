"""Writers: the host code that performs log and host actions."""

from jaxcb._src.writers.base import Context, Writer, writer, writer_for
from jaxcb._src.writers.saved_checkpoints import CheckpointSaved
from jaxcb._src.writers.trackers.base import RefusedError, TrackedRecord, TrackedRun, Tracker
from jaxcb._src.writers.trackers.http import HTTPTracker

__all__ = [
    "CheckpointSaved",
    "Context",
    "HTTPTracker",
    "RefusedError",
    "TrackedRecord",
    "TrackedRun",
    "Tracker",
    "Writer",
    "writer",
    "writer_for",
]
