"""A mesh that the caller has set, and arrays that lie on devices already: the run is the same, or says what to pass."""

from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from sharding.eight._cases import batches, check_same, fit, loss_fn, make_data, make_params, mesh

import jaxcb as jc

ROWS = 128
KINDS = [AxisType.Auto, AxisType.Explicit]
EXECUTORS = ("looped", "stepped")
kinds = pytest.mark.parametrize("kind", KINDS, ids=["auto", "explicit"])


def mesh_of(kind: AxisType) -> Any:
    return jax.make_mesh((8,), ("data",), axis_types=(kind,))


def on(devices: Any, tree: Any, spec: P | None = None) -> Any:
    """Commits arrays to a mesh, or to a device."""
    return jax.device_put(tree, devices if isinstance(devices, jax.Device) else NamedSharding(devices, spec or P()))


def short(params: Any = None, **changes: Any) -> jc.Result:
    """Two epochs."""
    return fit(**{"epochs": 2, "callbacks": [], "data": make_data(ROWS), "batch_size": 32, "params": params, **changes})


@pytest.fixture(scope="module")
def alone():
    return short()


@pytest.fixture(scope="module")
def streamed():
    return short(data=batches(ROWS), batch_size=None)


@pytest.mark.everyday(1)
@kinds
@pytest.mark.parametrize("own", KINDS, ids=["for auto", "for explicit"])
def test_the_mesh_of_a_run_may_be_set_around_it(kind, own, alone):
    with jax.set_mesh(mesh_of(kind)):
        check_same(short(mesh=mesh_of(own)), alone)
    assert jax.sharding.get_abstract_mesh().empty


@kinds
def test_a_set_mesh_that_the_run_does_not_have_is_refused(kind):
    with jax.set_mesh(mesh_of(kind)), pytest.raises(ValueError, match=r"mesh of 8 devices is set .*mesh=mesh"):
        short()


@pytest.mark.everyday(1)
@kinds
def test_parameters_and_rows_may_lie_on_the_mesh(kind, alone):
    where = mesh_of(kind)
    params, data = on(where, make_params()), on(where, make_data(ROWS), P("data"))
    check_same(short(params, data=data, mesh=mesh()), alone)
    with jax.set_mesh(where):
        validation = on(where, make_data(50, seed=1))
        check_same(short(params, data=data, validation_data=validation, mesh=where), alone)


@pytest.mark.everyday(1)
@kinds
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("devices", ["the mesh", "a device", "no mesh"])
def test_batches_may_lie_anywhere(kind, executor, devices, streamed):
    where = jax.devices()[3] if devices == "a device" else mesh_of(kind)
    data = [on(where, batch, P("data")) for batch in batches(ROWS)]
    validation = [on(where, make_data(48, seed=1), P("data")), make_data(2, seed=1)]
    changes = {} if devices == "no mesh" else {"mesh": mesh()}
    found = short(data=data, validation_data=validation, batch_size=None, executor=executor, **changes)
    assert found.history.keys() == streamed.history.keys()
    np.testing.assert_allclose(found.history["loss"], streamed.history["loss"], rtol=2e-4)


@kinds
@pytest.mark.parametrize("part", ["params", "train_data", "validation_data"])
def test_arrays_on_a_mesh_ask_for_it(kind, part):
    where = mesh_of(kind)
    changes: dict[str, Any] = {
        "params": {"params": on(where, make_params())},
        "train_data": {"data": on(where, make_data(ROWS), P("data"))},
        "validation_data": {"validation_data": on(where, make_data(48), P("data"))},
    }[part]
    with pytest.raises(ValueError, match=r"lies on 8 devices, and the run has no mesh.*mesh=mesh"):
        short(**changes)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_run_is_where_its_parameters_are(executor, alone, streamed):
    one, *_, last = jax.devices()[1:]
    found = short(on(one, make_params()), executor=executor)
    check_same(found, alone)
    assert found.state.step.sharding.device_set == {one}
    data = [on(jax.devices()[0] if i % 2 else last, batch) for i, batch in enumerate(batches(ROWS))]
    found = short(on(one, make_params()), executor=executor, data=data, batch_size=None)
    check_same(found, streamed)
    assert jax.tree.leaves(found.params)[0].sharding.device_set == {one}


