"""A sweep of n equals n single runs: in any order, with any repacking, and each decision exactly."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import optax
import pytest
from _arguments import grouped
from loop._runs import control, loss_fn, make_data, make_params

import jaxcb as jc

COMMON = {"epochs": 12, "batch_size": 16, "validation_data": make_data(20, seed=1), "verbose": 0}
POOL = (
    (0, 0.05, 1, 1e-4),
    (0, 0.05, 3, 1e-4),
    (1, 0.2, 1, 1e-1),
    (2, 0.2, 2, 1e-4),
    (1, 0.02, 2, 1e-1),
    (3, 0.4, 1, 1e-2),
)
PATHS = (
    "seed",
    "optimizer.learning_rate",
    "callbacks.EarlyStopping.patience",
    "optimizer.weight_decay",
)


def callbacks(patience=2):
    return [jc.EarlyStopping(patience=patience, min_delta=0.02, restore_best_weights=True), *control()[1:]]


def points_of(chosen):
    return [dict(zip(PATHS, POOL[i], strict=True)) for i in chosen]


@functools.cache
def alone(index):
    seed, rate, patience, decay = POOL[index]
    return jc.fit(
        make_params(seed),
        loss_fn,
        make_data(),
        optimizer=functools.partial(optax.adamw, weight_decay=decay),
        learning_rate=rate,
        callbacks=callbacks(patience),
        seed=seed,
        **COMMON,
    )


def sweep(points, **more):
    given = {"strategy": "vmap", "repack": True, "callbacks": callbacks(), **COMMON} | more
    return jc.sweep(
        make_params, loss_fn, make_data(), **grouped(over=points, optimizer=optax.adamw, learning_rate=0.1, **given)
    )


def assert_equal(member, single):
    assert (member.stopped_epoch, member.stop_reason) == (single.stopped_epoch, single.stop_reason)
    assert list(member.history) == list(single.history)
    for name in single.history:
        np.testing.assert_array_equal(member.history.reported(name), single.history.reported(name))
        np.testing.assert_allclose(member.history[name], single.history[name], rtol=1e-3, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(member.history.step, single.history.step)
    assert int(member.state.step) == int(single.state.step)
    for a, b in zip(jax.tree.leaves(member.params), jax.tree.leaves(single.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    for name, own in single.callback_states.items():
        for a, b in zip(jax.tree.leaves(member.callback_states[name]), jax.tree.leaves(own), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.everyday(1)
@pytest.mark.parametrize(
    ("strategy", "executor"), [("vmap", "looped"), ("map", "looped"), ("vmap", "stepped"), ("map", "stepped")]
)
def test_each_member_equals_its_single_run(strategy, executor):
    chosen = range(4)
    result = sweep(points_of(chosen), strategy=strategy, executor=executor)
    assert len({alone(i).stopped_epoch for i in chosen}) > 1, "the members should stop at different epochs"
    for row, index in enumerate(chosen):
        assert_equal(result.member(row), alone(index))


@pytest.mark.long
@hypothesis.settings(max_examples=5)
@hypothesis.given(chosen=st.lists(st.sampled_from(range(len(POOL))), min_size=1, max_size=6), repack=st.booleans())
def test_in_any_order_and_any_repacking(chosen, repack):
    result = sweep(points_of(chosen), repack=repack)
    for row, index in enumerate(chosen):
        assert_equal(result.member(row), alone(index))


def test_members_that_have_stopped_leave_the_program():
    result = sweep(points_of(range(6)))
    sizes = result.parts[0].sizes
    assert sizes[0] == 6
    assert len(sizes) > 1
    assert all(size & (size - 1) == 0 for size in sizes[1:]), sizes
    assert sizes == tuple(sorted(sizes, reverse=True))


def test_a_member_that_diverges_harms_no_other():
    # a rate that is none: the parameters are NaN after the first step
    points = points_of([0, 2])
    points[1]["optimizer.learning_rate"] = 1e30
    result = sweep(points, repack=False)
    assert result.member(1).stop_reason.startswith("TerminateOnNaN")
    assert_equal(result.member(0), alone(0))


class Recorded(jc.Callback):
    """Overwrites nothing; asks for the end where a control says so."""

    def on_epoch_end(self, state, metrics):
        return state, jc.actions.Stop(metrics["beta"] * (metrics.epoch + 1) >= 1.0, "beta is {beta:.2f}")


def test_controls_have_a_value_of_their_own():
    betas = [0.25, 0.5, 1.0]
    result = jc.sweep(
        make_params,
        lambda params, batch, controls: loss_fn(params, batch)[0] * controls["beta"],
        make_data(),
        over={"controls.beta": betas},
        controls={"beta": 0.0},
        optimizer=optax.adam,
        learning_rate=0.1,
        callbacks=[Recorded()],
        epochs=6,
        verbose=0,
    )
    assert [m.stopped_epoch for m in result] == [3, 1, 0]
    assert [m.stop_reason for m in result] == [f"Recorded: beta is {b:.2f}" for b in betas]
    np.testing.assert_allclose([float(m.state.controls["beta"]) for m in result], betas)
