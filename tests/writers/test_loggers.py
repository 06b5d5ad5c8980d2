"""Loggers in runs: what reaches them, and what happens where one fails."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loop._runs import fit, make_data, make_driver, make_params, make_state

import jaxcb as jc
from jaxcb._src.writers.history import HistoryWriter
from jaxcb._src.writers.run_handle import Record, Run
from jaxcb._src.writers.scalars import JSONLinesWriter, fresh_floats, json_numbers
from jaxcb.writers import Context

EXECUTORS = ("looped", "stepped")


def lines(path):
    """The objects of a file, read by a parser that takes valid JSON only."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.1), 0.1),
        (np.float32(1e-20), 1e-20),
        (np.float16(0.1), 0.099975586),
        (np.int32(7), 7),
        (np.bool_(True), 1),
        (np.float32(np.nan), "NaN"),
        (np.float32(np.inf), "Infinity"),
        (np.float32(-np.inf), "-Infinity"),
    ],
)
def test_json_holds_the_shortest_number_that_reads_back(value, expected):
    text = json.dumps(json_numbers({"a": value}), allow_nan=False)
    assert text == json.dumps({"a": expected})
    np.testing.assert_array_equal(np.asarray(float(json.loads(text)["a"]), value.dtype), value)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_function_gets_the_fresh_values_of_each_row_of_the_history(executor):
    seen = []
    result = fit(
        executor,
        epochs=None,
        steps=13,
        eval_every=3,
        callbacks=[jc.callbacks.LogTo(lambda step, values: seen.append((step, values)))],
    )
    history = result.history
    assert [step for step, _ in seen] == history.step.tolist() == [3, 5, 6, 9, 10, 12, 13]
    for row, (_, values) in enumerate(seen):
        assert set(values) == {name for name in history if history.reported(name)[row]}
        assert all(type(v) is float for v in values.values())
        assert values == {name: float(history[name][row]) for name in values}


@pytest.mark.parametrize("executor", EXECUTORS)
def test_every_n_steps_a_function_gets_the_steps_own_values(executor):
    seen, losses = [], {}

    def keep(run):
        losses[run.step] = run.logs["loss"]

    watch = jc.make_callback(on_batch_end=lambda s, m: (s, jc.actions.Call(keep, dict(m.values))))
    logger = jc.callbacks.LogTo(lambda step, values: seen.append((step, values)), every=2)
    fit(executor, epochs=2, callbacks=[logger, watch], validation_data=None)
    own = [(step, values["batch_loss"]) for step, values in seen if "batch_loss" in values]
    assert own == [(step, losses[step]) for step in (2, 4, 6, 8, 10)]
    assert [step for step, values in seen if "loss" in values] == [5, 10]


def test_a_log_function_does_not_interrupt_the_run():
    callbacks = jc.chain(jc.callbacks.LogTo(lambda step, values: None, every=1))
    driver = make_driver(callbacks.callbacks, make_state(), epochs=4, steps_per_execution=20)
    driver.train()
    assert driver.device.executor.dispatches <= 5, "20 steps and 4 epochs in one piece, and the edges"


def test_a_functions_service_that_is_down_is_told_once_and_loses_nothing(tmp_path):
    calls = []

    def down_at_first(step, values):
        calls.append(step)
        if len(calls) < 3:
            raise ConnectionRefusedError("nobody there")

    with pytest.warns(RuntimeWarning, match=r"function of LogTo failed at step 5: ConnectionRefusedError") as caught:
        result = fit(
            epochs=4,
            validation_data=None,
            callbacks=[jc.callbacks.LogTo(down_at_first), jc.callbacks.JSONLogger(tmp_path / "a.jsonl")],
        )
    assert len(caught) == 1
    assert calls == [5, 10, 15, 20]
    assert int(result.state.step) == 20
    assert [row["step"] for row in lines(tmp_path / "a.jsonl")] == [5, 10, 15, 20]


