"""`jaxcb explain` names the actions that a run performed, and what nearly fired."""

import re

import numpy as np
import pytest
from cli._runs import KILLED_IN, train
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxcb as jc
from jaxcb._src.report.callback_text import CallbackTextError, make, parse
from jaxcb._src.report.explain import explain
from jaxcb._src.report.run_folder import RunFolder


def verbose_callbacks(draw):
    """Callbacks that print a line for each of their actions, with numbers that are drawn."""
    whole, small = st.integers(1, 4), st.sampled_from([0.0, 0.001, 0.05])
    return [
        jc.EarlyStopping(patience=draw(whole), min_delta=draw(small), start_from_epoch=draw(whole), verbose=1),
        jc.ReduceLROnPlateau(patience=draw(whole), factor=0.5, min_delta=draw(small), cooldown=draw(whole), verbose=1),
        jc.ModelCheckpoint("{epoch:02d}", save_best_only=True, save_weights_only=True),
    ]


@settings(max_examples=3)
@given(data=st.data())
def test_the_actions_are_those_that_the_run_performed(tmp_path_factory, data):
    """What the run itself shows of its actions: the lines that it printed, its stop, its rates and its files."""
    run_dir = tmp_path_factory.mktemp("run") / "run"
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *parts, **_: printed.append(" ".join(map(str, parts))))
        result = train(run_dir, callbacks=verbose_callbacks(data.draw), epochs=10, verbose=2)
    found = explain(RunFolder(run_dir))
    assert found.problems == ()
    assert found.unexplained == {}
    events = found.events

    shown = [line for text in printed for line in text.splitlines() if re.match(r"Epoch \d+: (early|ReduceLR)", line)]
    assert [event.text.split(" (")[0] for event in events if event.action == "Print"] == [
        line.split(" (")[0] for line in shown
    ]
    stops = [event for event in events if event.action == "Stop"]
    assert [event.epoch for event in stops] == ([] if result.stopped_epoch is None else [result.stopped_epoch])
    assert "; ".join(f"{e.callback}: {e.text}" for e in stops) == (result.stop_reason or "")
    factor = result.history["learning_rate"] / result.history["base_learning_rate"]
    cuts = [epoch for epoch in range(len(factor) - 1) if factor[epoch + 1] < factor[epoch] * 0.999]
    assert [e.epoch for e in events if e.action == "ScaleLearningRate" and e.epoch < len(factor) - 1] == cuts
    saved = sorted(int(path.name) for path in run_dir.iterdir() if path.name.isdigit())
    assert [e.epoch + 1 for e in events if e.action == "Checkpoint"] == saved


@pytest.mark.long
def test_a_resumed_run_is_explained_as_its_twin(folder, tmp_path):
    """A run that was killed and continued took the same decisions as one that was not."""
    import shutil

    killed = shutil.copytree(folder / "killed", tmp_path / "killed")
    before = explain(RunFolder(killed))
    assert {event.epoch for event in before.events} <= set(range(KILLED_IN + 1))
    idle = jc.LambdaCallback(on_epoch_end=lambda epoch, logs: None, name="kill")
    train(killed, patience=20, more=[idle], resume=True)
    train(tmp_path / "twin", patience=20, more=[idle])
    one, other = (explain(RunFolder(run)) for run in (killed, tmp_path / "twin"))
    assert one.events == other.events
    assert one.nearest == other.nearest
    assert one.events[: len(before.events)] == before.events
    assert "from functions" in one.unexplained["kill"]


def test_what_nearly_fired_is_the_most_of_the_patience(call, folder):
    said = call("explain", folder / "finished", "--json").json
    (near,) = [n for n in said["nearest"] if n["callback"] == "EarlyStopping" and "patience" in n["text"]]
    history = RunFolder(folder / "finished").records
    losses = history.values[:, history.names.index("val_loss")]
    waits, best = [0], losses[0]
    for loss in losses[1:]:
        waits.append(0 if loss < best else waits[-1] + 1)
        best = min(loss, best)
    assert near["text"] == f"patience {max(waits)} of 50 reports"
    assert near["epoch"] == int(np.argmax(waits))


