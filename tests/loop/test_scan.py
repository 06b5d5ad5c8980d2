"""`scan`: a run inside someone else's program is the run of `Loop`, row by row."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _compilations import counting
from flax.training import train_state as flax_state
from hypothesis import given, settings

import jaxcb as jc
import jaxcb.testing
from jaxcb._src.training.learning_rate import learning_rates

MOST = 24  # steps of a table


def read_loss(state):
    """A step that trains nothing: its loss is the next number of a table."""
    loss = state.params["table"][state.step]
    return state.replace(step=state.step + 1), {"loss": loss, "height": -loss}


def table_state(table):
    opt_state = jc.adjustable_lr(optax.sgd, learning_rate=0.5).init({})
    return jc.TrainState.create(params={"table": jnp.asarray(table, jnp.float32)}, opt_state=opt_state)


class StopAt(jc.Callback):
    """Stops in a step, and counts the steps."""

    at: int = 1000

    def init(self):
        return jnp.zeros((), jnp.int32)

    def on_batch_end(self, state, metrics):
        return state + 1, jc.actions.Stop(metrics.step >= self.at, "far enough at {step}")


CALLBACKS = [
    jc.EarlyStopping("loss", patience=2, restore_best_weights=True),
    jc.ReduceLROnPlateau("loss", factor=0.5, patience=1),
    jc.TerminateOnNaN(),
    StopAt(17),
    jc.History(),
    jc.SwapEMAWeights(decay=0.5),
]
NUMBERS = st.sampled_from([0.0, 1.0, 2.0, 3.0, -1.0, float("nan"), float("inf")])
TABLES = st.lists(NUMBERS, min_size=MOST, max_size=MOST)
LENGTHS = [(22, 4), (9, 1), (5, None)]
FEW = settings(max_examples=6)


@functools.cache
def compiled(length, steps_per_epoch, parts=()):
    """A run of these steps, in one part or in several."""

    def run(state):
        found, records = state, []
        for part in parts or (length,):
            found = jc.scan(CALLBACKS, read_loss, found, part, steps_per_epoch=steps_per_epoch)
            records.append(found.records)
        return found, records

    return jax.jit(run), jax.jit(jax.vmap(run))


def row(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def same(one, other):
    """Every bit of two trees is equal."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        if jnp.issubdtype(getattr(a, "dtype", int), jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def rows_of(records):
    """The rows of the history among the records of one run."""
    return [
        {name: float(value) if action.fresh[name] else np.nan for name, value in action.values.items()}
        for action in jc.fired(records)
        if isinstance(action, jc.actions.LogHistory)
    ]


@pytest.mark.everyday(1)
@pytest.mark.parametrize(("length", "steps_per_epoch"), LENGTHS)
@FEW
@given(table=TABLES)
def test_it_is_the_run_of_a_loop(length, steps_per_epoch, table):
    ours, _ = compiled(length, steps_per_epoch)[0](table_state(table))
    loop = jc.Loop(read_loss, callbacks=CALLBACKS)
    theirs = loop.run(table_state(table), steps=length, steps_per_epoch=steps_per_epoch, verbose=0)
    same(ours.callback_states, {k: v for k, v in theirs.callback_states.items() if k in ours.callback_states})
    same(ours.state.params, theirs.state.params)
    assert int(ours.step) == int(theirs.state.step)
    assert jc.stop_reasons(ours.records) == theirs.stop_reason
    rows = rows_of(ours.records)
    for name in ("loss", "height", "learning_rate"):
        np.testing.assert_array_equal([r[name] for r in rows], theirs.history[name])


@FEW
@given(table=TABLES)
def test_it_is_a_python_loop(table):
    length, steps_per_epoch = LENGTHS[0]
    chain, (batch_end, epoch_end, train_end) = hooks_by_hand()
    state = table_state(table).with_slots(chain)
    states, epoch, means = chain.init(), 0, {}
    while int(state.step) < length and not state.stop:
        losses = []
        while len(losses) < steps_per_epoch and int(state.step) < length and not state.stop:
            state, values = read_loss(state)
            losses.append(values["loss"])
            state, states = batch_end(state, states, values, epoch)
        with np.errstate(all="ignore"):
            means = {"loss": np.float32(np.mean(np.float64(losses)))}
        state, states = epoch_end(state, states, means, epoch)
        epoch += 1
    state, states = train_end(state, states, means, epoch - 1)
    ours, _ = compiled(length, steps_per_epoch)[0](table_state(table))
    for name in ("StopAt", "EarlyStopping", "ReduceLROnPlateau"):
        same(ours.callback_states[name], states[name])
    assert (int(ours.step), bool(ours.stopped)) == (int(state.step), bool(state.stop))


