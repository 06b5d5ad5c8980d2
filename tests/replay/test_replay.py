"""`replay` against a plain Python loop that drives the same callbacks eagerly."""

import csv
import math
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxcb as jc


class Rate:
    """The learning rate of a run, in plain Python."""

    def __init__(self, base):
        self.base, self.scale, self.override = np.float32(base), np.float32(1), None

    def value(self):
        return self.base if self.override is None else self.override

    def apply(self, actions):
        factor = floor = None
        for action in actions:
            if isinstance(action, jc.actions.SetLearningRate):
                self.override = np.float32(action.value)
            elif isinstance(action, jc.actions.ScaleLearningRate):
                factor = np.float32(1 if factor is None else factor) * np.float32(action.factor)
                floor = max(np.float32(action.floor), floor or np.float32(0))
        if factor is not None:
            scale = self.scale * factor
            if floor > 0 and self.value() * scale < floor:
                scale = min(floor / self.value(), self.scale)
            self.scale = scale


def plain(callbacks, rows, base=1.0):
    """Drives a chain over rows `{epoch, step, name: value or None}`, hook by hook, without jit."""
    chain = jc.chain(*callbacks)
    state, rate = chain.init(), Rate(base)
    last, reported, total = {}, {}, rows[-1]["step"]
    names = [n for n in rows[0] if n not in ("epoch", "step")]
    actions, scales, stopped = [], [], None

    def moment(hook, values, at, applied, **place):
        nonlocal state
        rates = {"learning_rate": applied, "base_learning_rate": rate.value()}
        metrics = jc.Metrics(values | rates, reported=at, total_steps=total, **place)
        state, asked = getattr(chain, hook)(state, metrics)
        fired = jc.fired(asked)
        rate.apply(fired)
        return fired

    def now():
        return rate.value() * rate.scale

    moment("on_train_begin", {}, {}, now(), step=0, epoch=0, closes_epoch=False)
    before = 0
    for i, row in enumerate(rows):
        epoch, step = row["epoch"], row["step"]
        closes = i + 1 == len(rows) or rows[i + 1]["epoch"] != epoch
        if i == 0 or rows[i - 1]["epoch"] != epoch:
            actions.append([])
            scales.append(rate.scale)
            if stopped is None:
                actions[-1] += moment("on_epoch_begin", {}, {}, now(), step=before, epoch=epoch, closes_epoch=False)
        if stopped is None:
            applied = now()
            new = {n: row[n] for n in names if row[n] is not None}
            known = {n: last.get(n, math.nan) for n in names}
            at = {n: reported.get(n, -1) for n in names}
            early = {n: v for n, v in new.items() if n.startswith("val_") or not closes}
            place = {"step": step, "epoch": epoch}
            if not closes or any(n.startswith("val_") for n in new):
                asked = moment(
                    "on_eval_end", known | early, at | dict.fromkeys(early, step), applied, closes_epoch=closes, **place
                )
                actions[-1] += asked
            if closes:
                actions[-1] += moment(
                    "on_epoch_end", known | new, at | dict.fromkeys(new, step), applied, closes_epoch=True, **place
                )
            last |= new
            reported |= dict.fromkeys(new, step)
            if any(isinstance(a, jc.actions.Stop) for a in actions[-1]):
                stopped = epoch
        scales[-1] = rate.scale
        before = step
    return stopped, actions, np.asarray(scales, np.float32), state


def kinds(actions):
    return [[(type(a).__name__, a.owner) for a in epoch] for epoch in actions]


def catalogue():
    return [
        jc.EarlyStopping(patience=4, min_delta=0.5),
        jc.ReduceLROnPlateau(factor=0.5, patience=2, cooldown=1, min_lr=0.1),
        jc.ReduceLROnPlateau(monitor="loss", factor=0.25, patience=3),
        jc.History(),
    ]


cells = st.one_of(st.none(), st.just(math.nan), st.integers(-4, 4).map(float))


@st.composite
def runs(draw):
    """Rows of a recorded run: epochs with up to two validations in their middle."""
    rows, step = [], 0
    for epoch in range(draw(st.integers(1, 6))):
        for _ in range(draw(st.integers(0, 2))):
            step += draw(st.integers(1, 3))
            rows.append({"epoch": epoch, "step": step, "loss": None, "val_loss": draw(cells)})
        step += draw(st.integers(1, 3))
        rows.append({"epoch": epoch, "step": step, "loss": draw(cells), "val_loss": draw(cells)})
    return rows


bases = st.sampled_from([1.0, 0.5])


@given(runs(), bases)
@settings(max_examples=10)
def test_equals_a_plain_loop(rows, base):
    check_equals_a_plain_loop(rows, base)


@pytest.mark.deep
@given(runs(), bases)
def test_equals_a_plain_loop_deep(rows, base):
    check_equals_a_plain_loop(rows, base)


