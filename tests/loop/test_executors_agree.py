"""Law 7: however many steps a call runs, and whichever executor runs them, the run is the same."""

import jax
import numpy as np
import pytest
from loop._runs import fit


@pytest.fixture(scope="module")
def reference():
    return fit("looped", steps_per_execution=5)


def same_bits(a, b):
    return all(
        np.array_equal(x, y, equal_nan=True) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("length", [1, 3, 7, None])
def test_the_length_of_a_call_changes_no_bit(reference, length):
    run = fit("looped", steps_per_execution=length)
    assert same_bits(run.params, reference.params)
    assert same_bits(run.callback_states, reference.callback_states)
    assert same_bits(dict(run.history), dict(reference.history))
    assert run.stop_reason == reference.stop_reason


def test_stepped_runs_agree_with_each_other_bit_for_bit():
    a, b = fit("stepped", steps_per_execution=2), fit("stepped", steps_per_execution=9)
    assert same_bits(a.params, b.params)
    assert same_bits(dict(a.history), dict(b.history))


def test_the_executors_agree(reference):
    stepped = fit("stepped")
    assert stepped.executor == "stepped"
    assert stepped.stopped_epoch == reference.stopped_epoch
    assert stepped.stop_reason == reference.stop_reason
    assert stepped.history.keys() == reference.history.keys()
    for name in reference.history:
        np.testing.assert_allclose(stepped.history[name], reference.history[name], rtol=1e-4, atol=1e-6)


def test_the_callers_arrays_stay_valid(reference):
    from loop._runs import make_params

    params = make_params()
    fit("looped", model=params, steps_per_execution=5)
    assert float(params["b"]) == 0.0


def test_a_second_run_goes_on_from_the_state_of_the_first(reference):
    from loop._runs import control, loss_fn, make_data

    import jaxcb as jc

    loop = jc.Loop(jc.Step(loss_fn), jc.EvalStep(loss_fn), callbacks=control())
    assert reference.stop_reason
    assert bool(reference.state.stop)
    again = loop.run(
        reference.state, make_data(), epochs=20, batch_size=16, validation_data=make_data(20, seed=1), verbose=0
    )
    assert len(again.history["loss"]) > 2, "a new run is not stopped by the last one's stop"
    assert int(again.state.step) == int(reference.state.step) + again.history.step[-1]
    assert again.history["loss"][0] < reference.history["loss"][0] / 2