@functools.cache
def hooks_by_hand():
    """The hooks of a hand-written loop."""
    chain = jc.chain(*(c for c in CALLBACKS if not isinstance(c, jc.SwapEMAWeights)))

    def call(hook, state, states, values, epoch):
        values = {**values, "learning_rate": state.learning_rate.effective()}
        states, actions = getattr(chain, hook)(states, jc.Metrics(values, step=state.step, epoch=epoch))
        return jc.apply(actions, state), states

    hooks = ("on_batch_end", "on_epoch_end", "on_train_end")
    return chain, [jax.jit(functools.partial(call, hook)) for hook in hooks]


@pytest.mark.everyday(1)
@pytest.mark.parametrize(("length", "steps_per_epoch"), LENGTHS)
@FEW
@given(tables=st.lists(TABLES, min_size=3, max_size=3))
def test_a_row_is_a_run_of_it_alone(length, steps_per_epoch, tables):
    single, rows = compiled(length, steps_per_epoch)
    states = [table_state(table) for table in tables]
    together, (records,) = rows(jax.tree.map(lambda *x: jnp.stack(x), *states))
    reasons = jc.stop_reasons(records)
    for index, state in enumerate(states):
        alone, _ = single(state)
        own = row(together, index)
        same(own.replace(records=None), alone.replace(records=None))
        same(jc.fired(own.records), jc.fired(alone.records))
        assert reasons[index] == jc.stop_reasons(alone.records)


@pytest.mark.everyday(1)
@pytest.mark.parametrize(("steps_per_epoch", "parts"), [(4, (8, 14)), (4, (3, 4, 15)), (None, (20, 2))])
@FEW
@given(table=TABLES)
def test_going_on_is_one_long_run(steps_per_epoch, parts, table):
    whole, (records,) = compiled(22, steps_per_epoch)[0](table_state(table))
    ours, several = compiled(22, steps_per_epoch, parts)[0](table_state(table))
    same(ours.callback_states, whole.callback_states)
    same(ours.state, whole.state)
    same(ours.resumable.replace(seq=0), whole.resumable.replace(seq=0))
    assert ours.cursor == whole.cursor
    reasons = [reason for reason in map(jc.stop_reasons, several) if reason is not None]
    assert (reasons or [None]) == [jc.stop_reasons(records)]


@pytest.mark.long
def test_rows_go_on_as_well():
    states = jax.vmap(table_state)(np.random.default_rng(0).integers(0, 5, (4, MOST)))
    callbacks = [jc.EarlyStopping("loss", patience=1), StopAt(12)]

    def run(length):
        return jax.vmap(lambda found: jc.scan(callbacks, read_loss, found, length, steps_per_epoch=4))

    whole, parts = jax.jit(lambda s: (run(22)(s), run(13)(run(9)(s))))(states)
    same(parts.state, whole.state)
    same(parts.callback_states, whole.callback_states)


@pytest.mark.parametrize("axes", [(), (3,), (2, 3)])
def test_what_has_stopped_is_skipped(axes):
    calls = []

    def step(state):
        jax.debug.callback(lambda: calls.append(1))
        return read_loss(state)

    def run(at, state):
        return jc.scan([StopAt(at)], step, state, 20, steps_per_epoch=6)

    ats = jnp.asarray(9 - np.arange(np.prod(axes, dtype=int)).reshape(axes), jnp.int32)
    states = jax.tree.map(lambda x: jnp.broadcast_to(x, (*axes, *x.shape)), table_state(np.arange(MOST)))
    for _ in axes:
        run = jax.vmap(run)
    found = jax.jit(run)(ats, states)
    jax.effects_barrier()
    np.testing.assert_array_equal(found.step, ats)
    assert len(calls) == 9  # all rows run until the last one has stopped


def loss_fn(params, batch):
    assert batch is None
    return sum(jnp.sum((w - 3.0) ** 2) for w in jax.tree.leaves(params))


