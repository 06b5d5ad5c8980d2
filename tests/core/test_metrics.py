"""What a callback sees at one moment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

import jaxcb as jc
from jaxcb.testing import Stream, streams

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def test_values_are_strongly_typed():
    metrics = jc.Metrics({"loss": 0.5, "count": 3, "bad": True, "none": None}, epoch=4)
    dtypes = {name: str(metrics[name].dtype) for name in metrics}
    assert dtypes == {"loss": "float32", "count": "int32", "bad": "bool", "none": "float32"}
    assert not any(x.weak_type for x in jax.tree.leaves(metrics))
    assert int(metrics.step) == 5


def test_an_unknown_name_lists_the_names_that_exist():
    metrics = jc.Metrics({"val_loss": 1.0, "loss": 2.0})
    with pytest.raises(
        jc.errors.MissingMetricError,
        match=r"no metric 'val_los' here. Metrics here: loss, val_loss. Did you mean 'val_loss'",
    ):
        metrics["val_los"]
    with pytest.raises(jc.errors.MissingMetricError, match=r"Metrics here: none"):
        jc.Metrics({}).fresh("loss")


def test_fresh_is_reported_at_this_step():
    metrics = jc.Metrics({"a": 1.0, "b": 2.0, "c": None}, step=9, reported={"b": 6})
    assert [bool(metrics.fresh(n)) for n in "abc"] == [True, False, False]
    assert int(metrics.reported["c"]) == -1


def test_values_must_be_a_mapping():
    with pytest.raises(TypeError, match=r"takes a mapping of names to values, got float"):
        jc.Metrics(0.5)


def test_metrics_pass_through_jit_unchanged():
    metrics = jc.Metrics({"a": 1.0}, step=3, epoch=1, closes_epoch=False)
    again = jax.jit(lambda m: m)(metrics)
    assert jax.tree.structure(again) == jax.tree.structure(metrics)
    assert jax.tree.map(float, again) == jax.tree.map(float, metrics)


def test_a_stream_carries_the_last_report():
    stream = Stream({"v": (None, 0.5, None)}, (False, True, True), (2, 3, 7))
    metrics = stream.metrics()
    assert [int(m.epoch) for m in metrics] == [0, 0, 1]
    assert [bool(m.fresh("v")) for m in metrics] == [False, True, False]
    assert [int(m.reported["v"]) for m in metrics] == [-1, 3, 3]
    assert np.isnan(metrics[0]["v"])
    assert float(metrics[2]["v"]) == 0.5


@given(streams(["a"]))
def test_a_stream_one_by_one_is_its_stack(stream):
    stack = stream.stacked()
    for i, metrics in enumerate(stream.metrics()):
        for one, whole in zip(jax.tree.leaves(metrics), jax.tree.leaves(stack), strict=True):
            np.testing.assert_array_equal(one, whole[i])


def test_wide_numbers_are_float32():
    assert jc.Metrics({"a": np.float64(0.1)})["a"].dtype == jnp.float32


def test_an_array_says_whether_a_value_is_reported():
    def at(when):
        return jc.Metrics({"a": jc.probes.reported(2.0, when=when), "b": 1.0, "c": None}, step=jnp.int32(3), epoch=0)

    for when in (True, False):
        for metrics in (at(when), jax.jit(at)(when)):
            assert [bool(metrics.fresh(name)) for name in "abc"] == [when, True, False]
            assert list(metrics) == ["a", "b", "c"]
    with pytest.raises(TypeError, match=r"when must be one boolean, got bool\[2\]"):
        jc.probes.reported(1.0, when=jnp.array([True, False]))
