"""What a run does between its begin and its end, counted: what travels, what waits, and what grows."""

import collections
import gc
import math
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from loop._runs import control, loss_fn, make_data, make_driver, make_state

import jaxcb as jc
from jaxcb._src.history.history import RunHistory

STEPS = 4  # of an epoch


def callbacks(tmp_path):
    return [
        *control()[1:],
        jc.EarlyStopping(patience=10_000, restore_best_weights=True),
        jc.CSVLogger(str(tmp_path / "log.csv")),
        jc.TensorBoard(str(tmp_path / "events")),
        jc.History(),
    ]


def driver_of(own, **changes):
    given = {"epochs": 12, "data": make_data(16 * STEPS), "steps_per_execution": STEPS} | changes
    return make_driver(own, make_state(), **given)


@pytest.fixture
def watched(monkeypatch):
    """Returns a function that makes a driver note what it dispatches and reads, in order."""

    def watch(driver):
        events, outputs, execute, read = [], [], driver.device.executor.execute, driver.results.read

        def noted_execute(live, inputs, *rest):
            live, output = execute(live, inputs, *rest)
            events.append(("dispatch", len(outputs)))
            outputs.append((inputs, output))
            return live, output

        def noted_read(output, host):
            number = next((i for i, (_, own) in enumerate(outputs) if own is output), None)
            events.append(("read", number))
            return read(output, host)

        monkeypatch.setattr(driver.device.executor, "execute", noted_execute)
        monkeypatch.setattr(driver.results, "read", noted_read)
        return events, outputs

    return watch


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_the_next_stretch_is_dispatched_before_the_last_one_is_read(executor, watched, tmp_path):
    """So the device never waits for the host: it finds its next work before anybody looks at the last."""
    driver = driver_of(callbacks(tmp_path), executor=executor)
    events, outputs = watched(driver)
    driver.train()
    when = {event: place for place, event in enumerate(events)}
    reads = [number for what, number in events if what == "read" and number is not None]
    assert reads == list(range(len(outputs)))  # each one once, in order
    assert len(outputs) >= 12
    for number in range(len(outputs) - 1):
        assert when["dispatch", number + 1] < when["read", number]


def test_a_steady_epoch_pulls_the_outputs_of_its_stretch_and_nothing_else(watched, monkeypatch, tmp_path):
    """Counted in any backend; where arrays are elsewhere than the host, jax's own guard watches as well."""
    pulled, strays, inside = [], [], []
    array, get = type(jax.numpy.zeros(())), jax.device_get
    value = array._value  # pyright: ignore[reportAttributeAccessIssue]

    def noted_get(tree):
        pulled.append({id(leaf) for leaf in jax.tree.leaves(tree)})
        inside.append(1)
        try:
            return get(tree)
        finally:
            inside.pop()

    def noted_value(self):
        if not inside:
            strays.append(self.shape)
        return value.fget(self)

    driver = driver_of(callbacks(tmp_path))
    _, outputs = watched(driver)
    monkeypatch.setattr(jax, "device_get", noted_get)
    monkeypatch.setattr(array, "_value", property(noted_value))
    with jax.transfer_guard_device_to_host("disallow"):  # what is asked for by name is allowed
        driver.train()
    assert strays == []
    own = [{id(leaf) for leaf in jax.tree.leaves((output.rings, output.status))} for _, output in outputs]
    assert [p for p in pulled if p in own] == own  # once each
    assert len(pulled) == len(own) + 2  # and those of the run's begin and end


def test_a_dispatch_is_sent_one_vector_of_numbers(watched, tmp_path):
    driver = driver_of(callbacks(tmp_path))
    _, outputs = watched(driver)
    driver.train()
    first = outputs[0][0]
    kept = {id(leaf) for leaf in jax.tree.leaves((first.settings, first.data, first.val, first.key))}
    for inputs, _ in outputs:
        sent = [leaf for leaf in jax.tree.leaves(inputs) if id(leaf) not in kept]
        assert [(type(leaf), leaf.ndim) for leaf in sent] == [(np.ndarray, 1)]
        assert sent[0].nbytes <= 256


