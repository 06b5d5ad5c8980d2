"""Runs whose step takes no batch: reinforcement learning, variational inference, solvers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcb as jc

TX = optax.adam(0.1)
WAYS = [
    jc.Execution(executor="looped", block=0),
    jc.Execution(block=7),
    jc.Execution(executor="stepped"),
    jc.Execution(executor="looped", steps_per_execution=3),
]


def explore(state):
    """One update on noise that the step draws itself."""
    noise = jax.random.normal(state.step_key(), (4,))
    loss, grads = jax.value_and_grad(lambda p: jnp.mean((p["w"] - 3.0 + 0.1 * noise) ** 2))(state.params)
    return state.apply_gradients(grads), {"loss": loss, "noise": noise[0]}


def distance(state):
    return {"distance": jnp.abs(state.params["w"] - 3.0)}


def state():
    return jc.TrainState.create(params={"w": jnp.zeros(())}, tx=TX, seed=5)


def run(execution=WAYS[0], callbacks=(), eval_step=distance, **arguments):
    arguments = {"steps": 20, "steps_per_epoch": 5, "verbose": 0} | arguments
    return jc.Loop(explore, eval_step, callbacks=callbacks).run(state(), execution=execution, **arguments)


@pytest.mark.parametrize("execution", WAYS)
def test_it_is_the_loop_by_hand(execution):
    result = run(execution)
    own, step, losses = state(), jax.jit(explore), []
    for _ in range(20):
        own, values = step(own)
        losses.append(float(values["loss"]))
    np.testing.assert_allclose(result.state.params["w"], own.params["w"], rtol=1e-5)
    np.testing.assert_allclose(result.history["loss"], np.reshape(losses, (4, 5)).mean(1), rtol=1e-5)
    np.testing.assert_allclose(result.history["val_distance"][-1], 3.0 - own.params["w"], rtol=1e-5)
    assert result.history.step.tolist() == [5, 10, 15, 20]


def test_steps_alone_are_one_epoch():
    result = run(steps=7, steps_per_epoch=None)
    assert result.history.step.tolist() == [7]
    assert int(result.state.step) == 7


@pytest.mark.parametrize("execution", WAYS)
def test_epochs_and_callbacks(execution, tmp_path):
    callbacks = [
        jc.EarlyStopping("val_distance", mode="min", patience=1, min_delta=0.4, restore_best_weights=True),
        jc.CSVLogger(tmp_path / "log.csv"),
    ]
    result = run(execution, callbacks, epochs=30, steps=None)
    assert result.stopped_epoch is not None
    assert 2 < len((tmp_path / "log.csv").read_text().splitlines()) < 30
    best = result.stopped_epoch - 1  # the last epoch that was better by 0.4
    assert float(3.0 - result.state.params["w"]) == pytest.approx(result.history["val_distance"][best], rel=1e-5)


@pytest.mark.parametrize("execution", WAYS)
def test_a_run_cut_short_ends_as_one_that_was_not(execution, tmp_path):
    whole = run(execution, run_dir=tmp_path / "whole")
    run(execution, steps=7, run_dir=tmp_path / "parts")  # in the middle of an epoch
    parts = run(execution, run_dir=tmp_path / "parts", resume=True)
    same = jax.tree.map(np.array_equal, (whole.params, whole.state.opt_state), (parts.params, parts.state.opt_state))
    assert all(jax.tree.leaves(same))
    assert int(parts.state.step) == 20


def test_a_step_of_ours_works_without_data(tmp_path):
    def loss_fn(params, batch):
        assert batch is None
        return (params["w"] - 3.0) ** 2

    loop = jc.Loop(jc.Step(loss_fn), callbacks=[jc.callbacks.NormMonitor(every=10)])
    result = loop.run(state(), steps=60, steps_per_epoch=20, verbose=0, run_dir=tmp_path)  # norms go to TensorBoard
    assert abs(float(result.params["w"]) - 3.0) < 0.5
    assert any("norm" in name for name in result.history)


def test_validation_may_have_data():
    loop = jc.Loop(explore, lambda state, batch: {"error": jnp.mean((state.params["w"] - batch) ** 2)})
    result = loop.run(state(), steps=10, steps_per_epoch=5, validation_data=np.full(6, 3.0, np.float32), verbose=0)
    assert result.history["val_error"].shape == (2,)


def test_the_second_run_compiles_nothing():
    from _compilations import counting

    run()
    with counting() as counts:
        run()
    assert not counts


def test_a_trial_run_needs_no_data_either():
    assert int(run(jc.Execution(fast_dev_run=2), steps_per_epoch=None).state.step) == 2


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"steps": None, "epochs": 3, "steps_per_epoch": None}, "nothing says how long an epoch is"),
        ({"steps": 9, "epochs": 3, "steps_per_epoch": None}, "nothing says how long an epoch is"),
        ({"batch_size": 8}, "batch_size=8 was given without data"),
        ({"steps": None}, "epochs and steps are both None"),
    ],
)
def test_a_run_of_unknown_length_is_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        run(**arguments)
