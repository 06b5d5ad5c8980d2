"""SpikeDetection: what is a spike, what it costs, and where the weights end."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcb as jc

NAN, INF = float("nan"), float("inf")
EXECUTORS = ["looped", "stepped"]


@pytest.fixture(autouse=True)
def _strict():
    """Not here: optax promotes dtypes. The laws look at the callback's own arithmetic."""


def detect(callback, losses):
    """Runs step by step: which ones were spikes, and the state after them."""
    chain = jc.chain(callback)
    run, state, skipped = jax.jit(chain.on_before_update), chain.init(), []
    for step, loss in enumerate(losses):
        state, actions = run(state, jc.Metrics({"loss": loss}, step=step))
        skipped.append(any(isinstance(a, jc.actions.SkipUpdate) for a in jc.fired(actions)))
    return skipped, state[chain.names[0]]


# What is a spike


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_is_not_finite_is_a_spike_from_the_first_step_on(bad):
    assert detect(jc.callbacks.SpikeDetection(), [bad, 1.0, bad, bad])[0] == [True, False, True, True]


def test_nothing_else_is_one_before_the_warmup_is_over():
    losses = [1.0, 1.5, 100.0, 1000.0, 1e9]
    assert detect(jc.callbacks.SpikeDetection(warmup=4, factor=1.0), losses)[0] == [False] * 4 + [True]
    assert (
        detect(jc.callbacks.SpikeDetection(window=6, factor=1.0), losses)[0] == [False] * 3 + [True] * 2
    )  # half the window


def test_the_limit_is_factor_deviations_above_the_mean():
    losses = [1.0, 3.0, 1.0, 3.0]  # mean 2, deviation 1
    for value, spike in ((4.9, False), (5.1, True), (-100.0, False)):
        assert detect(jc.callbacks.SpikeDetection(factor=3.0, warmup=4), [*losses, value])[0][-1] is spike


def test_a_constant_loss_does_not_spike():
    assert not any(detect(jc.callbacks.SpikeDetection(warmup=1), [0.1] * 20)[0])


@hypothesis.given(st.lists(st.one_of(st.sampled_from([NAN, INF, 3e38, -3e38, 1e20]), st.floats(width=32)), max_size=12))
@hypothesis.settings(max_examples=10)
def test_the_moments_stay_finite_whatever_comes(losses):
    _, state = detect(jc.callbacks.SpikeDetection(warmup=3, window=5), losses)
    assert np.isfinite(state.mean)
    assert np.isfinite(state.variance)
    assert state.variance >= 0
    assert int(state.accepted) + int(state.skipped) == len(losses)


@hypothesis.given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12), st.integers(2, 20))
@hypothesis.settings(max_examples=10)
def test_the_moments_are_those_of_the_accepted_values(losses, window):
    """Against float64: equal weights until 2 / (window + 1) is larger than 1 / n, then exponential ones."""
    skipped, state = detect(jc.callbacks.SpikeDetection(factor=2.0, warmup=3, window=window), losses)
    mean = square = 0.0
    accepted = [x for x, skip in zip(losses, skipped, strict=True) if not skip]
    for n, x in enumerate(accepted, 1):
        weight = max(2 / (window + 1), 1 / n)
        mean, square = (1 - weight) * mean + weight * x, (1 - weight) * square + weight * x * x
    np.testing.assert_allclose(state.mean, mean, atol=1e-3)
    np.testing.assert_allclose(state.variance, square - mean**2, atol=0.1)
    if 2 / (window + 1) <= 1 / len(accepted):
        np.testing.assert_allclose(state.variance, np.var(accepted), atol=0.1)


def test_an_accepted_value_ends_a_row_of_spikes_and_a_missing_one_does_not():
    chain = jc.chain(jc.callbacks.SpikeDetection())
    state, seen = chain.init(), []
    for step, loss in enumerate([1.0, NAN, None, NAN, 1.0, NAN]):
        reported = {"loss": 2 if loss is None else step + 1}
        metrics = jc.Metrics({"loss": NAN if loss is None else loss}, step=step + 1, reported=reported)
        state, _ = chain.on_before_update(state, metrics)
        seen.append(int(state["SpikeDetection"].spikes))
    assert seen == [0, 1, 1, 2, 0, 1]
    assert int(state["SpikeDetection"].skipped) == 3


