"""What does not fit a mesh is refused before the first step."""

import pytest
from jax.sharding import PartitionSpec as P
from sharding.eight._cases import fit, mesh

CASES = {
    "batch": ({"batch_size": 30}, "batch of 30 rows does not divide over 8 devices.*batch_size=24 or 32"),
    "no parameter": ({"sharding": {"c/kernel": P("data")}}, "'c/kernel' matches no parameter.*Did you mean"),
    "no axis": ({"sharding": {"a/kernel": P("model")}}, "a/kernel.*no axis 'model'.*'data' \\(8\\)"),
    "no division": ({"sharding": {"b/kernel": P(None, "data")}}, r"b/kernel.*\(128, 1\).*dimension 1.*8 parts"),
    "too long": ({"sharding": {"a/bias": P(None, "data")}}, "a/bias.*too many entries"),
    "no spec": ({"sharding": {"a/bias": "data"}}, "a/bias.*is a str, expected a jax.sharding.PartitionSpec"),
    "word": ({"sharding": "zero"}, "must be 'fsdp', 'replicated', .* got 'zero'"),
    "no mesh at all": ({"mesh": None, "sharding": "fsdp"}, "without a mesh: pass mesh="),
    "mesh": ({"mesh": 8}, "must be a jax.sharding.Mesh.*got a int"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_refused(case, tmp_path):
    changes, message = CASES[case]
    with pytest.raises((ValueError, TypeError), match=message):
        fit(**{"mesh": mesh(), "loss_fn": _never_runs, "run_dir": tmp_path / "run"} | changes)
    assert not list(tmp_path.rglob("*.csv"))


def _never_runs(params, batch):
    raise AssertionError("the loss function was called")
