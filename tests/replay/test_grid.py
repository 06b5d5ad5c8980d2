"""Replaying many configurations of callbacks at once."""

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxcb as jc

CURVES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, float("nan")]), min_size=12, max_size=12)
OVER = {"callbacks.EarlyStopping.patience": [0, 1, 3], "callbacks.EarlyStopping.min_delta": [0.0, 0.3]}


@hypothesis.settings(max_examples=4)
@given(CURVES)
def test_each_configuration_does_what_it_would_do_alone(curve):
    callbacks = [jc.EarlyStopping(), jc.ReduceLROnPlateau(factor=0.5, patience=1)]
    grid = jc.replay(callbacks, {"val_loss": curve}, over=OVER)
    for i, point in enumerate(grid.points):
        patience, delta = point.values()
        alone = jc.replay([jc.EarlyStopping(patience=patience, min_delta=delta), callbacks[1]], {"val_loss": curve})
        stopped = None if grid.stopped_epoch[i] < 0 else grid.stopped_epoch[i]
        assert stopped == alone.stopped_epoch
        last = len(curve) - 1 if stopped is None else stopped
        assert grid.lr_scale[i] == alone.lr_scale[last]
        np.testing.assert_array_equal(grid.values["val_loss"][i], np.float32(curve[last]))


@pytest.mark.long
def test_ten_thousand_configurations_over_a_thousand_epochs_in_one_call():
    rng = np.random.default_rng(0)
    curve = np.exp(-np.arange(1000) / 200) + rng.normal(scale=0.05, size=1000)
    over = {
        "callbacks.EarlyStopping.patience": range(1, 101),
        "callbacks.EarlyStopping.min_delta": np.linspace(0, 0.1, 100).tolist(),
    }
    grid = jc.replay([jc.EarlyStopping()], {"val_loss": curve}, over=over)
    assert len(grid) == 10_000
    stopped = grid.stopped_epoch.reshape(100, 100)
    later = np.where(stopped < 0, 1000, stopped)
    assert np.all(np.diff(later, axis=0) >= 0), "more patience never stops sooner"
    for i in (0, 5_050, 9_999):
        point = {path.rpartition(".")[2]: value for path, value in grid.points[i].items()}
        alone = jc.replay([jc.EarlyStopping(**point)], {"val_loss": curve}).stopped_epoch
        assert grid.stopped_epoch[i] == (-1 if alone is None else alone)
    table = grid.table()
    assert {len(column) for column in table.values()} == {10_000}


def test_what_a_recorded_run_has_not():
    with pytest.raises(ValueError, match="'seed' is not in a callback"):
        jc.replay([jc.EarlyStopping()], {"val_loss": [1.0]}, over={"seed": [0]})
    with pytest.raises(ValueError, match="Did you mean 'patience'"):
        jc.replay([jc.EarlyStopping()], {"val_loss": [1.0]}, over={"callbacks.EarlyStopping.patienc": [0]})
