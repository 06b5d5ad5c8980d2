"""CSV files: exact contents, and that they read back."""

import numpy as np
import pytest
from loop._runs import fit, make_data

import jaxcb as jc
from jaxcb._src.core.metric_names import as_text, row_text
from jaxcb._src.writers.csv import CSVWriter, Table
from jaxcb._src.writers.files import AppendFile
from jaxcb._src.writers.history import HistoryWriter
from jaxcb._src.writers.run_handle import Record
from jaxcb.writers import Context


def context(run_dir=None):
    return Context(run_dir, None, 0, None)


def row(path, values, fresh=None, *, owner="CSVLogger", **more):
    values = {k: np.asarray(v) for k, v in values.items()}
    fresh = dict.fromkeys(values, True) | (fresh or {})
    return jc.actions.LogCSV(values, fresh, str(path), owner=owner, **more)


def write(path, *rows, **more):
    writer = CSVWriter(context())
    writer.prepare(row(path, rows[0][0], **more))
    for i, (values, fresh) in enumerate(rows):
        writer.write(Record(row(path, values, fresh, **more), "on_epoch_end", 10 * (i + 1), i, 0))
    writer.close()
    return path.read_bytes().decode()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(0.1), "0.1"),
        (np.float64(0.1), "0.1"),
        (np.float32(1) / np.float32(3), "0.33333334"),
        (np.float32(1e-20), "1e-20"),
        (np.float32(16777216), "1.6777216e+07"),
        (np.float32(np.nan), "nan"),
        (np.float32(-np.inf), "-inf"),
        (np.float32(-0.0), "-0.0"),
        (np.float16(0.1), "0.099975586"),
        (np.int32(7), "7"),
        (np.bool_(True), "1"),
    ],
)
def test_numbers_are_the_shortest_decimals_that_read_back(value, text):
    assert as_text(value) == text
    if np.isfinite(value):
        assert np.asarray(float(as_text(value)), np.asarray(value).dtype) == value


def test_what_was_not_reported_is_na():
    assert row_text({"a": np.float32(1), "b": np.float32(2)}, {"a": True, "b": False}) == {"a": "1.0", "b": "NA"}


def test_contents_are_exact(tmp_path):
    text = write(
        tmp_path / "log.csv",
        ({"val_loss": np.float32(0.1), "acc": np.float32(0.5)}, {}),
        ({"val_loss": np.float32(np.nan), "acc": np.float32(0.25)}, {"acc": False}),
    )
    assert text == "epoch,step,acc,val_loss\n0,10,0.5,0.1\n1,20,NA,nan\n"


def test_the_separator_and_awkward_names_are_quoted(tmp_path):
    text = write(tmp_path / "log.csv", ({"top;1": 1, "größe": 2, "b,c": 3}, {}), separator=";")
    assert text == 'epoch;step;b,c;größe;"top;1"\n0;10;3;2;1\n'


def test_append_goes_on_and_replace_begins_anew(tmp_path):
    path = tmp_path / "log.csv"
    write(path, ({"loss": 1}, {}))
    assert write(path, ({"loss": 2}, {}), append=True) == "epoch,step,loss\n0,10,1\n0,10,2\n"
    assert write(path, ({"other": 3}, {})) == "epoch,step,other\n0,10,3\n"


def test_append_to_a_file_that_is_not_there_or_empty_writes_the_header(tmp_path):
    path = tmp_path / "log.csv"
    assert write(path, ({"loss": 1}, {}), append=True) == "epoch,step,loss\n0,10,1\n"
    path.write_text("")
    assert write(path, ({"loss": 1}, {}), append=True) == "epoch,step,loss\n0,10,1\n"


