"""TerminateOnNaN: the first step whose loss is no number."""

import jax.numpy as jnp
import pytest

import jaxcb as jc


def test_stops_at_nan_and_infinity(play):
    played = play(
        jc.TerminateOnNaN(), hook="on_batch_end", loss=[1.0, -3e38, float("inf"), float("nan"), float("-inf")]
    )
    assert played.when(jc.actions.Stop) == [2, 3, 4]
    assert jc.actions.fill(played.actions[3][0], step=4) == "loss is nan at step 4"


def test_another_monitor(play):
    assert play(jc.TerminateOnNaN(monitor="grad_norm"), hook="on_batch_end", grad_norm=[float("nan")]).when(
        jc.actions.Stop
    ) == [0]


@pytest.mark.parametrize("value", [jnp.array([1.0, jnp.nan]), jnp.array(jnp.inf, jnp.bfloat16)])
def test_any_shape_and_dtype(value):
    _, action = jc.TerminateOnNaN().on_batch_end((), jc.Metrics({"loss": value}))
    assert bool(action.when)


def test_whole_numbers_are_finite():
    _, action = jc.TerminateOnNaN().on_batch_end((), jc.Metrics({"loss": 3}))
    assert not bool(action.when)


def test_a_name_in_the_place_of_raise_error_is_refused():
    with pytest.raises(ValueError, match="raise_error must be one of False, True, got 'grad_norm'"):
        jc.TerminateOnNaN("grad_norm")
