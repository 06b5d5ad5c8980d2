"""Callbacks, chains and the fixed form of a transition, with what they say when it is broken."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import jaxcb as jc

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def run(callback, hook="on_epoch_end", metrics=None):
    chain = jc.chain(callback)
    return getattr(chain, hook)(chain.init(), metrics or jc.Metrics({"loss": 1.0}))


def with_hook(function, init=None):
    return jc.make_callback(on_epoch_end=function, init=init, name="mine")


# At class creation


def test_a_misspelt_hook_is_refused():
    with pytest.raises(
        jc.errors.CallbackError, match=r"defines 'on_epochs_end', which is not a hook. Did you mean 'on_epoch_end'"
    ):

        class Misspelt(jc.Callback):
            def on_epochs_end(self, state, metrics): ...


def test_kerass_name_of_a_hook_is_translated():
    with pytest.raises(jc.errors.CallbackError, match=r"The hook's name here is 'on_batch_end'"):

        class FromKeras(jc.Callback):
            def on_train_batch_end(self, state, metrics): ...


def test_kerass_signature_is_refused():
    with pytest.raises(
        jc.errors.CallbackError, match=r"on_epoch_end\(self, epoch, logs\) has Keras's signature.*LambdaCallback"
    ):

        class FromKeras(jc.Callback):
            def on_epoch_end(self, epoch, logs=None): ...


def test_another_signature_is_refused():
    with pytest.raises(jc.errors.CallbackError, match=r"takes \(self, state\), expected \(self, state, metrics\)"):

        class TooFew(jc.Callback):
            def on_epoch_end(self, state): ...


def test_init_of_a_pure_callback_is_refused():
    with pytest.raises(jc.errors.CallbackError, match=r"defines __init__, but a callback is a frozen dataclass"):

        class WithInit(jc.Callback):
            def __init__(self): ...


def test_callbacks_are_frozen_and_their_numbers_are_leaves():
    callback = jc.EarlyStopping(patience=3, min_delta=1)
    with pytest.raises(AttributeError):
        callback.patience = 4  # pyright: ignore[reportAttributeAccessIssue]
    assert jax.tree.leaves(callback) == [1.0, 3, 0]
    assert jax.tree.leaves(jc.EarlyStopping(baseline=2)) == [0.0, 0, 2.0, 0]


def test_fields_that_are_not_compared_have_no_part_in_equality():
    class Noted(jc.Callback):
        note: list = dataclasses.field(default_factory=list, compare=False)
        seed: int = dataclasses.field(default=0, hash=False)

    assert Noted(note=["a"]) == Noted(note=["b"])
    assert hash(Noted(seed=0)) == hash(Noted(seed=1))
    assert Noted(seed=0) != Noted(seed=1)


def test_a_class_with_its_own_equality_has_a_hash():
    class Alike(jc.Callback):
        seed: int = 0

        def __eq__(self, other):
            return type(other) is type(self)

    class Holder(jc.Callback):
        own: Alike = jc.static(default_factory=Alike)

    assert hash(Holder()) == hash(Holder())


def test_make_callback_refuses_unknown_hooks():
    with pytest.raises(
        jc.errors.CallbackError, match=r"'on_epoch_ends', which is not a hook. Did you mean 'on_epoch_end'"
    ):
        jc.make_callback(on_epoch_ends=lambda s, m: (s, None))


# In a transition


def test_a_python_if_on_a_metric_shows_where():
    def decide(state, metrics):
        if metrics["loss"] < 1:
            return state, jc.actions.Stop()
        return state, None

    with pytest.raises(
        jc.errors.CallbackError, match=r"mine.on_epoch_end uses a traced value in a Python `if`.*jnp.where"
    ):
        jax.jit(lambda m: run(with_hook(decide), metrics=m))(jc.Metrics({"loss": 1.0}))


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda s, m: s, "mine.on_epoch_end returned dict, expected \\(state, actions\\)"),
        (lambda s, m: (s, 3), "mine.on_epoch_end: expected None, an action .* got int"),
        (lambda s, m: ({**s, "new": 1}, None), r"mine.on_epoch_end changed the structure.*leaf \['new'\] is new"),
        (lambda s, m: ({}, None), r"mine.on_epoch_end changed the structure.*leaf \['n'\] is missing"),
        (lambda s, m: ({"n": jnp.zeros(3, int)}, None), r"mine.on_epoch_end\['n'\] has shape \(3,\), expected \(\)"),
        (lambda s, m: ({"n": m["loss"]}, None), r"mine.on_epoch_end\['n'\] has dtype float32, expected int32"),
        (lambda s, m: ({"n": "three"}, None), r"mine.on_epoch_end\['n'\]"),
        (lambda s, m: (s, jc.actions.Stop("yes")), "mine.on_epoch_end: Stop has a field that is not an array"),
        (
            lambda s, m: (s, jc.actions.Stop(m["loss"])),
            r"mine.on_epoch_end: when= of its Stop is float32\[\], expected one boolean",
        ),
        (lambda s, m: (s, jc.actions.Stop(jnp.ones(2, bool))), r"when= of its Stop is bool\[2\]"),
    ],
)
def test_what_breaks_the_form_names_callback_hook_and_leaf(function, says):
    with pytest.raises(jc.errors.CallbackError, match=says):
        run(with_hook(function, lambda: {"n": 0}))


def test_a_missing_metric_names_callback_and_hook():
    with pytest.raises(
        jc.errors.MissingMetricError,
        match=r"EarlyStopping.on_epoch_end: there is no metric 'val_loss' here. Metrics here: loss",
    ):
        run(jc.EarlyStopping())


def test_a_text_that_asks_for_a_missing_metric_lists_what_it_may():
    with pytest.raises(
        jc.errors.MissingMetricError, match=r"the text of its Stop uses 'acc'; available: batch, epoch, loss, step"
    ):
        run(with_hook(lambda s, m: (s, jc.actions.Stop(True, "at {acc}"))))


def test_other_errors_say_where_they_happened():
    def fails(state, metrics):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        run(with_hook(fails))
    assert "callback mine.on_epoch_end" in caught.value.__notes__[0]


def test_weak_and_wide_results_are_cast_back():
    state, _ = run(with_hook(lambda s, m: ({"n": 3, "x": 0.5}, None), lambda: {"n": 0, "x": 0.0}))
    dtypes = {k: (str(v.dtype), v.weak_type) for k, v in state["mine"].items()}
    assert dtypes == {"n": ("int32", False), "x": ("float32", False)}
    state, _ = run(with_hook(lambda s, m: (m["loss"].astype(jnp.float32), None), lambda: jnp.zeros((), jnp.bfloat16)))
    assert state["mine"].dtype == jnp.bfloat16


def test_a_state_may_hold_a_prng_key():
    def split(key, metrics):
        return jax.random.split(key)[0], None

    state, _ = run(with_hook(split, lambda: jax.random.key(0)))
    assert state["mine"] == jax.random.split(jax.random.key(0))[0]


def test_actions_carry_owner_and_typed_arrays():
    _, (action,) = run(with_hook(lambda s, m: (s, jc.actions.ScaleLearningRate(0.5, when=True))))
    assert action.owner == "mine"
    assert action.factor.dtype == jnp.float32
    assert not action.factor.weak_type


@pytest.mark.parametrize("callback", [jc.EarlyStopping(), jc.ReduceLROnPlateau(min_lr=0.1, cooldown=2.0)])
def test_a_bare_callback_keeps_its_form_without_a_chain(callback):
    metrics = jc.Metrics({"val_loss": 1.0, "learning_rate": 1.0})
    state = callback.init()
    after, _ = callback.on_epoch_end(state, metrics)
    avals = [jax.tree.map(jax.typeof, s) for s in (state, after)]
    assert avals[0] == avals[1]


# Chains


def test_chains_lie_flat_and_number_their_names():
    a, b, c = jc.EarlyStopping(), jc.EarlyStopping(patience=2), jc.TerminateOnNaN(name="guard")
    left, right = jc.chain(jc.chain(a, b), c), jc.chain(a, jc.chain(b, c))
    assert left == right
    assert left.names == ("EarlyStopping", "EarlyStopping_2", "guard")
    assert jc.chain(jc.chain(), a) == jc.chain(a)
    assert jc.chain().hooks() == frozenset()


def test_a_given_name_is_never_taken():
    assert jc.chain(jc.EarlyStopping(), jc.EarlyStopping(name="EarlyStopping")).names == (
        "EarlyStopping_2",
        "EarlyStopping",
    )


def test_two_unnamed_function_callbacks_may_stand_together():
    assert jc.chain(jc.make_callback(), jc.make_callback()).names == ("FunctionCallback", "FunctionCallback_2")


def test_two_callbacks_with_one_name_are_refused():
    with pytest.raises(ValueError, match=r"2 callbacks are named 'x'; give each its own name="):
        jc.chain(jc.EarlyStopping(name="x"), jc.TerminateOnNaN(name="x"))
    with pytest.raises(ValueError, match=r"cannot contain '/'"):
        jc.chain(jc.EarlyStopping(name="a/b"))


def test_what_is_no_callback_is_refused():
    with pytest.raises(TypeError, match=r"got the class EarlyStopping. Call it to make an instance"):
        jc.chain(jc.EarlyStopping)
    with pytest.raises(TypeError, match=r"expected a jaxcb callback, got a function"):
        jc.chain(run)


def test_a_chain_asks_for_its_members_weights_by_owner():
    chain = jc.chain(jc.EarlyStopping(restore_best_weights=True), jc.EarlyStopping(restore_best_weights=True, name="b"))
    assert chain.slots() == {"EarlyStopping/best": "model", "b/best": "model"}


def test_patience_can_be_swept():
    chain = jc.chain(jc.EarlyStopping("loss"))
    metrics = jc.Metrics({"loss": 1.0}, epoch=3)
    before = chain.init()["EarlyStopping"]
    seen = before.seen.replace(step=jnp.int32(1), epoch=jnp.int32(1))
    state = {"EarlyStopping": before.replace(best=jnp.float32(0), wait=jnp.int32(2), seen=seen)}

    def stops(patience):
        swept = jc.chain(jc.EarlyStopping("loss").replace(patience=patience))
        return jc.stop_requested(swept.on_epoch_end(state, metrics)[1])

    assert jax.vmap(stops)(jnp.arange(1, 6)).tolist() == [True, True, True, False, False]
