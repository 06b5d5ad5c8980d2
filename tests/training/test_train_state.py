"""TrainState, and what control actions do to it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxcb as jc

pytestmark = pytest.mark.usefixtures("strict_dtypes")

TX = jc.adjustable_lr(optax.sgd, learning_rate=0.5)


class Owner(jc.Callback):
    """Asks for named weights of each kind."""

    def slots(self):
        return {"params": "params", "model": "model", "optimizer": "optimizer"}


def create(**kwargs):
    params = {"w": jnp.arange(3.0), "n": jnp.int32(4)}
    model_state = {"mean": jnp.ones(2)}
    return jc.TrainState.create(
        params=params, tx=optax.trace(0.9), model_state=model_state, callbacks=jc.chain(Owner(name="o")), **kwargs
    )


def moved(state, by=1.0):
    """The state after some training."""
    return state.replace(
        params={"w": state.params["w"] + by, "n": state.params["n"] + 1},
        model_state={"mean": state.model_state["mean"] * 2},
        opt_state=jax.tree.map(lambda x: x + 1, state.opt_state),
    )


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert jnp.array_equal(x, y)


# What it is


def test_every_leaf_is_strongly_typed():
    state = jc.TrainState.create(
        params={"w": 1.0}, tx=TX, controls={"beta": 1}, rngs=jax.random.key(1), seed=jax.random.key(3)
    )
    leaves = [x for x in jax.tree.leaves(state) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
    assert not any(x.weak_type for x in leaves)
    assert state.controls["beta"].dtype == jnp.float32
    assert (state.step.dtype, state.stop.dtype) == (jnp.int32, bool)


def test_what_is_written_into_an_array_of_the_host_afterwards_changes_nothing():
    seed = jax.random.key(0)
    host = np.zeros(1 << 24, np.float32)  # large, so that a copy in the background would take a while
    state = jc.TrainState.create(params={"w": host}, seed=seed)
    host[:] = 1.0
    assert not np.any(state.params["w"])


def test_the_step_key_is_a_function_of_seed_and_step():
    state = create(seed=3)
    assert state.step_key() == create(seed=3).step_key()
    assert state.step_key() != state.replace(step=state.step + 1).step_key()
    assert state.step_key() != create(seed=4).step_key()


def test_gradients_need_an_optimizer():
    with pytest.raises(ValueError, match="made without tx="):
        jc.TrainState.create(params={}).apply_gradients({})


def test_unknown_kinds_of_named_weights_are_refused():
    class Wrong(jc.Callback):
        def slots(self):
            return {"best": "weights"}

    with pytest.raises(
        ValueError, match="named weights 'Wrong/best' are copies of 'weights', expected one of params, model, optimizer"
    ):
        jc.TrainState.create(params={}, callbacks=jc.chain(Wrong()))


# Stop and controls


def test_any_stop_stops_and_it_stays():
    state = create()
    assert not jc.apply(jc.actions.Stop(False), state).stop
    state = jc.apply((jc.actions.Stop(False), jc.actions.Stop(True)), state)
    assert jc.apply(jc.actions.Stop(False), state).stop


def test_controls_are_set_where_when_holds():
    state = jc.TrainState.create(params={}, controls={"a": 1.0, "b": 2.0})
    state = jc.apply(
        (jc.actions.SetControl("a", 5), jc.actions.SetControl("b", 5, when=False), jc.actions.SetControl("a", 6)), state
    )
    assert {k: float(v) for k, v in state.controls.items()} == {"a": 6.0, "b": 2.0}
    assert state.controls["a"].dtype == jnp.float32


def test_an_undeclared_control_is_refused():
    state = jc.TrainState.create(params={}, controls={"beta": 1.0})
    with pytest.raises(ValueError, match=r"'bta', which was not declared. Controls: beta. Did you mean 'beta'\?"):
        jc.apply(jc.actions.SetControl("bta", 1.0), state)


def test_other_actions_pass_by():
    state = create()
    assert_same(jc.apply((jc.actions.Print(text="x"), jc.actions.Call(print), None), state), state)


# Named weights


@pytest.mark.parametrize("slot", ["params", "model", "optimizer"])
def test_snapshot_then_restore_gives_back_what_was(slot):
    start = create()
    late = moved(jc.apply(jc.actions.Snapshot(slot, owner="o"), start))
    back = jc.apply(jc.actions.Restore(slot, owner="o"), late)
    parts = {
        "params": ["params"],
        "model": ["params", "model_state"],
        "optimizer": ["params", "model_state", "opt_state"],
    }
    for part in ("params", "model_state", "opt_state"):
        assert_same(getattr(back, part), getattr(start if part in parts[slot] else late, part))


@pytest.mark.parametrize("action", [jc.actions.Restore, jc.actions.Swap])
def test_what_was_never_filled_is_not_restored(action):
    state = create()
    assert_same(jc.apply(action("model", owner="o"), state), state)


def test_swap_twice_changes_nothing():
    state = moved(jc.apply(jc.actions.Snapshot("model", owner="o"), create()))
    once = jc.apply(jc.actions.Swap("model", owner="o"), state)
    assert_same(once.params, create().params)
    assert_same(once.weights["o/model"].value["params"], state.params)
    assert_same(jc.apply(jc.actions.Swap("model", owner="o"), once), state)


def test_average_copies_first_then_moves_and_keeps_integers():
    state = jc.apply(jc.actions.Average("params", owner="o", decay=0.75), create())
    assert_same(state.weights["o/params"].value["params"], state.params)
    state = jc.apply(jc.actions.Average("params", owner="o", decay=0.75), moved(state, by=4.0))
    np.testing.assert_allclose(state.weights["o/params"].value["params"]["w"], jnp.arange(3.0) + 1.0)
    assert int(state.weights["o/params"].value["params"]["n"]) == 5


def test_average_keeps_a_small_dtype():
    state = jc.TrainState.create(
        params={"w": jnp.ones(2, jnp.bfloat16)}, callbacks=jc.chain(Owner(name="o")), tx=optax.identity()
    )
    for _ in range(2):
        state = jc.apply(jc.actions.Average("params", owner="o", decay=0.5), state)
    assert state.weights["o/params"].value["params"]["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize("decay", [0.1, 0.5, 1 / 3, 2 / 3, 0.75, 0.9, 0.99, 0.999])
def test_the_average_of_weights_that_stay_is_these_weights(decay):
    weights = np.random.default_rng(0).lognormal(sigma=20.0, size=1000).astype(np.float32)
    weights[:3] = np.inf, -np.inf, 0.1
    state = jc.TrainState.create(
        params={"w": jnp.asarray(weights)}, callbacks=jc.chain(Owner(name="o")), tx=optax.identity()
    )
    average = jax.jit(lambda state: jc.apply(jc.actions.Average("params", owner="o", decay=decay), state))
    for _ in range(5):
        state = average(state)
    np.testing.assert_array_equal(state.weights["o/params"].value["params"]["w"], weights)


def test_weight_actions_apply_in_order():
    start = create()
    late = moved(jc.apply(jc.actions.Snapshot("model", owner="o"), start))
    state = jc.apply((jc.actions.Snapshot("model", owner="o"), jc.actions.Restore("model", owner="o")), late)
    assert_same(state.params, late.params)


def test_unknown_named_weights_are_refused():
    with pytest.raises(
        ValueError, match=r"'EarlyStopping/best', which do not exist \(there are: o/model, .*pass callbacks="
    ):
        jc.apply(jc.actions.Snapshot("best", owner="EarlyStopping"), create())


def test_a_snapshot_is_a_copy():
    state = jc.apply(jc.actions.Snapshot("model", owner="o"), create())
    train = jax.jit(lambda s: s.replace(params=jax.tree.map(lambda x: x * 0, s.params)), donate_argnums=0)
    kept = np.asarray(state.weights["o/model"].value["params"]["w"])
    assert (
        state.weights["o/model"].value["params"]["w"].unsafe_buffer_pointer()
        != state.params["w"].unsafe_buffer_pointer()
    )
    np.testing.assert_array_equal(train(state).weights["o/model"].value["params"]["w"], kept)


# A population: a leading member axis


def rich(x):
    """A state that has everything, which differs by `x`."""
    state = jc.TrainState.create(
        params={"w": jnp.arange(4.0).reshape(2, 2) + x},
        tx=jc.adjustable_lr(optax.sgd, learning_rate=optax.linear_schedule(1.0, 0.5, 10)),
        model_state={"mean": x},
        controls={"beta": x},
        callbacks=jc.chain(Owner(name="o")),
    )
    filled = jc.apply(jc.actions.Snapshot("model", owner="o", when=x > 1), state)
    return filled.replace(params={"w": filled.params["w"] * 3})


def wishes(when, x):
    """An action of every kind; `when` has one entry for each."""
    return (
        jc.actions.SetControl("beta", x, when=when[0]),
        jc.actions.ScaleLearningRate(x, when=when[1]),
        jc.actions.ScaleLearningRate(jnp.float32(0.01), floor=jnp.float32(0.2), when=when[2]),
        jc.actions.SetLearningRate(x, when=when[3]),
        jc.actions.Average("model", owner="o", when=when[4], decay=jnp.float32(0.25)),
        jc.actions.Swap("model", owner="o", when=when[5]),
        jc.actions.Snapshot("optimizer", owner="o", when=when[6]),
        jc.actions.Restore("model", owner="o", when=when[7]),
        jc.actions.Stop(when[8]),
    )


@jax.jit
def apply_together(when, x):
    return jc.apply(jax.vmap(wishes)(when, x), jax.vmap(rich)(x))


@jax.jit
def apply_alone(when, x):
    return jc.apply(wishes(when, x), rich(x))


@given(st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=3, max_size=3))
def test_apply_on_members_equals_apply_on_each(when):
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules
        when, x = jnp.array(when), jnp.arange(1.0, 4.0)
        together = apply_together(when, x)
        for i in range(3):
            for a, b in zip(jax.tree.leaves(apply_alone(when[i], x[i])), jax.tree.leaves(together), strict=True):
                if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
                    np.testing.assert_allclose(a, b[i], rtol=1e-6)
