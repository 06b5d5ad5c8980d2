"""Event files: records as TensorFlow frames them, and what is on the disk when."""

import io

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import RecordWriter

from jaxcb._src.writers.tensorboard.event_file import EventFile, event_files, framed

# lengths that repeat, so that checksums are computed side by side
records = st.lists(st.one_of(st.binary(min_size=5, max_size=5), st.binary(max_size=40)), max_size=60)


@given(records)
def test_records_are_framed_as_tensorboardx_frames_them(records):
    file = io.BytesIO()
    writer = object.__new__(RecordWriter)
    writer._writer = file
    for record in records:
        writer.write(record)
    assert framed(records) == file.getvalue()


def test_many_events_come_back_in_order_and_are_there_after_a_sync(tmp_path):
    file = EventFile(tmp_path)
    for step in range(300):
        file.add_event(Event(step=step, wall_time=1.0))
    file.add_event(Event(graph_def=np.random.default_rng(0).bytes(5000), wall_time=1.0))
    file.sync()
    (path,) = event_files(tmp_path)
    raw = list(RawEventFileLoader(str(path)).Load())
    events = [Event.FromString(own) for own in raw]
    assert events[0].file_version == "brain.Event:2"
    assert [e.step for e in events[1:-1]] == list(range(300))
    assert len(events[-1].graph_def) == 5000
    file.close()