def test_a_functions_mistake_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "a.jsonl"
    with pytest.raises(KeyError, match="no_such") as caught:
        fit(
            epochs=4,
            validation_data=None,
            steps_per_execution=20,
            callbacks=[jc.callbacks.LogTo(lambda step, values: values["no_such"]), jc.callbacks.JSONLogger(path)],
        )
    assert "This happened while writing a LogToFunction of LogTo." in caught.value.__notes__
    assert len(lines(path)) == 4, "the others have their records"


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_json_file_reads_back_as_the_run(executor, tmp_path):
    stopping = jc.EarlyStopping("val_loss", patience=1, min_delta=0.5)
    result = fit(
        executor, validation_freq=2, run_dir=tmp_path, callbacks=[jc.callbacks.JSONLogger("log.jsonl"), stopping]
    )
    rows = lines(tmp_path / "log.jsonl")
    history = result.history
    assert [list(row)[:2] for row in rows] == [["epoch", "step"]] * len(history.step)
    for index, row in enumerate(rows):
        assert (row["step"], row["epoch"]) == (history.step[index], history.epoch[index])
        assert set(row) - {"step", "epoch"} == {n for n in history if history.reported(n)[index]}
        for name in set(row) - {"step", "epoch"}:
            assert np.float32(row[name]) == history[name][index]
    replay = jc.replay([stopping], rows)
    assert replay.stopped_epoch == result.stopped_epoch
    assert tmp_path / "log.jsonl" in result.files


def test_a_run_that_diverges_is_valid_json_and_replays(tmp_path):
    path = tmp_path / "log.jsonl"
    stop = jc.make_callback(on_epoch_end=lambda s, m: (s, jc.actions.Stop(jnp.isnan(m["loss"]))))
    result = fit(learning_rate=1e38, epochs=3, validation_data=None, callbacks=[jc.callbacks.JSONLogger(path), stop])
    rows = lines(path)
    assert rows[-1]["loss"] == "NaN"
    assert jc.replay([stop], rows).stopped_epoch == result.stopped_epoch == 0


def test_a_json_file_is_replaced_or_goes_on(tmp_path):
    path = tmp_path / "log.jsonl"

    def write(step, **more):
        context = Context(None, None, 0, None)
        writer = JSONLinesWriter(context)
        action = jc.actions.JSONLine({"größe": np.float32(0.5)}, {"größe": True}, str(path), owner="me", **more)
        writer.prepare(action)
        writer.write(Record(action, "on_epoch_end", step, 0, 0))
        writer.close()
        return path.read_text()

    assert write(1) == '{"epoch": 0, "step": 1, "größe": 0.5}\n'
    assert [json.loads(line)["step"] for line in write(2, append=True).splitlines()] == [1, 2]
    assert [json.loads(line)["step"] for line in write(3).splitlines()] == [3]


def test_a_file_has_one_logger(tmp_path):
    with pytest.raises(ValueError, match="CSVLogger and JSONLogger both write"):
        fit(callbacks=[jc.CSVLogger(tmp_path / "log"), jc.callbacks.JSONLogger(tmp_path / "log")])


def test_members_of_a_population_have_names_of_their_own():
    values = {"loss": np.array([0.5, 0.25, 0.125], np.float32)}
    fresh = {"loss": np.array([True, True, False])}
    action = jc.actions.LogToFunction(values, fresh, print, when=np.array([True, False, True]))
    assert fresh_floats(action) == {"loss/0": 0.5}


def test_a_population_logs_each_member():
    seen = []
    seeds = (0, 1)
    state = jax.tree.map(lambda *x: jnp.stack(x), *(make_state(seed) for seed in seeds))
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    logger = jc.callbacks.LogTo(lambda step, values: seen.append((step, values)))
    driver = make_driver([logger], state, members=2, keys=keys, epochs=2)
    driver.train()
    history = driver.writer(HistoryWriter).history
    assert [step for step, _ in seen] == [5, 10]
    for row, (_, values) in enumerate(seen):
        assert [values["val_loss/0"], values["val_loss/1"]] == history["val_loss"][row].tolist()


def test_a_trial_run_tells_no_service(tmp_path):
    seen = []
    context = Context(tmp_path, Run(tmp_path), 0, None, trial=True)
    for callback in (
        jc.callbacks.LogTo(lambda *args: seen.append(args)),
        jc.RemoteMonitor("http://127.0.0.1:1", timeout=0.1),
    ):
        _, (action,) = jc.chain(callback).on_epoch_end(
            {type(callback).__name__: ()}, jc.Metrics({"loss": jnp.float32(0.5)})
        )
        writer = jc.writers.writer_for(type(action))(context)
        writer.prepare(action)
        writer.write(Record(jax.device_get(action), "on_epoch_end", 1, 0, 0))
        writer.close()  # would warn of a server that is down
    assert not seen


def test_loggers_change_no_result(tmp_path):
    data = {"data": make_data(), "model": make_params(), "epochs": 3}
    alone = fit(callbacks=[], **data)
    logged = fit(
        callbacks=[
            jc.callbacks.LogTo(lambda step, values: None, every=1),
            jc.callbacks.JSONLogger(tmp_path / "a.jsonl", every=2),
        ],
        **data,
    )
    np.testing.assert_allclose(logged.history["val_loss"], alone.history["val_loss"], rtol=1e-6)