@pytest.mark.long
def test_nothing_grows_with_the_run_but_its_history(monkeypatch, tmp_path):
    monkeypatch.setattr(RunHistory, "add", lambda *_: None)
    monkeypatch.setattr(
        "jaxcb._src.writers.history.HistoryWriter.write", lambda *_: None
    )  # what it would keep is what grows by its nature
    monkeypatch.setattr(
        "jaxcb._src.writers.tensorboard.event_file._SYNC", 0.0
    )  # nor what waits for the disk, up to a bound
    sizes, arrays = [], []

    def weigh(run):
        gc.collect()
        sizes.append(tracemalloc.get_traced_memory()[0])
        arrays.append(len(jax.live_arrays()))

    weighing = jc.make_callback(
        init=tuple,
        on_epoch_end=lambda state, metrics: (state, jc.actions.Call(weigh, when=metrics.epoch % 50 == 49)),
        name="weighing",
    )
    tracemalloc.start()
    try:
        driver_of([*callbacks(tmp_path), weighing], epochs=300).train()
    finally:
        tracemalloc.stop()
    assert len(sizes) == 6
    assert len(set(arrays[1:])) == 1, arrays
    assert sizes[-1] - sizes[1] < 100 * 200, sizes  # bytes over 200 epochs; one record is more than 100


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_an_epoch_costs_the_host_as_many_calls_late_in_a_run_as_early(executor, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "jaxcb._src.writers.tensorboard.event_file._SYNC", math.inf
    )  # what is shown now and then, by the clock
    counts, calls = collections.Counter(), []

    def count(frame, event, argument):
        counts[event] += event in ("call", "c_call")

    def note(run):
        calls.append(counts["call"] + counts["c_call"])

    noting = jc.make_callback(
        init=tuple,
        on_epoch_end=lambda state, metrics: (state, jc.actions.Call(note, when=metrics.epoch % 20 == 19)),
        name="noting",
    )
    driver = driver_of([*callbacks(tmp_path), noting], executor=executor, epochs=200)
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        driver.train()
    finally:
        sys.setprofile(before)
    windows = np.diff(calls)
    assert len(windows) == 9
    assert windows[1:].max() <= 1.05 * windows[1:].min(), windows


def test_weights_that_nobody_else_holds_are_held_once():
    shape, counts = (37, 1), []

    def count(epoch, logs):
        gc.collect()
        counts.append(sum(array.shape == shape for array in jax.live_arrays()))

    jc.fit(
        {"w": jnp.ones(shape)},
        squares,
        np.ones((8, 37), np.float32),
        optimizer=optax.adam,
        learning_rate=0.1,
        epochs=2,
        callbacks=[jc.LambdaCallback(on_epoch_end=count)],
        verbose=0,
    )
    assert counts == [3, 3]  # the weights, and Adam's two means


def test_weights_that_somebody_holds_stay_as_they_are():
    params = {"w": jnp.ones((5, 1))}
    for _ in range(2):
        jc.fit(params, squares, np.ones((8, 5), np.float32), optimizer=optax.sgd(0.1), epochs=1, verbose=0)
    assert params["w"].tolist() == [[1.0]] * 5


def squares(params, batch):
    return ((batch @ params["w"]) ** 2).mean()


def test_what_no_step_can_change_is_not_asked_at_every_step():
    def may_stop(own, **changes):
        return driver_of(own, **changes).device.executor.program.steps_may_stop

    def own_step(state, batch):
        return jc.Step(loss_fn)(state, batch)

    assert not may_stop([jc.EarlyStopping(), jc.CSVLogger("log.csv"), jc.ReduceLROnPlateau()])
    assert may_stop([jc.TerminateOnNaN()])
    assert may_stop([], step=own_step)  # it may set state.stop


@pytest.mark.parametrize("at_steps", [False, True])
def test_a_step_makes_the_arrays_that_it_changes_and_no_others(at_steps, monkeypatch, tmp_path):
    """Each array that a dispatch makes costs as much as a small kernel; what stays is neither donated nor made anew."""
    counting = jc.make_callback(
        init=lambda: jnp.zeros((), jnp.int32),
        on_batch_end=lambda seen, _: (seen + 1, jc.actions.Print("{seen}", values={"seen": seen}, when=seen < 0)),
        name="counting",
    )
    quiet = callbacks(tmp_path)[len(control()) - 1 :]  # the others act at steps
    driver = driver_of([*quiet, *([counting] if at_steps else [])], executor="stepped")
    step, changed = driver.device.executor._step, []  # pyright: ignore[reportAttributeAccessIssue]

    def noted(live, inputs, rings):
        new, rings, halted = step(live, inputs, rings)
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(live.shapes())]
        named = zip(("numbers", *live.form.split(paths)[1]), live.leaves, new.leaves, strict=True)
        changed.append({name for name, before, after in named if before is not after})
        assert bool(rings) == at_steps
        assert not any(x.is_deleted() for x in new.leaves)
        return new, rings, halted

    monkeypatch.setattr(noted, "prepare", step.prepare, raising=False)
    monkeypatch.setattr(driver.device.executor, "_step", noted)
    driver.train()
    paths = set().union(*changed)
    assert len(changed) == 12 * STEPS
    for needed in (".train.params", ".train.opt_state", ".windows"):
        assert any(p.startswith(needed) for p in paths)
    assert ("numbers" in paths) == at_steps  # the state of `counting` is one
    assert not [p for p in paths if p.startswith((".callbacks", ".latest", ".train.weights", ".train.stop", ".order"))]


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_a_smaller_batch_may_change_what_the_others_leave_alone(executor):
    def step(state, batch):
        tails = state.model_state["tails"] + (1 if batch.shape[0] < 4 else 0)
        return state.replace(model_state={"tails": tails}) if batch.shape[0] < 4 else state, {"loss": batch.mean()}

    data = [np.ones((rows, 1), np.float32) for rows in (4, 4, 2)]
    state = jc.TrainState.create(params={"w": jnp.zeros(())}, model_state={"tails": jnp.zeros((), jnp.int32)})
    result = jc.Loop(step).run(state, data, epochs=5, verbose=0, execution=jc.Execution(executor=executor))
    assert int(result.state.model_state["tails"]) == 5
