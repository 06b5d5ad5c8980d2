"""`Step` and `EvalStep`: weights of rows, actions before the update, what a loss function may ask for and return."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcb as jc
from jaxcb._src.training.loss import Weighted

LOSSES = np.array([1.0, 2.0, 4.0, 8.0], np.float32)
LABELS = np.array([0, 1, 2, 1], np.int32)
TX = optax.sgd(1.0)


def weighted(params, batch, sample_weight):
    x = batch["x"] if isinstance(batch, dict) else batch[0]
    return jnp.mean(params["w"] * x * sample_weight), {"weights": sample_weight}


def state_of(params=None, **more):
    return jc.TrainState.create(params=params or {"w": jnp.ones(())}, tx=TX, **more)


def values_of(loss_fn, batch, **more):
    return jc.Step(loss_fn, **more)(state_of(), batch)[1]


CLASS_WEIGHT = {0: 2.0, 2: 0.5}  # a label that is not listed weighs 1
EXPECTED = np.array([2.0, 1.0, 0.5, 1.0], np.float32)


@pytest.mark.parametrize(
    "batch",
    [
        (LOSSES, LABELS),
        [LOSSES, LABELS],  # as torch's default collate makes them
        {"x": LOSSES, "label": LABELS},
        {"x": LOSSES, "y": LABELS},
    ],
    ids=["tuple", "list", "label", "y"],
)
def test_class_weights_weigh_rows_by_their_label(batch):
    values = values_of(weighted, batch, class_weight=CLASS_WEIGHT)
    np.testing.assert_array_equal(values["weights"], EXPECTED)
    np.testing.assert_allclose(values["loss"], (LOSSES * EXPECTED).mean())


def with_weights(kind, weights):
    """A batch with weights that are declared: as its key, or beside it, as by the argument of fit."""
    if kind == "key":
        return {"x": LOSSES, "y": LABELS, "sample_weight": weights}
    return Weighted((LOSSES, LABELS), weights)


@pytest.mark.parametrize("kind", ["key", "argument"])
def test_class_weights_multiply_sample_weights(kind):
    own = np.array([1.0, 0.0, 2.0, 3.0], np.float32)
    values = values_of(weighted, with_weights(kind, own), class_weight=CLASS_WEIGHT)
    np.testing.assert_array_equal(values["weights"], EXPECTED * own)


def test_labels_out_of_the_table_weigh_one():
    labels = np.array([-1, 0, 7, 2], np.int32)
    values = values_of(weighted, (LOSSES, labels), class_weight=CLASS_WEIGHT)
    np.testing.assert_array_equal(values["weights"], [1.0, 2.0, 1.0, 0.5])


def test_without_weights_each_row_weighs_one():
    np.testing.assert_array_equal(values_of(weighted, (LOSSES, LABELS))["weights"], np.ones(4))


def test_evaluation_knows_sample_weights_and_no_class_weights():
    batch = with_weights("key", np.full(4, 3.0, np.float32))
    values = jc.EvalStep(weighted, class_weight=CLASS_WEIGHT)(state_of(), batch)
    np.testing.assert_array_equal(values["weights"], np.full(4, 3.0))


ROWS = LOSSES.size


@pytest.mark.parametrize("step", [jc.Step, jc.EvalStep])
@pytest.mark.parametrize("kind", ["key", "argument"])
@pytest.mark.parametrize(
    ("weights", "received", "cure"),
    [
        (np.ones((ROWS, 1), np.float32), r"shape \(4, 1\)", r"reshape\(-1\).*squeeze"),
        (np.ones((1, ROWS), np.float32), r"shape \(1, 4\)", "reshape"),
        (np.ones((ROWS, ROWS), np.float32), r"shape \(4, 4\)", "one number per row"),
        (np.ones((ROWS, 2, 1), np.int32), r"shape \(4, 2, 1\)", "one number per row"),
        (np.ones(1, np.float32), r"shape \(1,\)", "as many rows"),
        (np.ones(ROWS - 1, np.float32), r"shape \(3,\)", "as many rows"),
        (np.float32(1.0), r"shape \(\)", "as many rows"),
        (1.0, r"shape \(\)", "as many rows"),
        (np.ones(ROWS, bool), r"dtype bool and shape \(4,\)", r"astype\(np.float32\)"),
        (np.ones(ROWS, np.complex64), "dtype complex64", "astype"),
        ("heavy", "a str", "one number per row"),
    ],
)
def test_sample_weights_of_another_form_are_refused(step, kind, weights, received, cure):
    batch = with_weights(kind, weights)
    what = r"batch\[\"sample_weight\"\]" if kind == "key" else "the argument sample_weight"
    with pytest.raises(ValueError, match=rf"sample_weight.*{what}.*{received}.*expected.*{cure}"):
        step(weighted)(state_of(), batch)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, jnp.bfloat16, np.int32, np.uint8, np.int64])
def test_sample_weights_arrive_as_float32(dtype):
    values = values_of(weighted, with_weights("key", np.array([1, 0, 2, 3], dtype)))
    assert values["weights"].dtype == jnp.float32
    np.testing.assert_array_equal(values["weights"], [1.0, 0.0, 2.0, 3.0])


def test_a_third_array_that_nobody_asks_for_may_have_any_form():
    values = values_of(lambda params, batch: params["w"] * batch[2].sum(), (LOSSES, LABELS, np.ones((4, 4), bool)))
    assert float(values["loss"]) == 16.0


@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize("step", [jc.Step, jc.EvalStep])
def test_no_place_of_a_batch_is_taken_for_weights(step, kind):
    batch = kind((LOSSES, LABELS, np.ones(4, np.float32)))
    with pytest.raises(ValueError, match=r"a third array is data. Declare them with sample_weight="):
        step(weighted)(state_of(), batch)
    # the weights of classes are a declaration, too
    values = step(weighted, class_weight=CLASS_WEIGHT)(state_of(), batch)
    values = values[1] if step is jc.Step else values
    np.testing.assert_array_equal(values["weights"], EXPECTED if step is jc.Step else np.ones(4))


def test_weights_in_two_places_are_refused():
    with pytest.raises(ValueError, match="leave one of them out"):
        values_of(weighted, Weighted(with_weights("key", np.ones(4)), np.ones(4)))


def test_weights_that_the_loss_function_does_not_take_are_refused():
    with pytest.raises(ValueError, match="sample_weight was given, but loss_fn does not use it"):
        values_of(lambda params, batch: params["w"], with_weights("argument", np.ones(4)))


ONE_HOT = np.eye(3, dtype=np.float32)[LABELS]


@pytest.mark.parametrize(
    "labels",
    [
        LABELS[:, None],
        LABELS.astype(np.uint8),
        LABELS.astype(np.float32),
        LABELS.astype(np.float32)[:, None] + 0.2,
        ONE_HOT,
        ONE_HOT.astype(np.int32),
        ONE_HOT.astype(bool),
        ONE_HOT * 0.8 + 0.1,
    ],
    ids=["column", "uint8", "floats", "rounded", "one-hot", "one-hot integers", "one-hot booleans", "smoothed"],
)
def test_class_weights_take_the_labels_that_keras_takes(labels):
    values = values_of(weighted, (LOSSES, labels), class_weight=CLASS_WEIGHT)
    np.testing.assert_array_equal(values["weights"], EXPECTED)


def test_a_class_weight_for_a_column_that_labels_do_not_have():
    with pytest.raises(ValueError, match="class_weight has the label 7, but the labels are rows of 3 columns"):
        values_of(weighted, (LOSSES, ONE_HOT), class_weight={7: 1.0})


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0, "heavy", np.ones(2), None])
def test_the_weights_of_classes_are_numbers(weight):
    with pytest.raises(ValueError, match="class_weight: the weight of label 2 must be a finite number of at least 0"):
        jc.Step(weighted, class_weight={2: weight})


@pytest.mark.parametrize("given", [[1.0, 2.0], 3, "balanced"])
def test_class_weight_is_a_dict(given):
    with pytest.raises(TypeError, match="class_weight must be a dict of labels to weights"):
        jc.Step(weighted, class_weight=given)


def test_class_weight_that_nothing_reads_is_an_error():
    with pytest.raises(ValueError, match=r"class_weight was given, but loss_fn does not use it.*sample_weight"):
        jc.Step(lambda params, batch: params["w"], class_weight={0: 2.0})


@pytest.mark.parametrize("label", ["cat", -1, 0.5])
def test_labels_of_class_weight_are_whole_numbers(label):
    with pytest.raises(ValueError, match="class_weight: each label must be a whole number"):
        jc.Step(weighted, class_weight={label: 2.0})


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((LOSSES, LABELS.astype(np.complex64)), "one label per row"),
        ((LOSSES, LABELS[:, None, None]), "one label per row"),
        ({"x": LOSSES, "class": LABELS}, "class_weight needs the labels.*targets"),
        (LOSSES, "class_weight needs the labels"),
    ],
    ids=["complex", "3-D", "another key", "no labels"],
)
def test_class_weight_without_usable_labels_says_what_it_needs(batch, message):
    def loss(params, batch, sample_weight):
        return params["w"] * sample_weight.mean()

    with pytest.raises(ValueError, match=message):
        values_of(loss, batch, class_weight=CLASS_WEIGHT)


# What a loss function may ask for


def test_a_loss_function_asks_by_keyword():
    def loss(params, batch, *, key, train, controls, state):
        noise = jax.random.normal(key)
        return params["w"] * controls["beta"], {"train": jnp.float32(train), "noise": noise, "seen": state["n"]}

    state = state_of(controls={"beta": 3.0}, model_state={"n": jnp.int32(5)})
    new, values = jc.Step(loss)(state, LOSSES)
    assert (float(values["loss"]), float(values["train"]), int(values["seen"])) == (3.0, 1.0, 5)
    assert int(new.step) == 1
    later = jc.Step(loss)(new, LOSSES)[1]
    assert float(later["noise"]) != float(values["noise"])  # each step has its own key
    assert float(jc.Step(loss)(state, LOSSES)[1]["noise"]) == float(values["noise"])
    assert float(jc.EvalStep(loss)(state, LOSSES)["train"]) == 0.0


def test_out_carries_a_new_state():
    def loss(params, batch, state):
        return jc.Out(params["w"] * 2.0, {"was": state["n"]}, {"n": state["n"] + len(batch)})

    state = state_of(model_state={"n": jnp.int32(0)})
    step = jc.Step(loss)
    for _ in range(2):
        state, values = step(state, LOSSES)
    assert int(values["was"]) == 4
    assert int(state.model_state["n"]) == 8


def test_a_callable_object_that_cannot_be_hashed_is_a_loss_function():
    class Loss:
        __hash__ = None

        def __call__(self, params, batch):
            return params["w"] * jnp.mean(batch)

    result = jc.fit(
        {"w": jnp.ones(())}, Loss(), LOSSES, optimizer=optax.sgd, learning_rate=0.1, epochs=1, batch_size=4, verbose=0
    )
    np.testing.assert_allclose(result.params["w"], 1 - 0.1 * LOSSES.mean(), rtol=1e-6)


BAD_RETURNS = {
    "nothing": (lambda p, b: None, TypeError, "returned a loss of type NoneType.*`return` missing"),
    "a dict": (lambda p, b: {"loss": p["w"]}, TypeError, "a loss of type dict"),
    "a loss a row": (lambda p, b: p["w"] * b, ValueError, r"shape \(4,\), expected a scalar; take its mean"),
    "an integer": (lambda p, b: jnp.int32(3), ValueError, "dtype int32, expected a floating-point one"),
    "three values": (lambda p, b: (p["w"], {}, {}), TypeError, r"tuple of 3, expected `loss`, `\(loss, metrics\)`"),
    "metrics in a list": (lambda p, b: (p["w"], [p["w"]]), TypeError, "metrics as list, expected a dict"),
    "a metric that is a text": (lambda p, b: (p["w"], {"acc": "high"}), TypeError, "the metric 'acc' of type str"),
    "a text in a dict": (lambda p, b: (p["w"], {"acc": {"a": "x"}}), TypeError, "the metric 'acc/a' of type str"),
    "a name twice": (lambda p, b: (p["w"], {"a/b": p["w"], "a": {"b": p["w"]}}), ValueError, "two metrics.*'a/b'"),
    "another loss": (lambda p, b: (p["w"], {"loss": p["w"] * 2}), ValueError, "called 'loss' that is not its loss"),
    "complex": (lambda p, b: (p["w"], {"z": p["w"] * 1j}), TypeError, "'z' of dtype complex64.*imaginary part"),
    "a key": (lambda p, b: (p["w"], {"k": jax.random.key(0)}), TypeError, "'k' of dtype key"),
    "a metric without a name": (lambda p, b: (p["w"], {"": p["w"]}), TypeError, "with the name ''"),
    "a number for a name": (lambda p, b: (p["w"], {1: p["w"]}), TypeError, "with the name 1"),
}


@pytest.mark.parametrize("case", BAD_RETURNS)
def test_what_a_loss_function_should_not_return_is_named(case):
    loss, error, message = BAD_RETURNS[case]
    with pytest.raises(error, match=message):
        values_of(loss, LOSSES)


def test_a_step_without_an_optimizer_says_so():
    state = jc.TrainState.create(params={"w": jnp.ones(())})
    with pytest.raises(ValueError, match="made without tx="):
        jc.Step(lambda p, b: p["w"])(state, LOSSES)


# Before the update

PARAMS = {"backbone": {"w": jnp.ones(2)}, "head": {"w": jnp.ones(2), "b": jnp.ones(())}}


def flat_loss(params, batch):
    return sum(jnp.sum(x) for x in jax.tree.leaves(params))


def updated(actions):
    step, state = jc.Step(flat_loss), state_of(PARAMS, model_state={"n": jnp.float32(1)})
    return state, step.update(state, step.compute_update(state, LOSSES), actions)


def test_skip_update_leaves_all_but_the_count():
    state, new = updated(jc.actions.SkipUpdate())
    jax.tree.map(np.testing.assert_array_equal, new.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, new.opt_state, state.opt_state)
    assert int(new.step) == 1
    _, kept = updated(jc.actions.SkipUpdate(when=False))
    assert float(kept.params["head"]["b"]) == 0.0


@pytest.mark.parametrize(
    ("where", "scaled"),
    [
        ("**", {"backbone/w", "head/w", "head/b"}),
        ("backbone/**", {"backbone/w"}),
        ("*/w", {"backbone/w", "head/w"}),
        ("head/b", {"head/b"}),
    ],
)
def test_scale_updates_freezes_what_its_pattern_matches(where, scaled):
    _, new = updated(jc.actions.ScaleUpdates(0.0, where))
    left = {f"{a}/{b}": float(jnp.max(x)) for a, part in new.params.items() for b, x in part.items()}
    assert left == {name: 1.0 if name in scaled else 0.0 for name in left}


def test_scales_multiply_and_each_looks_at_its_own_predicate():
    _, new = updated(
        (jc.actions.ScaleUpdates(0.5), jc.actions.ScaleUpdates(0.5, "head/b"), jc.actions.ScaleUpdates(0.0, when=False))
    )
    assert (float(new.params["backbone"]["w"][0]), float(new.params["head"]["b"])) == (0.5, 0.75)


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"where='backbon/\*\*' matches no parameter. Parameters: backbone/w, head/b"):
        updated(jc.actions.ScaleUpdates(0.0, "backbon/**"))


class Freeze(jc.Callback):
    """Freezes the backbone, and skips each third update."""

    where: str = jc.static(default="backbone/**")

    def on_before_update(self, state, metrics):
        return state, (
            jc.actions.ScaleUpdates(0.0, self.where),
            jc.actions.SkipUpdate(when=(metrics.step + 1) % 3 == 0),
        )


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_fit_runs_what_stands_before_the_update(executor):
    traces = []

    def loss(params, batch):
        traces.append(1)
        return flat_loss(params, batch)

    result = jc.fit(
        PARAMS,
        loss,
        LOSSES,
        optimizer=optax.sgd,
        learning_rate=0.125,
        epochs=2,
        batch_size=1,
        callbacks=[Freeze()],
        verbose=0,
        execution=jc.Execution(executor=executor),
    )
    assert int(result.state.step) == 8
    assert float(result.params["backbone"]["w"][0]) == 1.0
    assert float(result.params["head"]["b"]) == 1.0 - 0.125 * 6  # steps 3 and 6 were skipped
    assert len(traces) == 1


def test_fit_refuses_a_pattern_that_matches_nothing_before_the_first_step():
    with pytest.raises(ValueError, match=r"Freeze: where='trunk/.*' matches no parameter"):
        jc.fit(
            PARAMS,
            flat_loss,
            LOSSES,
            optimizer=optax.sgd,
            learning_rate=0.1,
            epochs=1,
            callbacks=[Freeze("trunk/**")],
            verbose=0,
        )


def test_loop_runs_it_with_step_and_refuses_it_with_an_opaque_step():
    state = jc.TrainState.create(params=PARAMS, tx=optax.sgd(0.125))
    result = jc.Loop(jc.Step(flat_loss), callbacks=[Freeze()]).run(state, LOSSES, epochs=1, batch_size=4, verbose=0)
    assert float(result.params["backbone"]["w"][0]) == 1.0
    assert float(result.params["head"]["b"]) == 0.875

    def opaque(state, batch):
        loss, grads = jax.value_and_grad(flat_loss)(state.params, batch)
        return state.apply_gradients(grads), {"loss": loss}

    with pytest.raises(ValueError, match=r"Freeze needs the gradients before the update.*jc.Step\(loss_fn\)"):
        jc.Loop(opaque, callbacks=[Freeze()]).run(state, LOSSES, epochs=1, verbose=0)


@pytest.mark.parametrize("action", [jc.actions.SkipUpdate(), jc.actions.ScaleUpdates(0.5)], ids=type)
def test_actions_on_the_update_are_refused_elsewhere(action):
    late = jc.make_callback(on_batch_end=lambda state, metrics: (state, action), name="Late")
    with pytest.raises(
        ValueError, match=f"Late: {type(action).__name__} acts in on_before_update, not in on_batch_end"
    ):
        jc.fit(PARAMS, flat_loss, LOSSES, optimizer=optax.sgd, learning_rate=0.1, epochs=1, callbacks=[late], verbose=0)
