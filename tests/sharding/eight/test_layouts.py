"""In every layout a run decides what it decides on one device, and its numbers are the same within rounding."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from sharding.eight._cases import batches, check_same, fit, layouts, loss_fn, make_data, make_params, mesh

import jaxcb as jc

LAYOUTS = ("data", "fsdp", "rules")


@functools.cache
def alone(executor: str, stream: bool) -> jc.Result:
    return fit(executor=executor, **({"data": batches()} if stream else {}))


# each layout with both executors and both kinds of data, and no more than a half of what these make together
@pytest.mark.everyday(1)
@pytest.mark.parametrize(
    ("layout", "executor", "stream"),
    [
        ("data", "looped", False),
        pytest.param("data", "stepped", True, marks=pytest.mark.long),
        pytest.param("fsdp", "looped", True, marks=pytest.mark.long),
        ("fsdp", "stepped", False),
        pytest.param("rules", "looped", False, marks=pytest.mark.long),
        pytest.param("rules", "stepped", True, marks=pytest.mark.long),
    ],
)
def test_a_run_over_a_mesh_equals_one_on_one_device(layout, executor, stream):
    data = {"data": batches()} if stream else {}
    found, expected = fit(executor=executor, **data, **layouts()[layout]), alone(executor, stream)
    assert expected.stop_reason is not None  # it stops, cuts its rate and takes its best weights back
    assert len(set(expected.history["learning_rate"].tolist())) > 1
    check_same(found, expected)


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_that_the_host_gathers_are_split_alike(layout):
    check_same(fit(executor="looped", resident=False, **layouts()[layout]), alone("looped", False))


def test_the_train_state_lies_where_it_was_told_to():
    by_name = {
        name: fit(epochs=1, callbacks=[jc.SwapEMAWeights()], data=make_data(128), **how)
        for name, how in layouts().items()
    }
    expected = {
        "data": {"a": P(), "b": P()},
        "fsdp": {"a": P(None, "data"), "b": P()},  # the second kernel is too small to split
        "rules": {"a": P(None, "model"), "b": P("model")},
    }
    for name, result in by_name.items():
        state = result.state
        for own in (state.params, state.weights["SwapEMAWeights/ema"].value["params"], _moments(state)):
            for part, spec in expected[name].items():
                assert own[part]["kernel"].sharding.spec == spec, (name, part)
            assert own["a"]["bias"].sharding.spec == P()
        assert len(state.step.sharding.device_set) == 8


def _moments(state):
    """Adam's first moments."""
    found = [x for x in jax.tree.leaves(state.opt_state, is_leaf=_is_adam) if _is_adam(x)]
    return found[0].mu


def _is_adam(x):
    return hasattr(x, "mu")


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_each_function_is_traced_once_a_shape(executor):
    traces = []

    def counted(params, batch, *, key, train):
        traces.append((train, len(batch[0])))
        return loss_fn(params, batch, key=key, train=train)

    fit(loss_fn=counted, executor=executor, epochs=3, callbacks=[], steps_per_execution=2, **layouts()["fsdp"])
    # a batch and the smaller last one, in training and in validation
    assert sorted(traces) == [(False, 18), (False, 32), (True, 12), (True, 32)]


@pytest.mark.everyday(1)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_evaluate_and_predict_equal_those_on_one_device(layout):
    how, params, data = layouts()[layout], make_params(), make_data(50)
    for own in (data, batches(50)):  # 50 rows: the last batch does not divide
        one, many = jc.evaluate(params, loss_fn, own), jc.evaluate(params, loss_fn, own, **how)
        assert one.keys() == many.keys()
        for name, value in one.items():
            np.testing.assert_allclose(many[name], value, rtol=1e-5)

    def fn(params, x):
        return x @ params["a"]["kernel"] + params["a"]["bias"][None]

    one, many = (jc.predict(params, data[0], batch_size=16, fn=fn, **more) for more in ({}, how))
    np.testing.assert_allclose(many, one, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_a_loss_function_names_the_axes_of_the_mesh():
    def constrained(params, batch, *, key, train):
        x, y = batch
        x = jax.lax.with_sharding_constraint(x, P(None, "data"))
        return loss_fn(params, (x, y), key=key, train=train)

    found = fit(loss_fn=constrained, epochs=2, callbacks=[], mesh=mesh())
    check_same(found, fit(epochs=2, callbacks=[]))


@pytest.mark.long
def test_a_mesh_with_explicit_axes_is_taken_too():
    explicit = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    check_same(fit(epochs=2, callbacks=[], mesh=explicit), fit(epochs=2, callbacks=[], mesh=mesh()))


@pytest.mark.long
def test_a_part_of_the_devices_and_axes_of_any_name():
    some = jax.sharding.Mesh(np.asarray(jax.devices()[:4]).reshape(2, 2), ("x", "y"))
    found = fit(epochs=2, callbacks=[], mesh=some, sharding="fsdp")
    assert found.params["a"]["kernel"].sharding.spec == P(None, ("x", "y"))
    check_same(found, fit(epochs=2, callbacks=[]))


@pytest.mark.long
def test_debug_runs_on_a_mesh():
    assert fit(debug=True, steps=2, epochs=1, callbacks=[], mesh=mesh()).history["loss"].shape == (1,)
