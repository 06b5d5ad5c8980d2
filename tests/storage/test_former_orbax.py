"""Orbax before 0.12 had other names for its functions; the checkpoints are the same."""

import types

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxcb._src.storage import orbax

FORMER = ("Context", "options", "load_pytree", "pytree_metadata", "save_checkpointables", "save_checkpointables_async")


@pytest.fixture
def former(monkeypatch):
    """Returns a function after which Orbax has only the names that it had before 0.12."""
    names = types.SimpleNamespace(**{name: getattr(ocp.v1, name) for name in FORMER})
    return lambda: monkeypatch.setattr(ocp, "v1", names)


def tree(number: float) -> dict:
    return {"a": jnp.full(3, number), "b": {"c": np.full((2, 2), number, np.int32)}}


def equal(found, expected) -> None:
    np.testing.assert_array_equal(found["a"], expected["a"])
    np.testing.assert_array_equal(found["b"]["c"], expected["b"]["c"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("wait", [True, False])
def test_what_one_version_saves_the_other_loads(former, tmp_path, wait):
    orbax.save(str(tmp_path / "new"), tree(1))
    former()
    assert not hasattr(ocp.v1, "save")
    equal(orbax.load(str(tmp_path / "new"), tree(0)), tree(1))
    if wait:
        orbax.save(str(tmp_path / "old"), tree(2), custom_metadata={"step": 3})
    else:
        orbax.save_async(str(tmp_path / "old"), tree(2), custom_metadata={"step": 3})()
    assert orbax.metadata(str(tmp_path / "old")).custom_metadata == {"step": 3}
    assert (tmp_path / "old" / "state" / "_METADATA").exists()
    equal(orbax.load(str(tmp_path / "old"), tree(0)), tree(2))
    part = orbax.load(str(tmp_path / "old"), {"a": tree(0)["a"]}, partial_load=True)
    np.testing.assert_array_equal(part["a"], tree(2)["a"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_the_former_version_saves_is_loaded(former, tmp_path, monkeypatch):
    former()
    orbax.save(str(tmp_path / "old"), tree(2))
    monkeypatch.undo()
    equal(orbax.load(str(tmp_path / "old"), tree(0)), tree(2))