def check_equals_a_plain_loop(rows, base):
    stopped, actions, scales, state = plain(catalogue(), rows, base)
    got = jc.replay(catalogue(), rows, learning_rate=base)
    assert got.stopped_epoch == stopped
    assert kinds(got.actions) == kinds(actions)
    np.testing.assert_allclose(got.lr_scale, scales, rtol=1e-6)
    assert jax.tree.structure(got.states) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(got.states), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


def write(path: Path, rows, *, separator=","):
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(names)
        writer.writerows([["NA" if row.get(n) is None else row[n] for n in names] for row in rows])
    return path


LOSSES = [3.0, 2.0, None, math.nan, 2.5, 2.5, 1.0]


def as_rows(losses):
    return [{"epoch": i, "step": 10 * (i + 1), "val_loss": v} for i, v in enumerate(losses)]


def test_forms_agree(tmp_path):
    rows = as_rows(LOSSES)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    sparse = [{n: v for n, v in row.items() if v is not None} for row in rows]
    text = {"val_loss": ["NA" if v is None else str(v) for v in LOSSES]}
    sources = [
        rows,
        columns,
        sparse,
        text,
        write(tmp_path / "history.csv", rows),
        str(write(tmp_path / "semicolons.csv", rows, separator=";")),
        tmp_path,
    ]
    for source in sources:
        got = jc.replay([jc.EarlyStopping(patience=3)], source)
        assert got.stopped_epoch == 5, source
        assert kinds(got.actions)[5] == [("Stop", "EarlyStopping")]
        assert len(got.actions) == len(got.lr_scale) == len(LOSSES)


def test_missing_is_no_report_and_nan_is_one():
    patient = [jc.EarlyStopping(patience=2)]
    assert jc.replay(patient, {"val_loss": [1.0, None, "NA", 2.0, 2.0]}).stopped_epoch == 4
    assert jc.replay(patient, {"val_loss": [1.0, math.nan, math.nan, 2.0, 2.0]}).stopped_epoch == 2


def test_arrays_as_columns():
    for array in (np.asarray([1.0, 2.0], np.float64), jnp.asarray([1.0, 2.0]), np.asarray([1, 2])):
        assert jc.replay(jc.EarlyStopping(patience=1), {"val_loss": array}).stopped_epoch == 1


def test_middle_of_an_epoch():
    seen = jc.make_callback(
        init=lambda: {"eval": jnp.int32(0), "middle": jnp.int32(0), "end": jnp.int32(0), "begin": jnp.int32(0)},
        on_epoch_begin=lambda s, m: (s | {"begin": s["begin"] + 1}, None),
        on_eval_end=lambda s, m: (s | {"eval": s["eval"] + 1, "middle": s["middle"] + ~m.closes_epoch}, None),
        on_epoch_end=lambda s, m: (s | {"end": s["end"] + 1}, None),
        name="seen",
    )
    rows = [
        {"epoch": 0, "step": 5, "val_loss": 1.0},
        {"epoch": 0, "step": 10, "loss": 1.0, "val_loss": 2.0},
        {"epoch": 1, "step": 20, "loss": 1.0},
        {"epoch": 2, "step": 25, "val_loss": 3.0},
        {"epoch": 2, "step": 30, "loss": 1.0},
    ]
    got = jc.replay([seen, jc.EarlyStopping(patience=2)], rows)
    assert {k: int(v) for k, v in got.states["seen"].items()} == {"begin": 3, "eval": 3, "middle": 2, "end": 2}
    assert got.stopped_epoch == 2
    assert got.stop_reason is not None
    assert len(got.actions) == 3


def test_a_value_is_not_seen_before_its_report():
    callback = jc.make_callback(
        init=lambda: jnp.zeros((2,), jnp.float32),
        on_eval_begin=lambda s, m: (s.at[0].set(m["val_loss"]), None),
        on_eval_end=lambda s, m: (s.at[1].set(m["loss"]), None),
        name="callback",
    )
    got = jc.replay([callback], {"loss": [1.0, 2.0], "val_loss": [3.0, 4.0]})
    assert got.states["callback"].tolist() == [3.0, 1.0]


def test_nothing_happens_after_the_first_stop():
    count = jc.make_callback(
        init=lambda: jnp.int32(0), on_epoch_end=lambda s, m: (s + 1, jc.actions.Print("on")), name="callback"
    )
    got = jc.replay([count, jc.EarlyStopping(patience=1)], {"val_loss": [1.0, 2.0, 3.0, 4.0]})
    assert got.stopped_epoch == 1
    assert int(got.states["callback"]) == 2
    assert [len(a) for a in got.actions] == [1, 2, 0, 0]
    assert got.actions[-1] == ()
    assert [len(a) for a in got.actions[:2]] == [1, 2]
    with pytest.raises(IndexError):
        got.actions[4]