def descending():
    tx = jc.adjustable_lr(optax.sgd, learning_rate=0.01)
    params = {"backbone": {"w": jnp.ones((2, 2))}, "head": {"bias": jnp.arange(2.0)}, "w": jnp.ones((3, 2))}
    return jc.TrainState.create(params=params, tx=tx)


def with_train_loss(callback):
    """The callback, with a monitor that a run without validation has."""
    monitors = {"val_loss": "loss", "val_accuracy": "loss"}
    return (
        callback.replace(monitor=monitors.get(callback.monitor, callback.monitor))
        if hasattr(callback, "monitor")
        else callback
    )


def runs_in_scan(callback):
    """Whether `scan` takes a callback; otherwise, it refuses it by its name."""
    try:
        jax.eval_shape(lambda s: jc.scan([callback], jc.Step(loss_fn), s, 10, steps_per_epoch=4), descending())
    except (ValueError, jc.errors.MissingMetricError, jc.errors.CallbackError) as error:
        said = " ".join([str(error), *getattr(error, "__notes__", ())])
    else:
        return True
    assert type(callback).__name__ in said
    return False


@pytest.mark.filterwarnings("ignore:jaxcb. the metric .* is measured every 100 steps")
@pytest.mark.filterwarnings("ignore:jaxcb. StochasticWeightAveraging restores its weights:RuntimeWarning")
def test_every_callback_runs_as_in_a_loop_or_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = {type(c): with_train_loss(c) for c in jc.testing.builtin_examples()}  # one of each kind
    found = [c for c in examples.values() if runs_in_scan(c)]
    kinds = {type(callback) for callback in found}
    assert {
        jc.EarlyStopping,
        jc.ReduceLROnPlateau,
        jc.SwapEMAWeights,
        jc.TensorBoard,
        jc.callbacks.NormMonitor,
    } <= kinds
    assert not {jc.ModelCheckpoint, jc.BackupAndRestore, jc.callbacks.MedianStopping} & kinds
    needs_a_service = (
        jc.callbacks.HTMLReport,  # and this one a directory
        jc.callbacks.WandbLogger,
        jc.callbacks.MLflowLogger,
        jc.callbacks.TrackerLogger,
        jc.callbacks.TrackioLogger,
        jc.RemoteMonitor,
    )
    chain = jc.chain(*(c for c in found if not isinstance(c, needs_a_service)))
    ours = jax.jit(lambda s: jc.scan(chain, jc.Step(loss_fn), s, 10, steps_per_epoch=4))(descending())
    loop = jc.Loop(jc.Step(loss_fn), callbacks=chain)
    theirs = loop.run(descending(), steps=10, steps_per_epoch=4, verbose=0, execution=jc.Execution(executor="looped"))
    for name, state in ours.callback_states.items():
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(theirs.callback_states[name]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=name)
    for a, b in zip(jax.tree.leaves(ours.state.params), jax.tree.leaves(theirs.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_allclose(ours.state.learning_rate.applied, theirs.state.learning_rate.applied, rtol=1e-6)
    assert int(ours.step) == int(theirs.state.step)


def test_the_second_run_compiles_nothing_and_each_hook_is_traced_once():
    traces = []

    def on_epoch_end(state, metrics):
        traces.append(1)
        return state + 1, None

    callback = jc.make_callback(init=lambda: jnp.zeros((), jnp.int32), on_epoch_end=on_epoch_end)
    run = jax.jit(lambda s: jc.scan([callback, jc.History()], read_loss, s, 10, steps_per_epoch=3))
    first = run(table_state(np.arange(MOST)))
    assert len(traces) == 1
    assert int(first.callback_states["FunctionCallback"]) == 4
    with counting() as counts:
        run(table_state(np.arange(MOST) + 1))
    assert not counts


def test_numbers_of_callbacks_and_what_a_step_closes_over_may_be_traced():
    def run(callback, scale):
        def step(state):
            state, values = read_loss(state)
            return state, {"loss": scale * values["loss"]}

        return jc.scan([callback], step, table_state(np.arange(MOST)), 12, steps_per_epoch=2)

    patience = jnp.asarray([1, 2, 3])
    early = jc.EarlyStopping("loss")
    found = jax.jit(jax.vmap(lambda own: run(early.replace(patience=own), 2.0)))(patience)
    assert found.step.tolist() == [4, 6, 8]


# Metrics that a step reports at times


def ends_at_times(state):
    """A step whose return is known only where the table is not negative."""
    value = state.params["table"][state.step]
    values = {"return": jc.probes.reported(value, when=value >= 0), "loss": value}
    return state.replace(step=state.step + 1), values


AT_TIMES = [jc.EarlyStopping("return", mode="max", patience=2), jc.History()]
TABLE = [-1, -1, 3, -1, -1, -1, 2, 5, -1, -1, 4, -1, 1, 1, -1, -1, 9, 9, -1, -1]  # epochs of 2


@pytest.mark.parametrize(
    "execution", [jc.Execution(executor="looped", block=0), jc.Execution(block=3), jc.Execution(executor="stepped")]
)
def test_a_metric_that_is_reported_at_times_keeps_its_value_meanwhile(execution):
    state = table_state(TABLE)
    found = jax.jit(lambda s: jc.scan(AT_TIMES, ends_at_times, s, 20, steps_per_epoch=2))(state)
    loop = jc.Loop(ends_at_times, callbacks=AT_TIMES)
    theirs = loop.run(state, steps=20, steps_per_epoch=2, verbose=0, execution=execution)
    expected = [np.nan, 3, np.nan, 3.5, np.nan, 4, 1, np.nan, 9, np.nan]
    np.testing.assert_array_equal([row["return"] for row in rows_of(found.records)], expected)
    for name in ("return", "loss"):
        np.testing.assert_array_equal([row[name] for row in rows_of(found.records)], theirs.history[name])
    same(found.callback_states, {k: v for k, v in theirs.callback_states.items() if k in found.callback_states})
    assert int(found.step) == int(theirs.state.step)
    early = found.callback_states["EarlyStopping"]
    assert int(early.wait) == 0


def test_rows_report_at_their_own_times():
    def run(table):
        return jc.scan(AT_TIMES, ends_at_times, table_state(table), 20, steps_per_epoch=2)

    tables = jnp.asarray([TABLE, TABLE[::-1]])
    together = jax.jit(jax.vmap(run))(tables)
    for index in range(2):
        alone = jax.jit(run)(tables[index])
        same(row(together, index).callback_states, alone.callback_states)
        same(jc.fired(row(together, index).records), jc.fired(alone.records))


# The state of a run


def descend(params, opt_state):
    """One step of gradient descent, with the values of the step."""
    loss, grads = jax.value_and_grad(lambda p: (p - 3.0) ** 2)(params)
    updates, opt_state = TX.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, {"loss": loss}


TX = jc.adjustable_lr(optax.sgd, learning_rate=0.2)
STEERING = [
    jc.ReduceLROnPlateau("loss", patience=1, min_delta=1.0, factor=0.5),
    jc.EarlyStopping("loss", patience=3, min_delta=0.01, restore_best_weights=True),
]


def as_train_state():
    def step(state):
        params, opt_state, values = descend(state.params, state.opt_state)
        return state.replace(params=params, opt_state=opt_state), values

    state = jc.TrainState.create(params=jnp.zeros(()), tx=TX)
    return step, state, lambda state: (state.params, state.opt_state)


def as_flax():
    def step(state):
        params, opt_state, values = descend(state.params, state.opt_state)
        return state.replace(params=params, opt_state=opt_state, step=state.step + 1), values

    state = flax_state.TrainState.create(apply_fn=len, params=jnp.zeros(()), tx=TX)
    return step, state, lambda state: (state.params, state.opt_state)


def as_part(inner):
    """A state as a part of another one, with an environment and a key."""
    step, state, parts = inner()

    def outer(carry):
        state, (count, key) = carry
        state, values = step(state)
        return (state, (count + 1, jax.random.split(key)[0])), values

    return outer, (state, (jnp.zeros((), jnp.int32), jax.random.key(3))), lambda carry: parts(carry[0])


FORMS = [as_train_state, as_flax, functools.partial(as_part, as_train_state), functools.partial(as_part, as_flax)]


@pytest.mark.everyday(2)
@pytest.mark.parametrize("form", FORMS)
def test_callbacks_act_on_a_state_of_any_form(form):
    step, state, parts = form()
    plain_step, plain, plain_parts = as_train_state()
    expected = jax.jit(lambda s: jc.scan(STEERING, plain_step, s, 40, steps_per_epoch=2))(plain)
    found = jax.jit(lambda s: jc.scan(STEERING, step, s, 40, steps_per_epoch=2))(state)
    assert int(found.step) == int(expected.step) < 40
    params, rate = parts(found.state)
    params_expected, rate_expected = plain_parts(expected.state)
    np.testing.assert_array_equal(params, params_expected)
    scales = [float(learning_rates(opt_state)[0].scale) for opt_state in (rate, rate_expected)]
    assert scales[0] == scales[1] < 1.0  # it was cut
    rest = jax.jit(lambda s: jc.scan(STEERING, step, s, 40, steps_per_epoch=2))(found)
    same(rest.state, found.state)


@pytest.mark.parametrize("steps_per_epoch", [None, 3])
def test_a_step_that_sets_the_stop_flag_itself_ends_the_run(steps_per_epoch):
    def step(state):
        state, values = read_loss(state)
        return state.replace(stop=state.step >= 5), values

    found = jax.jit(lambda s: jc.scan(StopAt(), step, s, 12, steps_per_epoch=steps_per_epoch))(
        table_state(np.arange(MOST))
    )
    assert (int(found.step), int(found.callback_states["StopAt"]), bool(found.stopped)) == (5, 5, True)


def test_a_state_without_weights_can_stop():
    def step(state):
        return state - 1, {"left": state}

    stop = jc.make_callback(on_batch_end=lambda s, m: (s, jc.actions.Stop(m["left"] < 8, "enough")))
    found = jax.jit(lambda s: jc.scan(stop, step, s, 10))(jnp.int32(10))
    assert (int(found.state), int(found.step), bool(found.stopped)) == (6, 4, True)
    with pytest.raises(ValueError, match="EarlyStopping keeps copies of weights, but nothing says which part"):
        jc.scan(jc.EarlyStopping("left", mode="min", restore_best_weights=True), step, jnp.int32(10), 5)
    with pytest.raises(ValueError, match="ReduceLROnPlateau: a callback changes the learning rate"):
        jc.scan(jc.ReduceLROnPlateau("left", mode="min"), step, jnp.int32(10), 5)


# What is refused


@pytest.mark.parametrize(
    ("callback", "match"),
    [
        (jc.ModelCheckpoint("{epoch}"), "ModelCheckpoint needs the host in on_epoch_end"),
        (jc.LambdaCallback(on_epoch_end=print), "LambdaCallback needs the host in on_epoch_end"),
        (jc.EarlyStopping(), "EarlyStopping.* there is no metric 'val_loss'"),
        (jc.callbacks.Timer(1.0), "Timer.* there is no metric 'elapsed'"),
        (jc.callbacks.SpikeDetection("loss"), "SpikeDetection needs the gradients before the update"),
        (jc.callbacks.MedianStopping("loss"), "MedianStopping acts on a population"),
    ],
)
def test_a_callback_that_needs_more_is_refused_by_name(callback, match):
    with pytest.raises((ValueError, LookupError, jc.errors.CallbackError), match=match):
        jax.jit(lambda s: jc.scan(callback, read_loss, s, 4))(table_state(np.arange(MOST)))


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"length": 0}, ValueError, "length"),
        ({"length": 2.5}, ValueError, "length"),
        ({"steps_per_epoch": 0}, ValueError, "steps_per_epoch"),
        ({"step": 3}, TypeError, "step must be a function of the state, got a int"),
        ({"callbacks": [3]}, TypeError, "expected a jaxcb callback, got a int"),
        ({"step": lambda s: s}, TypeError, "expected .state, metrics."),
        ({"step": lambda s: (s, {3: s})}, TypeError, "a metric with the name 3, expected a string"),
        ({"step": lambda s: (s, jnp.ones(()))}, TypeError, "expected a dict of names to arrays"),
        ({"step": lambda s: ((s, s), {})}, ValueError, "changed the structure"),
        ({"step": lambda s: (s[None], {})}, ValueError, "shape .1,., expected .. as at the start"),
        ({"step": jc.Step(lambda p, b: 0.0)}, TypeError, "a Step trains a TrainState"),
    ],
)
def test_bad_input(given, error, match):
    arguments = {"callbacks": (), "step": lambda s: (s, {}), "state": jnp.zeros(()), "length": 4} | given
    with pytest.raises(error, match=match):
        jc.scan(**arguments)


