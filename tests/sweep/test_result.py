"""What a sweep hands back."""

import csv
import math

import numpy as np
import pytest

import jaxcb as jc


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.long
def test_the_table_has_a_row_a_member_and_columns_by_name(small_sweep):
    table = small_sweep.table()
    assert {len(column) for column in table.values()} == {6}
    assert table["member"] == list(range(6))
    for i, point in enumerate(small_sweep.points):
        assert {path: table[path][i] for path in point} == point
        own = small_sweep.member(i)
        assert table["epochs"][i] == len(own.history.step)
        assert table["steps"][i] == int(own.state.step)
        assert table["stop_reason"][i] == own.stop_reason
        np.testing.assert_equal(table["val_loss"][i], float(own.history["val_loss"][-1]))
    best = [np.nanmin(small_sweep.member(i).history["val_loss"]) for i in range(4)]
    np.testing.assert_allclose(table["best_val_loss"][:4], best)
    assert all(math.isnan(x) for x in table["best_val_loss"][4:])
    assert [dict(r)["stop_reason"] for r in rows_of(small_sweep.run_dir / "table.csv")] == [
        reason or "" for reason in table["stop_reason"]
    ]


def test_a_member_is_an_ordinary_result(small_sweep):
    own = small_sweep.member(1)
    assert isinstance(own, jc.Result)
    assert (own.member, own.point) == (1, small_sweep.points[1])
    assert small_sweep[-1].member == 5
    assert [m.member for m in small_sweep[1:3]] == [1, 2]
    assert own.plot() is not None
    assert own.callback_states["EarlyStopping"].wait.shape == ()
    with pytest.raises(IndexError):
        small_sweep.member(6)


def test_best_follows_the_metric_and_passes_nan_over(small_sweep):
    table = small_sweep.table()
    assert small_sweep.best().member == int(np.nanargmin(table["best_val_loss"]))
    assert small_sweep.best("val_mae", mode="min").member in range(4)
    with pytest.raises(KeyError, match="Did you mean 'val_loss'"):
        small_sweep.best("vall_loss")


def test_files_have_a_row_a_member_and_epoch(small_sweep):
    for name in ("history.csv", "log.csv"):
        rows = rows_of(small_sweep.run_dir / name)
        for i in range(6):
            own = small_sweep.member(i).history
            mine = [row for row in rows if row["member"] == str(i)]
            assert [int(row["epoch"]) for row in mine] == own.epoch.tolist()
            np.testing.assert_array_equal(np.float32([row["val_loss"] for row in mine]), own["val_loss"])


def test_pictures(small_sweep, tmp_path):
    figure = small_sweep.plot(tmp_path / "deep" / "sweep.png")
    assert (tmp_path / "deep" / "sweep.png").stat().st_size > 0
    curves, coordinates = figure.axes
    finite = [i for i in range(6) if np.isfinite(small_sweep.member(i).history["val_loss"]).any()]
    stopped = [i for i in finite if small_sweep.member(i).stop_reason]
    ends = [line for line in curves.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert len(ends) == len(stopped)
    assert len(coordinates.lines) == 6 + 3  # a line a member, an axis a column


def test_show_prints_the_best_first(small_sweep, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    small_sweep.show(rows=4)
    said = capsys.readouterr().out
    assert "learning_rate" in said
    assert "and 2 more" in said
    first = next(line for line in said.splitlines() if line.startswith("│"))
    assert first.split("│")[1].strip() == str(small_sweep.best().member)


def test_lines_tell_who_is_alive_and_the_best_so_far(capsys):
    import optax
    from loop._runs import loss_fn, make_data, make_params

    jc.sweep(
        make_params,
        loss_fn,
        make_data(),
        over={"seed": [0, 1], "callbacks.EarlyStopping.patience": [1, 9]},
        optimizer=optax.sgd(0.0),
        epochs=3,
        callbacks=[jc.EarlyStopping("loss", min_delta=1.0)],
        verbose=2,
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert "4 of 4 alive · best loss" in lines[0]
    assert "2 of 4 alive" in lines[2]
    assert "(member " in lines[2]
