"""Actions as data: flattening, what fired, texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcb as jc
from jaxcb._src.core.actions.utils import as_actions, template_names

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def test_nested_tuples_are_laid_flat_in_order():
    a, b, c = (jc.actions.Stop(reason=r) for r in "abc")
    assert [x.reason for x in as_actions((a, None, [b, (c,)]))] == ["a", "b", "c"]  # pyright: ignore[reportAttributeAccessIssue]
    assert as_actions(None) == ()


def test_what_is_no_action_is_named():
    with pytest.raises(TypeError, match="expected None, an action or a tuple of actions, got float"):
        as_actions((jc.actions.Stop(), 0.5))


def test_stop_requested_is_any_of_them_and_jittable():
    def stops(x):
        return jc.stop_requested((jc.actions.ScaleLearningRate(0.5), jc.actions.Stop(x > 1), jc.actions.Stop(x > 2)))

    assert not jc.stop_requested(None)
    assert jax.jit(stops)(1.5)
    assert not jax.jit(stops)(0.5)
    np.testing.assert_array_equal(jax.vmap(stops)(jnp.array([0.0, 3.0])), [False, True])


def test_fired_on_one_moment():
    actions = (jc.actions.Stop(jnp.array(False)), jc.actions.Snapshot("best"), jc.actions.Stop(jnp.array(True), "b"))
    assert [type(a).__name__ for a in jc.fired(actions)] == ["Snapshot", "Stop"]


def test_fired_on_the_stack_of_a_scan_goes_moment_by_moment():
    def body(_, x):
        return None, (jc.actions.Stop(x > 1, "first", values={"x": x}), jc.actions.ScaleLearningRate(x, when=x > 2))

    _, stack = jax.lax.scan(body, None, jnp.array([3.0, 0.0, 1.5]))
    fired = jc.fired(stack)
    assert [type(a).__name__ for a in fired] == ["Stop", "ScaleLearningRate", "Stop"]
    assert [float(a.values["x"]) for a in fired if isinstance(a, jc.actions.Stop)] == [3.0, 1.5]
    assert jc.fired(jax.tree.map(lambda x: x[:0], stack)) == ()


def test_fired_refuses_stacks_of_different_axes():
    with pytest.raises(ValueError, match="the actions of one hook call, or their stack"):
        jc.fired((jc.actions.Stop(jnp.ones((2, 3), bool)), jc.actions.Stop(jnp.ones(3, bool))))


def test_texts_are_filled_on_the_host():
    action = jc.actions.Stop(True, "{val_loss:.2f} at {epoch}, step {step}", values={"val_loss": jnp.float32(0.125)})
    assert template_names(action.reason) == ["val_loss", "epoch", "step"]
    assert jc.actions.fill(action, step=7, epoch=0) == "0.12 at 1, step 7"
    assert jc.actions.fill(jc.actions.Print("{a}"), known={"a": 3}.items()) == "3"


def test_actions_are_pytrees_whose_texts_are_structure():
    assert jax.tree.leaves(jc.actions.Stop(True, "why")) == [True]
    assert jax.tree.structure(jc.actions.Stop(True, "a")) != jax.tree.structure(jc.actions.Stop(True, "b"))
    with pytest.raises(TypeError, match="Stop has no field 'wen'; it has when"):
        jc.actions.Stop().replace(wen=False)


def test_weights_are_kept_by_owner():
    assert jc.actions.Snapshot("best").key == "best"
    assert jc.actions.Snapshot("best", owner="EarlyStopping").key == "EarlyStopping/best"