def test_a_function_of_the_metrics_is_a_monitor():
    ratio = jc.callbacks.SpikeDetection(lambda m: m["a"] / m["b"], warmup=1)
    _, actions = ratio.on_before_update(ratio.init(), jc.Metrics({"a": 1.0, "b": 0.0}))
    assert bool(actions[0].when)


# Where the weights end

STEPS, BAD = 12, 7  # of one batch each; the bad one, from 0
X = np.random.default_rng(0).normal(size=(STEPS, 4)).astype(np.float32)
TX = jc.adjustable_lr(optax.adam, learning_rate=0.05)


def loss_fn(params, batch, key):
    """A regression under noise. `push` changes gradients and not the loss: a batch that spoils weights unseen."""
    x, push = batch[..., :4], batch[..., 4:]
    noise = 0.1 * jax.random.normal(key, ())
    hidden = params["w"] - jax.lax.stop_gradient(params["w"])
    return jnp.mean((x @ params["w"] - 1.0 + noise) ** 2) + jnp.sum(push * hidden[None])


def data(bad=0.0, push=0.0):
    rows = np.concatenate([X, np.zeros((STEPS, 4), np.float32)], axis=1)
    rows[BAD, :4] += bad
    rows[BAD, 4:] = push
    return rows


def make_state():
    return jc.TrainState.create(params={"w": jnp.zeros(4)}, tx=TX, seed=3)


def without(rows, *steps):
    """A loop by hand that leaves out the updates of some steps: step and rng advance, nothing else."""
    state, step = make_state(), jax.jit(jc.Step(loss_fn))
    for index in range(STEPS):
        new, _ = step(state, rows[index : index + 1])
        state = state.replace(step=new.step) if index in steps else new
    return state


def run(callback, rows, executor="looped", **more):
    loop = jc.Loop(jc.Step(loss_fn), callbacks=[callback])
    given = {
        "epochs": 1,
        "batch_size": 1,
        "shuffle": False,
        "verbose": 0,
        "execution": jc.Execution(executor=executor),
    } | more
    return loop.run(make_state(), rows, **given)


