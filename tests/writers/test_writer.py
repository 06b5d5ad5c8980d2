"""Writers: who performs what, and what happens where one fails."""

import jax.numpy as jnp
import numpy as np
import pytest
from loop._runs import fit

import jaxcb as jc
from jaxcb._src.core.actions.host import Call
from jaxcb._src.core.actions.logging import LogCSV, LogHistory, LogProgress, Print
from jaxcb._src.writers.csv import CSVWriter
from jaxcb._src.writers.dispatch import WriterDispatcher
from jaxcb._src.writers.history import HistoryWriter
from jaxcb._src.writers.host import CallWriter
from jaxcb._src.writers.progress import ProgressWriter
from jaxcb._src.writers.run_handle import Record
from jaxcb.writers import Context, writer_for


@pytest.mark.parametrize(
    ("action", "writer"),
    [
        (LogCSV, CSVWriter),
        (LogHistory, HistoryWriter),
        (LogProgress, ProgressWriter),
        (Print, ProgressWriter),
        (Call, CallWriter),
    ],
)
def test_each_action_of_ours_has_its_writer(action, writer):
    assert writer_for(action) is writer


class Note(jc.actions.LogAction):
    value: float


class ShoutedNote(Note):
    """Performed as a `Note`."""


LOG = []


@jc.writers.writer(Note)
class NoteWriter(jc.writers.Writer):
    def prepare(self, action):
        LOG.append(("prepare", type(action).__name__, action.value.shape))

    def write(self, record):
        LOG.append(
            (record.hook, record.step, record.epoch, record.batch, record.action.owner, float(record.action.value))
        )

    def tick(self, status):
        LOG.append(("tick", int(status.step)))

    def close(self):
        LOG.append(("close",))


class Notes(jc.Callback):
    def on_batch_end(self, state, metrics):
        return state, ShoutedNote(metrics.step * 1.5, when=metrics.step % 2 == 0)


def test_an_action_inherits_its_writer():
    assert writer_for(ShoutedNote) is NoteWriter


def test_an_action_that_nothing_performs_says_how_to_register_one():
    class Silent(jc.actions.LogAction):
        pass

    with pytest.raises(LookupError, match=r"no writer performs the action Silent.*@jc.writers.writer\(Silent\)"):
        writer_for(Silent)


