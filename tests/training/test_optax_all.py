"""Every transformation of optax trains as in a loop by hand that calls it with what it asks for."""

import functools
from pathlib import Path

import jax
import numpy as np
import optax
import optax.contrib
import pytest
from training._optax_all import PER_ROW, SPECIAL, WITHIN, X, Y, all_cases, build, loss_fn, start, transformations

import jaxcb as jc

CASES = all_cases()
STEPS = 3


def each_row(state, batch):
    """Loss, and a gradient for each row."""
    alone = jax.vmap(jax.grad(lambda p, x, y: loss_fn(p, (x[None], y[None]))), in_axes=(None, 0, 0))
    return alone(state.params, *batch), {"loss": loss_fn(state.params, batch)}


def by_hand(path, tx):
    """The parameters after some steps of a loop that knows what the transformation asks for."""
    loss_of = functools.partial(lambda params: loss_fn(params, (X, Y)))
    known = {
        "value=loss": lambda p, g: {"value": loss_of(p)},
        "grad_fn=lambda params, _: jax.grad(loss_fn)(params)": lambda p, g: {
            "grad_fn": lambda params, _: jax.grad(loss_of)(params)
        },
        "obj_fn=loss_fn": lambda p, g: {"obj_fn": loss_of},
        "value=loss, grad=grads, value_fn=loss_fn": lambda p, g: {"value": loss_of(p), "grad": g, "value_fn": loss_of},
        "": lambda p, g: {},
    }

    @jax.jit
    def step(params, state):
        if path in PER_ROW:
            grads, _ = each_row(jc.TrainState.create(params=params), (X, Y))
        else:
            grads = jax.grad(loss_of)(params)
            grads = getattr(grads, "fast", grads)
        updates, state = tx.update(grads, state, params, **known[CASES[path].extra](params, grads))
        return optax.apply_updates(params, updates), state

    params = start(path)
    state = tx.init(params)
    for _ in range(STEPS):
        params, state = step(params, state)
    return params, state


