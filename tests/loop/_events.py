"""What a run has written for TensorBoard, read by TensorBoard's own reader, and without what depends on the clock."""

import hashlib
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # pyright: ignore[reportAttributeAccessIssue]

_HPARAMS = "hparams"


def events_of(directory: Path) -> list[Event]:
    """All events of a run's directory in the order of its files, without their times, and without files' beginnings."""
    found = []
    for path in sorted(directory.glob("events.out.tfevents.*")):
        for raw in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(raw)
            if event.HasField("file_version"):
                continue
            event.ClearField("wall_time")
            for value in event.summary.value:
                plugin = value.metadata.plugin_data
                if plugin.plugin_name == _HPARAMS:  # a map of protobuf may be written in any order
                    own = HParamsPluginData.FromString(plugin.content)
                    plugin.content = own.SerializeToString(deterministic=True)
            found.append(event)
    return found


def written(log_dir: Path) -> dict[str, list[bytes]]:
    """All that lies below a directory, by its path: the events of each run, the contents of every other file.

    Profiles are counted only: what takes how long is another thing each time.
    """
    found: dict[str, list[bytes]] = {}
    for directory in sorted(p for p in (log_dir, *log_dir.glob("**/")) if any(p.glob("events.out.tfevents.*"))):
        events = events_of(directory)
        found[directory.relative_to(log_dir).as_posix()] = [e.SerializeToString(deterministic=True) for e in events]
    for path in sorted(p for p in log_dir.glob("**/*") if p.is_file() and "tfevents" not in p.name):
        name = path.relative_to(log_dir).as_posix()
        if not name.startswith("plugins/profile/"):
            found[name] = [path.read_bytes()]
    found["profiles"] = [b""] * len(list(log_dir.glob("plugins/profile/*")))
    return found


def digests(log_dir: Path) -> dict[str, bytes]:
    """The same in short, for comparing."""
    return {
        f"{log_dir.name}/{name}": hashlib.sha256(repr(own).encode()).digest() for name, own in written(log_dir).items()
    }
