"""Members spread over the devices of a mesh equal those on one device."""

import jax
import numpy as np
import optax
import pytest
from _arguments import grouped
from loop._runs import control, loss_fn, make_data, make_params
from sharding.eight._cases import mesh

import jaxcb as jc


def sweep(members=16, **changes):
    given = {"optimizer": optax.adam, "epochs": 10, "batch_size": 16, "validation_data": make_data(20, seed=1)}
    given |= {"callbacks": control(), "repack": True, "verbose": 0}
    over = {"seed": range(members // 2), "optimizer.learning_rate": [0.05, 0.3]}
    return jc.sweep(make_params, loss_fn, make_data(), **grouped(over=over, **(given | changes)))


@pytest.mark.parametrize("executor", ["looped", pytest.param("stepped", marks=pytest.mark.long)])
def test_members_over_the_devices_equal_those_on_one(executor):
    one, many = (sweep(strategy=s, executor=executor) for s in ("vmap", "shard"))
    assert many.parts[0].strategy == "shard"
    assert many.parts[0].sizes[0] == 16
    assert all(size % 8 == 0 for size in many.parts[0].sizes)
    for a, b in zip(many, one, strict=True):
        assert a.stop_reason == b.stop_reason
        assert a.stopped_epoch == b.stopped_epoch
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), a.params, b.params)
    assert len(many.parts[0].state.params["w"].sharding.device_set) == 8


@pytest.mark.long
def test_a_mesh_says_which_devices():
    four = jax.sharding.Mesh(np.asarray(jax.devices()[:4]), ("any",))
    found = sweep(members=4, strategy="shard", mesh=four, epochs=1, repack=False)
    assert found.parts[0].state.params["w"].sharding.device_set == set(jax.devices()[:4])
    with pytest.raises(ValueError, match=r"spreads 6 members over 8 devices.*Give 8 members"):
        sweep(members=6, strategy="shard", mesh=mesh(), epochs=1)