@pytest.mark.parametrize("what", [3, "Row", jc.writers.Writer, Note(1.0)], ids=["number", "text", "class", "instance"])
def test_only_action_classes_have_writers(what):
    with pytest.raises(TypeError, match="writer: actions must be classes of actions"):
        jc.writers.writer(what)


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_a_writer_of_ones_own_sees_each_record_once_and_in_order(executor):
    LOG.clear()
    fit(executor, epochs=2, callbacks=[Notes()], validation_data=None)
    assert LOG[0] == ("prepare", "ShoutedNote", ())
    assert LOG[-1] == ("close",)
    written = [entry for entry in LOG if entry[0] == "on_batch_end"]
    assert written == [
        ("on_batch_end", step, (step - 1) // 5, (step - 1) % 5 + 1, "Notes", step * 1.5) for step in (2, 4, 6, 8, 10)
    ]
    ticks = [entry[1] for entry in LOG if entry[0] == "tick"]
    assert ticks == sorted(ticks)
    assert ticks[-1] == 10


class Fragile(jc.actions.LogAction):
    step: int


class OutOfPaper(Exception):
    pass


@jc.writers.writer(Fragile)
class FragileWriter(jc.writers.Writer):
    writes = 0
    closed = False

    def write(self, record):
        type(self).writes += 1
        if record.step >= 10:
            raise OutOfPaper("no more")

    def close(self):
        type(self).closed = True
        raise OSError("cannot be closed either")


class Breaks(jc.Callback):
    def on_epoch_end(self, state, metrics):
        return state, Fragile(metrics.step)


def test_a_writer_that_fails_keeps_no_other_from_its_records(tmp_path):
    FragileWriter.writes, FragileWriter.closed = 0, False
    path = tmp_path / "log.csv"
    with pytest.raises(OutOfPaper) as caught:
        # four epochs come back in one piece
        fit(
            epochs=4,
            callbacks=[Breaks(), jc.CSVLogger(path)],
            steps_per_execution=20,
            validation_data=None,
        )
    assert caught.value.__notes__ == [
        "This happened while writing a Fragile of Breaks.",
        "And then closing FragileWriter failed: OSError('cannot be closed either')",
    ]
    assert [line.split(",")[1] for line in path.read_text().splitlines()] == ["step", "5", "10", "15", "20"]
    assert FragileWriter.writes == 2, "what has failed is not asked again"
    assert FragileWriter.closed


def test_a_writer_that_cannot_be_closed_is_an_error(monkeypatch):
    monkeypatch.setattr(FragileWriter, "write", lambda self, record: None)
    with pytest.raises(OSError, match="cannot be closed either"):
        fit(epochs=1, callbacks=[Breaks()], validation_data=None)


def test_a_context_places_files_below_the_run_dir(tmp_path, monkeypatch):
    context = Context(tmp_path, None, 0, None)
    assert context.path("a/b.csv") == tmp_path / "a" / "b.csv"
    assert context.path(str(tmp_path / "c.csv")) == tmp_path / "c.csv"
    monkeypatch.chdir(tmp_path)
    context = Context(None, None, 0, None)
    monkeypatch.chdir("/")
    assert context.path("a.csv") == tmp_path / "a.csv"


def test_a_file_has_one_owner(tmp_path):
    context = Context(tmp_path, None, 0, None)
    for _ in range(2):
        context.claim(tmp_path / "a.csv", "one")
    assert context.files == [tmp_path / "a.csv"]
    with pytest.raises(ValueError, match="one and two both write"):
        context.claim(tmp_path / "sub" / ".." / "a.csv", "two")


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_large_records_come_whole_and_in_order_with_small_ones(executor):
    LOG.clear()
    large = []

    class Picture(jc.actions.LogAction):
        pixels: object

    @jc.writers.writer(Picture)
    class PictureWriter(jc.writers.Writer):
        def write(self, record):
            large.append((record.step, record.action.pixels.shape, int(record.action.pixels.sum())))
            LOG.append(("picture", record.step))

    class Both(jc.Callback):
        def on_batch_end(self, state, metrics):
            picture = jnp.full((64, 64), metrics.step, jnp.int32)
            return state, (Note(metrics.step), Picture(picture, when=metrics.step % 3 == 0))

    fit(executor, epochs=2, callbacks=[Both()], validation_data=None)
    assert large == [(s, (64, 64), s * 64 * 64) for s in (3, 6, 9)]
    order = [e[:2] if e[0] == "picture" else e[1] for e in LOG if e[0] in ("picture", "on_batch_end")]
    assert order == [1, 2, 3, ("picture", 3), 4, 5, 6, ("picture", 6), 7, 8, 9, ("picture", 9), 10]


def test_values_of_records_are_numpy():
    kinds = []

    class Look(jc.actions.LogAction):
        value: object

    @jc.writers.writer(Look)
    class LookWriter(jc.writers.Writer):
        def write(self, record):
            kinds.append(type(record.action.value))

    fit(
        epochs=1,
        callbacks=[jc.make_callback(on_epoch_end=lambda s, m: (s, Look(m["loss"])))],
        validation_data=None,
    )
    assert issubclass(kinds[0], np.generic | np.ndarray)


FLUSHED = []


def buffered(name):
    """An action, and its writer that buffers it and fails to pass it on."""
    action = type(name, (jc.actions.LogAction,), {})

    class BufferedWriter(jc.writers.Writer):
        def write(self, record):
            pass

        def flush(self):
            FLUSHED.append(name)
            raise OSError(f"{name} is not passed on")

    BufferedWriter.__name__ = f"{name}Writer"
    jc.writers.writer(action)(BufferedWriter)
    return action


@pytest.mark.parametrize("kinds", [["A"], ["A", "B"], ["A", "B", "C"]])
@pytest.mark.parametrize("broken", [None, 0, 1])
def test_a_writer_that_cannot_be_flushed_hides_no_other(kinds, broken):
    """Each writer is flushed, and the first error names the others; one of `write` comes before those of `flush`."""
    FLUSHED.clear()
    actions = [buffered(name)() for name in kinds]
    if broken is not None:
        actions.insert(broken, Fragile(10))
    records = [Record(a.replace(owner=f"my {type(a).__name__}"), "on_epoch_end", 10, 0, 1) for a in actions]
    with pytest.raises((OSError, OutOfPaper)) as caught:
        WriterDispatcher(Context(None, None, 0, None)).perform(records)
    assert kinds == FLUSHED
    told = [f"{caught.value!r}", *caught.value.__notes__]
    assert all(sum(f"{name} is not passed on" in text for text in told) == 1 for name in kinds)
    assert isinstance(caught.value, OSError if broken is None else OutOfPaper)
