"""TensorBoard: what it asks for, and when."""

# pyright: reportAttributeAccessIssue=false

import jax.numpy as jnp
import pytest

import jaxcb as jc
from jaxcb._src.core.chain import transition
from jaxcb._src.utils.pytree import to_strong_types


def asked(callback, hook, *, step=0, epoch=0, host=None, **values):
    """The actions that fire in one hook."""
    metrics = jc.Metrics(values, step=step, epoch=epoch, host=host or {})
    _, actions = transition(callback, "TensorBoard", hook, to_strong_types(callback.init()), metrics)
    return jc.fired(actions)


def kinds(actions):
    return [type(action).__name__ for action in actions]


def test_by_default_it_asks_for_curves_a_graph_and_what_was_set():
    callback = jc.TensorBoard()
    assert callback.hooks() == {"on_train_begin", "on_eval_end", "on_epoch_end", "on_train_end"}
    assert kinds(asked(callback, "on_train_begin")) == ["LogConfiguration", "HParams", "Graph"]
    train, validation = asked(callback, "on_epoch_end", loss=0.5, val_loss=0.75, learning_rate=0.1, lr_scale=1.0)
    assert (train.run, sorted(train.values), train.by) == ("train", ["epoch_learning_rate", "epoch_loss"], "epoch")
    assert (validation.run, sorted(validation.values)) == ("validation", ["epoch_loss"])
    (evaluation,) = asked(callback, "on_eval_end", loss=0.5, val_loss=0.75)
    assert (evaluation.run, sorted(evaluation.values)) == ("validation", ["evaluation_loss_vs_iterations"])
    assert evaluation.by == "step"
    (end,) = asked(callback, "on_train_end", loss=0.5, val_loss=0.75, learning_rate=0.1)
    assert sorted(end.final) == ["loss", "val_loss"]


def test_everything_goes_below_its_directory():
    callback = jc.TensorBoard(
        "tb", 1, write_images=True, update_freq=1, profile_batch=1, embeddings_freq=1, histograms=("params", "grads")
    )
    for hook in sorted(callback.hooks()):
        for action in asked(callback, hook, step=1, loss=0.5, val_loss=0.5):
            assert action.log_dir == "tb"


@pytest.mark.parametrize(("freq", "steps"), [("epoch", []), ("batch", [1, 2, 3, 4, 5, 6]), (3, [3, 6])])
def test_batch_curves_have_a_point_every_so_many_steps(freq, steps):
    callback = jc.TensorBoard(update_freq=freq)
    assert ("on_batch_end" in callback.hooks()) == bool(steps)
    if steps:
        found = [s for s in range(1, 7) if kinds(asked(callback, "on_batch_end", step=s, loss=0.5))]
        assert found == steps
        (action,) = asked(callback, "on_batch_end", step=6, loss=0.5)
        assert (sorted(action.values), action.by) == (["batch_loss"], "step")


def test_histograms_images_and_embeddings_come_every_so_many_epochs():
    callback = jc.TensorBoard(histogram_freq=2, write_images=True, embeddings_freq=3)
    found = {e: kinds(asked(callback, "on_epoch_end", epoch=e, loss=0.5)) for e in range(4)}
    assert found[0] == ["Scalars", "Histogram", "Image", "Embedding"]
    assert found[1] == ["Scalars"]
    assert found[2] == ["Scalars", "Histogram", "Image"]
    assert found[3] == ["Scalars", "Embedding"]


def test_what_is_inside_a_step_is_looked_at_in_the_first_one_of_an_epoch():
    callback = jc.TensorBoard(histogram_freq=2, histograms=("grads", "updates"))
    state, found = callback.init(), []
    for step in range(12):  # three steps an epoch
        metrics = jc.Metrics({"loss": 0.5}, step=step, epoch=step // 3)
        state, actions = callback.on_before_update(to_strong_types(state), metrics)
        found += [(step, action.of) for action in jc.fired(to_strong_types(actions))]
    assert found == [(0, "grads"), (0, "updates"), (6, "grads"), (6, "updates")]


@pytest.mark.parametrize(
    ("batches", "begins", "ends"), [(1, 0, 1), (4, 3, 4), ((2, 5), 1, 5), ([1, 3], 0, 3)], ids=repr
)
def test_a_profile_is_of_the_batches_that_are_named(batches, begins, ends):
    callback = jc.TensorBoard(profile_batch=batches)
    found = [(0, a.begins) for a in asked(callback, "on_train_begin") if isinstance(a, jc.actions.Profile)]
    for step in range(1, 8):
        found += [
            (step, a.begins) for a in asked(callback, "on_batch_end", step=step) if isinstance(a, jc.actions.Profile)
        ]
    assert found == [(begins, True), (ends, False)]


def test_the_pace_is_written_where_it_is_asked_for():
    host = {"steps_per_second": jnp.float32(20.0)}
    for wanted in (True, False):
        callback = jc.TensorBoard(write_steps_per_second=wanted)
        (train,) = asked(callback, "on_epoch_end", loss=0.5, host=host)
        assert ("epoch_steps_per_second" in train.values) == wanted
    callback = jc.TensorBoard(write_steps_per_second=True)
    (train,) = asked(callback, "on_epoch_end", loss=0.5, host={"steps_per_second": jnp.nan})
    assert not train.fresh["epoch_steps_per_second"], "before anything was measured there is none"


def test_labels_are_given_for_all_embeddings_or_by_pattern():
    (own,) = jc.TensorBoard(embeddings_freq=1, embeddings_metadata=["a", "b"]).embeddings_metadata
    assert own == ("**embedding", ("a", "b"))
    callback = jc.TensorBoard(embeddings_freq=1, embeddings_metadata={"words/*": "words.tsv", "chars/*": None})
    actions = [a for a in asked(callback, "on_epoch_end", loss=0.5) if isinstance(a, jc.actions.Embedding)]
    assert [(a.where, a.labels) for a in actions] == [("words/*", "words.tsv"), ("chars/*", None)]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"update_freq": "step"}, "update_freq must be one of 'epoch', 'batch', got 'step'"),
        ({"update_freq": 0}, "update_freq must be a whole number of at least 1, got 0"),
        ({"histogram_freq": -1}, "histogram_freq must be a whole number of at least 0, got -1"),
        ({"write_images": True}, "pass histogram_freq=1"),
        ({"histograms": "weights"}, "histograms must be one of 'params', 'grads', 'updates', 'activations'"),
        ({"profile_batch": (3, 2)}, r"profile_batch=\(3, 2\) ends before it begins"),
        ({"profile_batch": (1, 2, 3)}, "profile_batch must be a batch or"),
        ({"profile_batch": "2"}, "profile_batch must be a whole number"),
        ({"embeddings_metadata": "a.tsv"}, "needs embeddings_freq"),
        ({"hparams": {"a": float("nan")}}, "'a' is nan, expected a finite number"),
    ],
    ids=str,
)
def test_arguments_are_checked(arguments, match):
    with pytest.raises(ValueError, match=match):
        jc.TensorBoard(**arguments)


def test_hparams_are_numbers_texts_and_booleans():
    with pytest.raises(TypeError, match="'layers' is a list, expected a number, a text or a boolean"):
        jc.TensorBoard(hparams={"layers": [1, 2]})