def test_append_under_another_header_is_refused(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("epoch,step,acc\n0,10,1\n")
    with pytest.raises(
        ValueError, match=r"has the columns .*'acc'\], but this run writes .*'loss'\].*or move the file"
    ):
        write(path, ({"loss": 1}, {}), append=True)


def test_rows_are_in_the_file_as_soon_as_they_are_written(tmp_path):
    table = Table(AppendFile(tmp_path / "sub" / "log.csv"), ["a", "b"])
    assert not (tmp_path / "sub" / "log.csv").exists()
    table.write({"a": "1"})
    assert (tmp_path / "sub" / "log.csv").read_text() == "a,b\n1,NA\n"
    table.close()
    table.write({"a": "2", "b": "3"})  # after a close it goes on
    table.close()
    assert (tmp_path / "sub" / "log.csv").read_text() == "a,b\n1,NA\n2,3\n"


def test_two_owners_of_one_file_are_refused(tmp_path):
    writer = CSVWriter(context(tmp_path))
    writer.prepare(row("log.csv", {"loss": 1}, owner="one"))
    writer.prepare(row("log.csv", {"loss": 1}, owner="one"))  # its other hook
    with pytest.raises(ValueError, match=r"one and two both write .*log.csv; give one of them another filename"):
        writer.prepare(row(tmp_path / "log.csv", {"loss": 1}, owner="two"))


def test_history_puts_position_and_rates_first(tmp_path):
    writer = HistoryWriter(context(tmp_path))
    names = ["val_loss", "loss", "learning_rate", "base_learning_rate"]
    values = {name: np.float32(i) for i, name in enumerate(names)}
    action = jc.actions.LogHistory(values, dict.fromkeys(values, True))
    writer.prepare(action)
    writer.write(Record(action, "on_epoch_end", 5, 0, 5))
    writer.close()
    header = (tmp_path / "history.csv").read_text().splitlines()[0]
    assert header == "step,epoch,base_learning_rate,learning_rate,loss,val_loss"


# In a run


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run") / "deep" / "er"
    result = fit(
        epochs=None,
        steps=13,
        eval_every=3,
        run_dir=run_dir,
        callbacks=[
            jc.CSVLogger("log.csv"),
            jc.CSVLogger(run_dir / "other.tsv", separator="\t"),
            jc.ReduceLROnPlateau("val_loss", patience=1, factor=0.5, min_delta=1e6),
        ],
    )
    return result, run_dir


def test_files_of_a_run_hold_what_the_history_holds(logged):
    result, run_dir = logged
    lines = [line.split(",") for line in (run_dir / "log.csv").read_text().splitlines()]
    assert lines[0] == ["epoch", "step", *sorted(result.history)]
    assert [line[1] for line in lines[1:]] == ["3", "5", "6", "9", "10", "12", "13"]
    for column, name in enumerate(lines[0]):
        if name in ("epoch", "step"):
            assert [int(line[column]) for line in lines[1:]] == getattr(result.history, name).tolist()
            continue
        cells = [line[column] for line in lines[1:]]
        assert [c != "NA" for c in cells] == result.history.reported(name).tolist()
        read = [np.nan if c == "NA" else np.float32(c) for c in cells]
        np.testing.assert_array_equal(np.asarray(read, np.float32), result.history[name])
    assert (run_dir / "other.tsv").read_text().replace("\t", ",") == (run_dir / "log.csv").read_text()
    assert set(result.files) == {run_dir / "history.csv", run_dir / "log.csv", run_dir / "other.tsv"}


def test_the_history_file_replays_to_the_same_decisions(logged):
    result, run_dir = logged
    assert (
        (run_dir / "history.csv").read_text().splitlines()[0].startswith("step,epoch,base_learning_rate,learning_rate,")
    )
    replay = jc.replay([jc.ReduceLROnPlateau("val_loss", patience=1, factor=0.5, min_delta=1e6)], run_dir)
    assert float(replay.lr_scale[-1]) == float(result.state.learning_rate.scale)
    stopping = jc.EarlyStopping("val_loss", patience=2, min_delta=1e6)
    assert jc.replay([stopping], run_dir / "history.csv").stopped_epoch == 1


def test_a_run_dir_is_replaced_only_where_that_is_said(tmp_path):
    def run(**more):
        return fit(epochs=1, run_dir=tmp_path, callbacks=[], **more)

    run()
    first = (tmp_path / "history.csv").read_text()
    with pytest.raises(FileExistsError, match="already holds a run"):
        run()
    run(overwrite=True)
    assert (tmp_path / "history.csv").read_text() == first


def test_an_appended_log_goes_on_over_two_runs(tmp_path):
    path = tmp_path / "log.csv"
    for _ in range(2):
        fit(epochs=1, callbacks=[jc.CSVLogger(path, append=True)], data=make_data())
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    assert lines[1] == lines[2]