def test_all_reasons_of_the_stop_are_kept():
    callbacks = [jc.EarlyStopping(patience=1), jc.EarlyStopping(monitor="loss", patience=1, name="train")]
    got = jc.replay(callbacks, {"loss": [1.0, 2.0], "val_loss": [1.0, 2.0]})
    assert got.stop_reason == (
        "EarlyStopping: val_loss has not improved for 1 reports; best 1 at epoch 1; "
        "train: loss has not improved for 1 reports; best 1 at epoch 1"
    )


def test_a_stop_before_an_epoch_leaves_it_out():
    at_two = jc.make_callback(
        on_epoch_begin=lambda s, m: (s, jc.actions.Stop(m.epoch == 2, "two at {step}")), name="callback"
    )
    got = jc.replay([at_two, jc.History()], {"loss": [1.0] * 4})
    assert (got.stopped_epoch, got.stop_reason) == (2, "callback: two at 3")
    assert kinds(got.actions) == [[("LogHistory", "History")]] * 2 + [[("Stop", "callback")], []]


def test_begin_and_end():
    both = jc.make_callback(
        on_train_begin=lambda s, m: (s, jc.actions.ScaleLearningRate(0.5)),
        on_train_end=lambda s, m: (s, jc.actions.Print("{loss} at {step}")),
    )
    got = jc.replay([both], {"loss": [1.0, 2.0]})
    assert [type(a) for a in got.begin] == [jc.actions.ScaleLearningRate]
    assert float(got.end[0].values["loss"]) == 2.0  # pyright: ignore[reportAttributeAccessIssue]
    assert got.lr_scale.tolist() == [0.5, 0.5]
    stops = jc.make_callback(on_train_begin=lambda s, m: (s, jc.actions.Stop(True, "never")), name="callback")
    got = jc.replay([stops, jc.History()], {"loss": [1.0, 2.0]})
    assert (got.stopped_epoch, got.stop_reason, kinds(got.actions)) == (0, "callback: never", [[], []])


def test_the_floor_of_a_plateau_follows_the_base(tmp_path):
    plateau = jc.ReduceLROnPlateau(factor=0.1, patience=1, min_lr=0.5)
    losses = {"val_loss": [1.0] * 4}
    assert jc.replay([plateau], losses).lr_scale.tolist() == [1.0, 0.5, 0.5, 0.5]
    scale = jc.replay([plateau], losses, learning_rate=2.0).lr_scale
    np.testing.assert_allclose(scale, [1.0, 0.25, 0.25, 0.25], rtol=1e-6)
    rows = [
        {"epoch": i, "step": i + 1, "base_learning_rate": 2.0, "learning_rate": 9.0, "val_loss": 1.0} for i in range(4)
    ]
    recorded = jc.replay([plateau], write(tmp_path / "history.csv", rows)).lr_scale
    np.testing.assert_array_equal(recorded, scale)
    schedule = optax.linear_schedule(2.0, 0.0, 4)
    np.testing.assert_allclose(jc.replay([plateau], losses, learning_rate=schedule).lr_scale[:2], [1.0, 0.5])


def test_a_scheduler_sets_the_base_that_others_scale():
    rates = jc.make_callback(
        init=lambda: jnp.zeros((4,), jnp.float32),
        on_epoch_end=lambda s, m: (s.at[m.epoch].set(m["learning_rate"]), None),
        name="rates",
    )
    callbacks = [
        rates,
        jc.LearningRateScheduler(lambda epoch: 8.0 if epoch < 2 else 4.0),
        jc.ReduceLROnPlateau(factor=0.5, patience=1),
    ]
    got = jc.replay(callbacks, {"val_loss": [1.0] * 4})
    assert got.states["rates"].tolist() == [8.0, 8.0, 2.0, 1.0]
    assert got.lr_scale.tolist() == [1.0, 0.5, 0.25, 0.125]


def test_restored_weights_need_no_model():
    callback = jc.EarlyStopping(patience=1, restore_best_weights=True)
    got = jc.replay([callback], {"val_loss": [2.0, 1.0, 3.0]})
    assert kinds(got.actions) == [[("Snapshot", "EarlyStopping")]] * 2 + [[("Stop", "EarlyStopping")]]
    assert [type(a) for a in got.end] == [jc.actions.Restore]


def test_each_hook_is_traced_once():
    traced = Counter()

    def hook(name):
        def run(state, metrics):
            traced[name] += 1
            return state, None

        return run

    names = ["on_train_begin", "on_epoch_begin", "on_eval_begin", "on_eval_end", "on_epoch_end", "on_train_end"]
    callback = jc.make_callback(**{name: hook(name) for name in names})
    jc.replay([callback], {"loss": [1.0] * 50, "val_loss": [1.0] * 50})
    assert traced == Counter(names)