def assert_ends_as(result, expected):
    np.testing.assert_allclose(result.params["w"], expected.params["w"], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(result.state.opt_state), jax.tree.leaves(expected.opt_state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert int(result.state.step) == int(expected.step)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("bad", [1e3, NAN])
@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_a_bad_batch_ends_where_a_run_without_its_update_ends(executor, bad, action):
    """Whatever the copies' cadence: a single spike is the batch's fault."""
    rows = data(bad)
    result = run(jc.callbacks.SpikeDetection(action=action, warmup=3, snapshot_every=3), rows, executor)
    assert_ends_as(result, without(rows, BAD))
    assert int(result.state.step) == STEPS
    assert int(result.callback_states["SpikeDetection"].skipped) == 1


def test_the_bad_batch_would_have_mattered():
    assert not np.allclose(without(data(1e3)).params["w"], without(data(1e3), BAD).params["w"], rtol=0.1)


# a step of sgd that throws the weights far away
SPOILED = data(push=-1e5)


@pytest.fixture
def sgd(monkeypatch):
    """adam bounds what one gradient can do; sgd does not."""
    monkeypatch.setitem(globals(), "TX", jc.adjustable_lr(optax.sgd, learning_rate=0.05))


@pytest.mark.usefixtures("sgd")
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("patience", [1, 2])
def test_weights_that_a_batch_spoiled_unseen_are_rolled_back(executor, patience):
    """The loss of the bad batch is an ordinary one: it vouches for the weights before its update, not after it."""
    callback = jc.callbacks.SpikeDetection(action="rollback", warmup=3, snapshot_every=1, patience=patience)
    result = run(callback, SPOILED, executor)
    lost = range(BAD, BAD + 1 + patience)  # the bad update, and those that were computed with spoiled weights
    assert_ends_as(result, without(SPOILED, *lost))
    assert int(result.callback_states["SpikeDetection"].skipped) == patience


@pytest.mark.usefixtures("sgd")
def test_a_copy_that_is_older_loses_the_updates_since():
    result = run(jc.callbacks.SpikeDetection(action="rollback", warmup=3, snapshot_every=4), SPOILED)
    assert_ends_as(result, without(SPOILED, *range(4, BAD + 3)))  # copies at steps 0, 4 and 8


@pytest.mark.usefixtures("sgd")
def test_weights_whose_loss_is_no_number_are_rolled_back():
    rows = data(push=1e38)
    callback = jc.callbacks.SpikeDetection(action="rollback", snapshot_every=1)
    assert_ends_as(run(callback, rows), without(rows, BAD, BAD + 1, BAD + 2))


@pytest.mark.usefixtures("sgd")
def test_what_callbacks_asked_of_the_rate_survives_a_roll_back():
    halve = jc.make_callback(on_batch_end=lambda s, m: (s, jc.actions.ScaleLearningRate(0.5, when=m.step == BAD)))
    spike = jc.callbacks.SpikeDetection(action="rollback", warmup=3, snapshot_every=1)
    result = run(jc.chain(halve, spike), SPOILED)
    assert int(result.callback_states["SpikeDetection"].skipped) == 2
    assert float(result.state.learning_rate.effective()) == np.float32(0.025)


@pytest.mark.usefixtures("sgd")
@pytest.mark.parametrize("executor", EXECUTORS)
def test_spikes_that_go_on_stop_the_run_with_a_reason(executor):
    result = run(jc.callbacks.SpikeDetection(warmup=3, max_skips=3), SPOILED, executor)
    assert int(result.state.step) == BAD + 4  # the bad batch itself was accepted
    assert result.stop_reason.startswith("SpikeDetection: loss has spiked 3 times in a row; it is ")


def test_nothing_to_roll_back_to_is_no_harm():
    rows = data()
    rows[:3, :4] = NAN
    callback = jc.callbacks.SpikeDetection(action="rollback", verbose=0)
    assert_ends_as(run(callback, rows), without(rows, 0, 1, 2))


def test_without_rollback_it_keeps_no_weights():
    assert jc.callbacks.SpikeDetection().slots() == {}
    assert jc.callbacks.SpikeDetection(action="rollback").slots() == {"good": "optimizer"}


def test_it_needs_the_gradients():
    def opaque(state, batch):
        return state, {"loss": jnp.mean(batch)}

    with pytest.raises(ValueError, match=r"SpikeDetection .*needs the gradients before the update"):
        jc.Loop(opaque, callbacks=[jc.callbacks.SpikeDetection()]).run(make_state(), data(), epochs=1, verbose=0)


def test_prints_its_lines(play):
    callback = jc.callbacks.SpikeDetection(action="rollback", verbose=1)
    played = play(callback, hook="on_before_update", loss=[1.0, NAN, NAN, NAN])
    lines = [
        [jc.actions.fill(a, step=i + 1) for a in actions if isinstance(a, jc.actions.Print)]
        for i, actions in enumerate(played.actions)
    ]
    spike = "Step {}: loss spikes at nan (mean 1), the update is dropped"
    back = "Step 3: 2 spikes of loss in a row, back to the last good weights"
    assert lines == [[], [spike.format(2)], [spike.format(3), back], [spike.format(4)]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"factor": -1.0}, "SpikeDetection: factor must be a finite number of at least 0.0, got -1.0"),
        ({"window": 1}, "window must be a whole number of at least 2, got 1"),
        ({"action": "undo"}, "action must be one of 'skip', 'rollback', got 'undo'"),
        ({"snapshot_every": 0}, "snapshot_every must be a whole number of at least 1, got 0"),
        ({"patience": 0}, "patience must be a whole number of at least 1, got 0"),
        ({"max_skips": 0}, "max_skips must be a whole number of at least 1, got 0"),
        ({"warmup": -1}, "warmup must be a whole number of at least 0, got -1"),
    ],
)
def test_arguments_are_checked(arguments, says):
    with pytest.raises(ValueError, match=says):
        jc.callbacks.SpikeDetection(**arguments)