def test_people_read_epochs_from_1_and_one_epoch_alone(call, folder, runs):
    stopped = runs[1]["stopped"].stopped_epoch
    said = call("explain", folder / "stopped", "--epoch", stopped + 1)
    assert said.code == 0
    assert "val_loss has not improved for 4 reports" in said.out
    assert f" {stopped + 1} " in said.out
    assert "No action fired" in call("explain", folder / "stopped", "--epoch", 99).out


def test_a_member_of_a_sweep_is_explained(call, folder):
    sweep = folder / "some" / "sweep"
    assert "--member" in call("explain", sweep).err
    said = call("explain", sweep, "--member", 1, "--json").json
    run = RunFolder(sweep)
    recorded = [stop for stop in run.facts["stops"] if stop[4] == 1]
    assert [(e["step"], e["text"]) for e in said["events"] if e["action"] == "Stop"] == [(s[2], s[1]) for s in recorded]


def test_the_record_of_a_stop_is_shown_where_the_callback_is_unknown(call, tmp_path):
    class StopAt(jc.Callback):
        epoch: int

        def on_epoch_end(self, state, metrics):
            return state, jc.actions.Stop(metrics.epoch >= self.epoch, "far enough")

    train(tmp_path / "own", more=[StopAt(2)])
    said = call("explain", tmp_path / "own", "--json").json
    assert said["unexplained"] == {"StopAt": "it is a class of the run's own code"}
    assert [e["text"] for e in said["events"] if e["action"] == "Stop"] == ["far enough (from the record)"]


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch x')",
        "EarlyStopping(patience=__import__('os'))",
        "EarlyStopping(patience=(lambda: 1)())",
        "EarlyStopping(**{'patience': 1})",
        "EarlyStopping(patience=[1 for _ in ()])",
        "jc.EarlyStopping()",
        "EarlyStopping(",
        "(" * 5000,
        "EarlyStopping(monitor=" + "[" * 3000 + "]" * 3000 + ")",
        "x" * 100_000,
        "EarlyStoping()",
        "EarlyStopping(patienc=1)",
        "Callback()",
        "",
    ],
)
def test_a_callbacks_text_is_literals_and_nothing_is_evaluated(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CallbackTextError):
        make(text)
    assert not list(tmp_path.iterdir())


@given(patience=st.integers(0, 99), delta=st.floats(-1e6, 1e6), mode=st.sampled_from(["min", "max"]))
def test_the_text_of_a_callback_makes_it_again(patience, delta, mode):
    callback = jc.EarlyStopping("a b'c", patience=patience, min_delta=delta, mode=mode)
    assert make(repr(callback)) == callback
    assert parse("EarlyStopping").fields == {}


def test_callbacks_that_a_replay_cannot_run_are_named_and_the_others_explained(tmp_path, call):
    import optax
    from loop._runs import loss_fn, make_data, make_params

    jc.fit(
        make_params(), loss_fn, make_data(), optimizer={"w": optax.sgd, "b": optax.sgd}, learning_rate=0.1, epochs=6,
        batch_size=16, verbose=0, run_dir=tmp_path / "run",
        callbacks=[
            jc.EarlyStopping("loss", patience=1, min_delta=9.0),
            jc.ReduceLROnPlateau("loss", patience=1, min_delta=9.0, of="w"),
            jc.callbacks.GradientAccumulation({0: 1, 2: 2}),
        ],
    )  # fmt: skip
    found = explain(RunFolder(tmp_path / "run"))
    assert set(found.unexplained) == {"GradientAccumulation"}
    assert not found.problems
    decisions = {(e.callback, e.action, e.epoch) for e in found.events}
    assert decisions == {("EarlyStopping", "Stop", 1), ("ReduceLROnPlateau", "ScaleLearningRate", 1)}
    assert any("the learning rate of w 0.1 -> 0.01" in e.text for e in found.events)
    for command in (["explain"], ["compare", tmp_path / "run"], ["report", "-o", tmp_path / "r.html"]):
        assert call(*command, tmp_path / "run").code == 0