def test_another_chain_does_not_go_on():
    found = jc.scan(StopAt(2), lambda s: (s, {}), jnp.zeros(()), 4)
    with pytest.raises(ValueError, match="is one of the callbacks StopAt; got none"):
        jc.scan((), lambda s: (s, {}), found, 4)


# The records


def test_a_recorder_performs_the_records_of_a_row(tmp_path):
    callbacks = [jc.CSVLogger("log.csv"), jc.EarlyStopping("loss", patience=2), jc.ProgressBar(verbose=2)]
    tables = np.stack([np.arange(MOST), -np.arange(MOST)])
    found = jax.jit(jax.vmap(lambda s: jc.scan(callbacks, read_loss, s, 12, steps_per_epoch=2)))(
        jax.vmap(table_state)(tables)
    )
    with jc.Recorder(tmp_path / "all") as recorder, pytest.raises(ValueError, match=r"several runs, .* axes \(2,\)"):
        recorder.perform(found.records)
    for index in range(2):
        loop = jc.Loop(read_loss, callbacks=callbacks)
        whole = loop.run(
            table_state(tables[index]), steps=12, steps_per_epoch=2, verbose=0, run_dir=tmp_path / f"loop{index}"
        )
        with jc.Recorder(tmp_path / f"scan{index}", callbacks=callbacks, verbose=0) as recorder:
            recorder.perform(row(found.records, index))
        ours, theirs = (tmp_path / f"{kind}{index}" / "log.csv" for kind in ("scan", "loop"))
        assert ours.read_text() == theirs.read_text()
        assert recorder.stop_reason == whole.stop_reason