def close(one, other):
    """Equal up to the order in which a compiler adds."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-4, atol=1e-6)


def test_all_of_optax_is_tried():
    variants = {"MultiSteps", "contrib.sam, opaque"}  # a class, and a mode
    assert set(CASES) - variants | set(WITHIN) == set(transformations()), "how is it built? Add it to SPECIAL"
    assert set(SPECIAL) <= set(CASES), "a name that optax no longer has"


def test_the_table_in_the_docs_has_all_of_optax():
    page = (Path(__file__).parents[2] / "docs/optimizers.md").read_text()
    assert [path for path in (*CASES, *WITHIN) if f"\n| `{path}` | " not in page] == []


EVERY_DAY = [
    *("adafactor", "adam", "adamw", "chain", "inject_hyperparams", "lbfgs", "lion", "lookahead", "masked", "partition"),
    *("polyak_sgd", "scale_by_backtracking_linesearch", "sgd", "contrib.dpsgd", "contrib.muon", "contrib.sam"),
    "contrib.reduce_on_plateau",
]
pytestmark = pytest.mark.usefixtures("as_optax_promotes")
old = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Specifying a key:UserWarning")


def some(often):
    """All of them, most of them in the long tests."""
    return [path if path in often else pytest.param(path, marks=pytest.mark.long) for path in CASES]


@pytest.mark.everyday(7)
@old
@pytest.mark.parametrize("path", some(EVERY_DAY))
def test_a_step_is_that_of_a_loop_by_hand(path):
    tx = build(CASES[path])
    step = jc.Step.from_gradients(each_row) if path in PER_ROW else jc.Step(loss_fn)
    state = jc.TrainState.create(params=start(path), tx=tx)
    run = jax.jit(step)
    for _ in range(STEPS):
        state, _ = run(state, (X, Y))
    close(state.params, by_hand(path, tx)[0])


@pytest.mark.everyday(2)
@old
@pytest.mark.parametrize("path", some(["lookahead", "contrib.sam, opaque", "contrib.schedule_free", "contrib.sophia"]))
def test_it_trains_in_fit(path):
    tx = build(CASES[path])
    if path in PER_ROW:
        loop = jc.Loop(jc.Step.from_gradients(each_row))
        state = jc.TrainState.create(params=start(path), tx=tx)
        result = loop.run(state, (X, Y), steps=STEPS, batch_size=8, shuffle=False, verbose=0)
    else:
        given = {"optimizer": tx, "steps": STEPS, "batch_size": 8, "shuffle": False, "verbose": 0}
        result = jc.fit(start(path), loss_fn, (X, Y), validation_data=(X, Y), **given)
    params, state = by_hand(path, tx)
    close(result.params, params)
    if path.startswith("contrib.schedule_free"):
        params = optax.contrib.schedule_free_eval_params(state, params)
        close(result.model, params)
        np.testing.assert_allclose(result.history["val_loss"][-1], loss_fn(params, (X, Y)), rtol=1e-4)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("name", ["contrib.sam", "lbfgs"])
def test_gradients_are_accumulated_for_every_kind(name):
    """`optax.MultiSteps` passes on what the optimizer asks for, and hides what it refuses."""
    tx = optax.MultiSteps(build(CASES[name]), 2)
    given = {"steps": 4, "batch_size": 8, "shuffle": False, "verbose": 0}
    twice = jc.fit(start(name), loss_fn, (X, Y), optimizer=tx, **given)
    once = jc.fit(start(name), loss_fn, (X, Y), optimizer=build(CASES[name]), **(given | {"steps": 2}))
    close(twice.params, once.params)


def test_the_best_weights_of_a_schedule_free_run_are_those_that_were_validated():
    best = jc.EarlyStopping("val_loss", patience=2, restore_best_weights=True)
    result = jc.fit(
        start("sgd"),
        loss_fn,
        (X, Y),
        optimizer=optax.contrib.schedule_free_sgd(0.3, b1=0.9),
        epochs=12,
        batch_size=4,
        validation_data=(X[:2] * 2, Y[:2]),
        callbacks=[best],
        verbose=0,
    )
    lowest = result.history.best("val_loss")["val_loss"]
    np.testing.assert_allclose(loss_fn(result.model, (X[:2] * 2, Y[:2])), lowest, rtol=1e-4)
    np.testing.assert_allclose(jc.evaluate(result.model, loss_fn, (X[:2] * 2, Y[:2]))["loss"], lowest, rtol=1e-4)


def test_a_checkpoint_of_a_schedule_free_run_is_of_the_weights_for_evaluation(tmp_path):
    save = jc.ModelCheckpoint(tmp_path / "m", save_weights_only=True)
    given = {"optimizer": optax.contrib.schedule_free_sgd(0.1), "epochs": 2, "batch_size": 4, "verbose": 0}
    result = jc.fit(start("sgd"), loss_fn, (X, Y), callbacks=[save], **given)
    close(jc.load(tmp_path / "m", what="params"), result.model)


def test_averages_beside_a_schedule_free_optimizer_are_refused():
    with pytest.raises(ValueError, match=r"SwapEMAWeights exchanges weights.*keeps weights for evaluation of its own"):
        jc.fit(
            start("sgd"),
            loss_fn,
            (X, Y),
            optimizer=optax.contrib.schedule_free_sgd(0.1),
            epochs=1,
            callbacks=[jc.SwapEMAWeights()],
            verbose=0,
        )


def test_lookahead_without_its_pair_says_how_to_make_it():
    with pytest.raises(TypeError, match=r"optax.lookahead trains a pair.*jc.fit\(optax.LookaheadParams.init_synced"):
        jc.Step(loss_fn)(jc.TrainState.create(params=start("sgd"), tx=build(CASES["lookahead"])), (X, Y))


def test_gradients_of_ones_own_say_what_a_line_search_lacks():
    step = jc.Step.from_gradients(lambda state, batch: (state.params, {"loss": loss_fn(state.params, batch)}))
    with pytest.raises(TypeError, match="the optimizer needs the arguments 'value_fn', and this step has value, grad"):
        step(jc.TrainState.create(params=start("sgd"), tx=optax.lbfgs()), (X, Y))


def test_a_hand_loop_passes_what_the_optimizer_asks_for():
    state = jc.TrainState.create(params=start("sgd"), tx=optax.polyak_sgd())
    loss, grads = jax.value_and_grad(loss_fn)(state.params, (X, Y))
    assert loss_fn(state.apply_gradients(grads, value=loss).params, (X, Y)) < loss


def test_what_a_monitor_measures_is_in_the_optimizers_state():
    """Its state grows in the first update, which a compiled loop has to know before."""
    tx = optax.chain(optax.monitor({"norm": optax.tree.norm}), optax.sgd(0.0))
    result = jc.fit(start("sgd"), loss_fn, (X, Y), optimizer=tx, steps=2, batch_size=8, shuffle=False, verbose=0)
    expected = optax.tree.norm(jax.grad(loss_fn)(start("sgd"), (X, Y)))
    np.testing.assert_allclose(optax.tree.get(result.state.opt_state, "norm"), expected, rtol=1e-6)