def test_a_missing_monitor_lists_the_names():
    with pytest.raises(
        jc.errors.MissingMetricError, match=r"EarlyStopping.*val_loss.*accuracy, base_learning_rate, l.*, loss"
    ):
        jc.replay([jc.EarlyStopping()], {"loss": [1.0], "accuracy": [0.5]})


def test_batch_hooks_cannot_be_replayed():
    with pytest.raises(ValueError, match=r"nothing to replay: TerminateOnNaN \(on_batch_end\)"):
        jc.replay([jc.TerminateOnNaN()], {"loss": [1.0]})
    with pytest.warns(UserWarning, match=r"TerminateOnNaN \(on_batch_end\)"):
        got = jc.replay([jc.TerminateOnNaN(), jc.EarlyStopping(monitor="loss", patience=1)], {"loss": [1.0, math.nan]})
    assert got.stopped_epoch == 1


def test_no_callbacks_do_nothing():
    got = jc.replay([], {"loss": [1.0, 2.0]})
    assert (got.stopped_epoch, list(got.actions), got.lr_scale.tolist()) == (None, [(), ()], [1.0, 1.0])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "has no records"),
        ([], "has no records"),
        ([{}], "empty dicts"),
        ({"loss": []}, "has no records"),
        ({"loss": [1.0], "val_loss": [1.0, 2.0]}, r"different lengths \(loss: 1, val_loss: 2\)"),
        ({"loss": "text"}, "expected a list"),
        ({"loss": 1.0}, "expected a list"),
        ({"loss": [1.0, "x"]}, "record 1, column 'loss': 'x' is not a number"),
        ([{"loss": 1.0}, 2.0], "record 1 is of type float"),
        ([{"loss": 1.0, "step": 2}, {"loss": 1.0, "step": 2}], "record 1: step is 2 after 2"),
        ({"loss": [1.0, 1.0], "epoch": [1, 0]}, "record 1: epoch is 0 after 1"),
        ({"loss": [1.0, 1.0], "epoch": [0, 0.5]}, "record 1: epoch is 0.5, expected an integer"),
        ({"loss": [1.0], "step": [None]}, "record 0: step is NA"),
    ],
)
def test_sources_that_cannot_be_read(source, message):
    with pytest.raises(jc.errors.DataError, match=message):
        jc.replay([jc.History()], source)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no records"),
        ("step,epoch,loss\n", "no records"),
        ("step,epoch,loss\n1,0,0.5\n\n2,1,abc\n", "line 4, column 'loss': 'abc' is not a number"),
        ("step,epoch,loss\n1,0,0.5\n2,1,\n", "line 3, column 'loss': '' is not a number"),
        ("step,epoch,loss\n1,0,0.5\n2,1\n", "line 3: 2 cells, expected 3"),
        ("step,loss,loss\n1,0,0.5\n", "the column 'loss' 2 times"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, text, message):
    path = tmp_path / "history.csv"
    path.write_text(text)
    with pytest.raises(jc.errors.DataError, match=message):
        jc.replay([jc.History()], path)


def test_other_sources_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run_dir/history\.csv"):
        jc.replay([jc.History()], tmp_path / "none.csv")
    with pytest.raises(TypeError, match="got int"):
        jc.replay([jc.History()], 3)
    with pytest.raises(TypeError, match="Call it to make an instance"):
        jc.replay([jc.EarlyStopping], {"loss": [1.0]})  # pyright: ignore[reportArgumentType]


def test_many_records_are_quick(tmp_path):
    count = 100_000
    losses = np.random.default_rng(0).random((count, 2), np.float32)
    path = tmp_path / "history.csv"
    with path.open("w") as file:
        file.write("step,epoch,loss,val_loss\n")
        file.writelines(f"{i + 1},{i},{a},{'NA' if i % 7 == 1 else b}\n" for i, (a, b) in enumerate(losses.tolist()))
    callbacks = [*catalogue()[1:], jc.EarlyStopping(patience=1_000)]
    got = jc.replay(callbacks, path)
    assert len(got.actions) == count
    assert any(isinstance(a, jc.actions.Stop) for a in got.actions[got.stopped_epoch])


def test_a_run_that_stopped_at_a_validation_in_an_epochs_middle_replays():
    rows = [
        {"step": 4, "epoch": 0, "val_loss": 1.0},
        {"step": 5, "epoch": 0, "loss": 2.0},
        {"step": 8, "epoch": 1, "val_loss": 1.5},
        {"step": 8, "epoch": 1, "val_loss": 1.5, "loss": 1.0},
    ]
    replay = jc.replay(jc.EarlyStopping(patience=1), rows)
    assert replay.stopped_epoch == 1
    assert int(replay.states["EarlyStopping"].wait) == 1, "one validation is one report"