@pytest.mark.parametrize("axes", [(), (2,), (1, 2)])
def test_progress_is_shown_while_the_program_runs(axes, capfd):
    def run(table):
        return jc.scan([jc.ProgressBar(), StopAt(5)], read_loss, table_state(table), 8, steps_per_epoch=2)

    whole = jnp.broadcast_to(jnp.arange(1.0, MOST + 1), (*axes, MOST))
    for _ in axes:
        run = jax.vmap(run)
    run = jax.jit(run)
    for _ in range(2):  # the program is the same
        found = run(whole)
        jax.effects_barrier()
        lines = capfd.readouterr().out.splitlines()
        assert [line[:16] for line in lines] == ["epoch 1 · step 2", "epoch 2 · step 4", "epoch 3 · step 5"]
        if axes:
            assert "2 of 2 alive · best loss 1.5 (member 0)" in lines[0]
    assert not found.records.of(jc.actions.LogProgress)


def test_requests_are_computed_inside(tmp_path):
    board = jc.TensorBoard("tb", histogram_freq=1, write_graph=False)
    found = jax.jit(lambda s: jc.scan(board, jc.Step(loss_fn), s, 6, steps_per_epoch=2))(descending())
    histograms = found.records.of(jc.actions.Histogram)
    assert {np.shape(h.when) for h in histograms} == {(3,)}
    with jc.Recorder(tmp_path, callbacks=board, verbose=0) as recorder:
        recorder.perform(found.records)
    assert list((tmp_path / "tb").rglob("events*"))


@pytest.mark.parametrize("axes", [(), (3,), (2, 3)])
def test_fired_and_stop_reasons_read_stacks_of_any_axes(axes):
    when = np.arange(np.prod(axes, dtype=int)).reshape(axes) % 2 == 0
    actions = (
        jc.actions.Stop(jnp.asarray(when), "at {place}", values={"place": jnp.cumsum(jnp.ones(axes)).reshape(axes)}),
    )
    assert len(jc.fired(actions)) == when.sum()
    places = [float(a.values["place"]) for a in jc.fired(actions) if isinstance(a, jc.actions.Stop)]
    assert places == sorted(places)
    reasons = np.array(jc.stop_reasons(actions), object)
    assert reasons.shape == axes
    np.testing.assert_array_equal(reasons != None, when)  # noqa: E711
    with pytest.raises(ValueError, match="Read the stacks one by one"):
        jc.fired((*actions, jc.actions.Stop(jnp.zeros((5, 5), bool)), jc.actions.Stop(jnp.zeros((4,), bool))))
