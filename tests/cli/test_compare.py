"""`jaxcb compare` finds the first bit in which runs part; `jaxcb plot` draws their curves."""

import shutil

import numpy as np
import pytest
from cli._runs import train
from hypothesis import given
from hypothesis import strategies as st

import jaxcb as jc
from jaxcb._src.history.reader import read_records
from jaxcb._src.plotting.series import thinned
from jaxcb._src.plotting.terminal import drawn
from jaxcb._src.report.compare import first_difference


@pytest.mark.long
def test_a_resumed_run_and_its_twin_do_not_differ(call, folder, tmp_path):
    killed = shutil.copytree(folder / "killed", tmp_path / "killed")
    idle = jc.LambdaCallback(on_epoch_end=lambda epoch, logs: None, name="kill")
    train(killed, patience=20, more=[idle], resume=True)
    train(tmp_path / "twin", patience=20, more=[idle])
    said = call("compare", killed, tmp_path / "twin", "--json")
    assert said.code == 0
    (found,) = said.json
    assert (found["differs"], found["numbers"], found["decisions"], found["only"]) == (False, None, None, [])
    assert found["settings"] == {}


def test_the_first_difference_of_runs_is_the_first_other_decision(call, runs):
    """The runs differ in their patience only: until the first one stops, they are one run."""
    folder, results = runs
    stopped = results["stopped"].stopped_epoch
    said = call("compare", folder / "stopped", folder / "finished", "--json")
    assert said.code == 1
    (found,) = said.json
    assert found["settings"] == {"EarlyStopping.patience": ["4", "50"]}
    assert found["numbers"]["what"] == "length"
    assert found["numbers"]["epoch"] == stopped + 1
    assert found["decisions"]["epoch"] == stopped
    assert "Stop" in found["decisions"]["first"]
    text = call("compare", folder / "stopped", folder / "finished")
    assert text.code == 1
    assert "EarlyStopping.patience" in text.out


@given(data=st.data())
def test_any_changed_number_is_found_where_it_is(folder, data):
    one = read_records(folder / "finished")
    row = data.draw(st.integers(0, len(one.step) - 1))
    column = data.draw(st.integers(0, len(one.names) - 1))
    values = one.values.copy()
    values[row, column] = np.nextafter(values[row, column], np.float32(np.inf))
    found, only = first_difference(one, one._replace(values=values))
    assert only == ()
    assert found is not None
    assert (found.epoch, found.step, found.what) == (one.epoch[row], one.step[row], one.names[column])
    assert first_difference(one, one) == (None, ())


def test_a_single_run_has_nothing_to_be_compared_with(call, folder):
    assert call("compare", folder / "stopped").code == 2
    assert "--member" in call("compare", folder / "some" / "sweep", folder / "stopped").err


def test_pictures_and_curves_in_the_terminal(call, folder, tmp_path):
    said = call("plot", folder / "stopped", folder / "finished", "-o", tmp_path / "new" / "curves.png")
    assert said.code == 0
    assert (tmp_path / "new" / "curves.png").read_bytes().startswith(b"\x89PNG")
    shown = call("plot", folder / "stopped", "--metric", "val_loss").out
    assert shown.splitlines()[0].startswith("val_loss")
    assert any(0x2800 <= ord(c) <= 0x28FF for c in shown)
    values = call("plot", folder / "stopped", "--json").json
    history = read_records(folder / "stopped")
    assert np.float32(values["stopped"]["val_loss"]["values"]).tolist() == history.values[
        :, history.names.index("val_loss")
    ].tolist()  # fmt: skip
    wrong = call("plot", folder / "stopped", "--metric", "val_los")
    assert wrong.code == 3
    assert "Did you mean 'val_loss'?" in wrong.err


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=60),
    st.integers(14, 90),
    st.integers(2, 30),
)
def test_a_curve_of_any_numbers_is_drawn_within_its_size(values, width, height):
    lines = drawn(
        [(np.arange(len(values), dtype=float), np.asarray(values, float))], "loss", width=width, height=height
    )
    if np.isfinite(values).any() if values else False:
        assert len(lines.splitlines()) == height + 2
    else:
        assert "no report is a number" in lines


@given(st.lists(st.floats(allow_nan=True, width=32), min_size=1, max_size=400), st.integers(4, 50))
def test_a_thinned_curve_keeps_its_ends_its_lowest_and_its_highest(values, most):
    x, y = np.arange(len(values), dtype=float), np.asarray(values)
    few_x, few_y = thinned(x, y, most)
    assert len(few_x) <= max(most, min(len(x), most)) + 2
    assert (few_x[0], few_x[-1]) == (x[0], x[-1])
    finite = y[np.isfinite(y)]
    if len(finite):
        assert np.isin([finite.min(), finite.max()], few_y).all()
    assert np.all(np.diff(few_x) > 0)


@pytest.mark.parametrize("arguments", [["--keep", "all"], []])
def test_clean_needs_a_known_kind(call, folder, arguments):
    assert call("clean", folder / "stopped", *arguments).code == 2