def test_two_devices_need_a_mesh(alone):
    _, one, other, *_ = jax.devices()
    params, data = on(one, make_params()), on(other, make_data(ROWS))
    with pytest.raises(ValueError, match=r"lies on .*:1, and train_data\[0\] on .*:2. Pass execution=.*mesh=mesh"):
        short(params, data=data)
    check_same(short(params, data=data, mesh=mesh()), alone)
    with pytest.raises(ValueError, match=r"evaluate: model.* lies on .*:1, and data\[0\] on .*:2. Pass mesh=mesh"):
        jc.evaluate(params, loss_fn, data)
    with pytest.raises(ValueError, match=r"predict: model.* lies on .*Pass mesh=mesh"):
        jc.predict(params, data[0], fn=lambda params, x: x @ params["a"]["kernel"])


@pytest.mark.long
@kinds
def test_evaluations_may_be_where_the_arrays_are(kind):
    where, params, data = mesh_of(kind), make_params(), make_data(50)
    expected = jc.evaluate(params, loss_fn, data, batch_size=16)
    rows = on(where, data)
    for given in (params, on(where, params)):
        assert jc.evaluate(given, loss_fn, rows, batch_size=16) == pytest.approx(expected, rel=1e-4)
    with jax.set_mesh(where):
        assert jc.evaluate(params, loss_fn, data, batch_size=16) == pytest.approx(expected, rel=1e-4)
        assert jc.predict(params, data[0], fn=lambda p, x: x @ p["a"]["kernel"]).shape == (50, 128)
        found = jc.evaluate(on(where, params), loss_fn, rows, batch_size=16, mesh=where)
        out = jc.predict(on(where, params), rows[0], fn=lambda p, x: x @ p["b"]["kernel"][:64], mesh=where)
    assert found == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(out, data[0] @ params["b"]["kernel"][:64], rtol=1e-4, atol=1e-5)


@pytest.mark.long
@pytest.mark.everyday(1)
@kinds
def test_a_run_in_a_set_mesh_resumes(kind, tmp_path, alone):
    with jax.set_mesh(mesh_of(kind)):
        short(mesh=mesh_of(kind), run_dir=tmp_path, epochs=1)
        found = short(mesh=mesh_of(kind), run_dir=tmp_path, resume=True)
    check_same(found, alone)


@pytest.mark.long
@pytest.mark.everyday(1)
@kinds
def test_a_state_that_lies_on_a_mesh_goes_on(kind, alone):
    where = mesh_of(kind)
    with jax.set_mesh(where):
        begun = short(on(where, make_params()), mesh=where, epochs=1)
        moved = begun.state.replace(params=on(where, begun.state.params))
        again = short(moved, mesh=where, epochs=1, optimizer=None, learning_rate=None)
    assert int(again.state.step) == 2 * int(begun.state.step)
    assert np.isfinite(again.history["loss"]).all()


@pytest.mark.long
@kinds
def test_a_set_mesh_of_one_device_is_no_obstacle(kind, alone):
    with jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=(kind,))):
        check_same(short(), alone)


@pytest.mark.long
@kinds
def test_a_population_in_a_set_mesh(kind):
    x, y = make_data(ROWS)
    given: dict[str, Any] = {"over": {"seed": range(8)}, "epochs": 1, "batch_size": 32, "verbose": 0}
    given |= {"optimizer": optax.adam(0.01)}
    expected = jc.sweep(make_params(), loss_fn, (x, y), **given)
    with jax.set_mesh(mesh_of(kind)):
        found = jc.sweep(make_params(), loss_fn, (x, y), execution=jc.Execution(mesh=mesh_of(kind)), **given)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.history["loss"], other.history["loss"], rtol=1e-4)
