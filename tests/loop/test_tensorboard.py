"""TensorBoard: a run with all of it, read back by TensorBoard's own readers; and the same run cut short and resumed."""

import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import PIL.Image
import pytest
from loop import _runs
from loop._events import events_of, written
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context as HParamsContext
from tensorboard.plugins.hparams.list_session_groups import Handler

import jaxcb as jc

WORDS = [f"word {i}" for i in range(6)]
EPOCHS, STEPS = 4, 5
EVERYTHING = {"scalars": 0, "histograms": 0, "images": 0, "tensors": 0}


class Cut(Exception):
    """Ends a run as a crash would: nothing is saved on the way out."""


def cut(run):
    raise Cut


def make_model():
    return {"embed": {"embedding": 0.1 * jnp.arange(12.0).reshape(6, 2)}, "out": {"w": jnp.ones((5, 1))}}


def make_data():
    x, y = _runs.make_data()
    return x, np.arange(len(x), dtype=np.int32) % 6, y


def loss_fn(params, batch):
    x, words, y = batch
    both = jnp.concatenate([x, params["embed"]["embedding"][words]], axis=1)
    error = jnp.tanh(both) @ params["out"]["w"] - y
    return jnp.mean(error**2), {"mae": jnp.mean(jnp.abs(error))}


class More(jc.Callback):
    """A user's own callback that asks for what the built-in one does not."""

    def on_epoch_end(self, state, metrics):
        words = jc.actions.Embedding(
            "scaled", of=lambda train: train.params["embed"]["embedding"] * 10.0, classes=jnp.arange(6) % 2,
            labels=("even", "odd"), sprites=jnp.ones((6, 4, 3)) * 0.5, when=metrics.epoch == 1,
        )  # fmt: skip
        figure = jc.actions.Figure(
            "bar", lambda values: np.full((2, 3), values["loss"] * 0.0), {"loss": metrics["loss"]}
        )
        return state, (words, figure, jc.actions.Text("note", "{loss:.3f}"))


def run(directory, at=None, executor="looped", **changes):
    board = jc.TensorBoard(
        histogram_freq=2, write_images=True, update_freq=2, profile_batch=(3, 4), embeddings_freq=3,
        embeddings_metadata=WORDS, histograms=("params", "grads"), hparams={"units": 3, "kind": "plain"},
    )  # fmt: skip
    stop = jc.make_callback(
        on_batch_end=lambda s, m: (s, jc.actions.Call(cut, when=m.step == (at or -1))), name="CutAt"
    )
    given = {
        "model": make_model(), "loss_fn": loss_fn, "data": make_data(), "validation_data": make_data(),
        "epochs": EPOCHS, "run_dir": directory, "resume": True,
        "callbacks": [board, More(), jc.ReduceLROnPlateau(patience=3), jc.BackupAndRestore("below", save_freq=3), stop],
    }  # fmt: skip
    with warnings.catch_warnings():
        if at is None:
            return _runs.fit(executor, **(given | changes))
        with pytest.raises(Cut):
            _runs.fit(executor, **(given | changes))
        return None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never cut short: its directory and result."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, run(directory)


@pytest.fixture(scope="module")
def train(whole):
    return read(whole[0] / "logs" / "train")


def read(directory):
    reader = EventAccumulator(str(directory), size_guidance=EVERYTHING)
    reader.Reload()
    return reader


def points(reader, tag):
    return [p.step for p in reader.Scalars(tag)], np.float32([p.value for p in reader.Scalars(tag)])


def test_runs_tags_and_steps_are_those_of_keras(whole, train):
    directory, result = whole
    validation = read(directory / "logs" / "validation")
    epochs = list(range(EPOCHS))
    for name in ("loss", "mae", "learning_rate"):
        steps, values = points(train, f"epoch_{name}")
        assert steps == epochs
        np.testing.assert_array_equal(values, result.history[name])
        assert points(train, f"batch_{name}")[0] == list(range(2, EPOCHS * STEPS + 1, 2))
    for name in ("loss", "mae"):
        steps, values = points(validation, f"epoch_{name}")
        assert steps == epochs
        np.testing.assert_array_equal(values, result.history[f"val_{name}"])
        assert points(validation, f"evaluation_{name}_vs_iterations")[0] == [STEPS * (e + 1) for e in epochs]
    assert not {"epoch_val_loss", "epoch_base_learning_rate"} & set(train.Tags()["scalars"])
    assert {p.name for p in (directory / "logs").iterdir()} == {"train", "validation", "hparams", "plugins"}


def test_histograms_images_and_texts_stand_at_their_epochs(train):
    tags = train.Tags()
    arrays = ("embed/embedding", "out/w")
    assert set(tags["histograms"]) == {f"{kind}/{name}" for kind in ("weights", "gradients") for name in arrays}
    for tag in tags["histograms"]:
        assert [h.step for h in train.Histograms(tag)] == [0, 2]
        size = 12 if "embed" in tag else 5
        assert {sum(h.histogram_value.bucket) for h in train.Histograms(tag)} == {size}
    assert [i.step for i in train.Images("images/out/w")] == [0, 2]
    assert [i.step for i in train.Images("bar")] == [STEPS * (e + 1) for e in range(EPOCHS)]
    assert (train.Images("bar")[0].height, train.Images("bar")[0].width) == (2, 3)
    (text,) = train.Tensors("configuration/text_summary")
    told = text.tensor_proto.string_val[0].decode()
    for part in (
        f"| epochs | `{EPOCHS}` |",
        "| optimizer | `adam` |",
        "| learning_rate | `0.05` |",
        "- More: `More(name",
    ):
        assert part in told


def test_the_graph_is_that_of_the_loss(train):
    nodes = {node.name: node for node in train.Graph().node}
    assert all(name.split(":")[0] in nodes for node in nodes.values() for name in node.input)
    product = nodes["out/dot_general"]
    assert list(product.input) == ["tanh", "out/w"]
    (shape,) = nodes["out/w"].attr["_output_shapes"].list.shape
    assert [d.size for d in shape.dim] == [5, 1]
    assert nodes["embed/embedding"].op == "Parameter"
    assert nodes["loss"].op == "Output"
    assert {"batch/0", "batch/1", "batch/2"} < nodes.keys()
    assert not any("opt_state" in name for name in nodes)


def projector_of(directory):
    """What TensorBoard's projector plugin makes of a directory of runs."""
    from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin

    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(directory))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(directory))
    plugin = ProjectorPlugin(TBContext(data_provider=provider, logdir=str(directory)))
    plugin._update_configs()
    return plugin._configs


def test_the_projector_finds_vectors_labels_and_sprites(whole):
    directory = whole[0] / "logs"
    found = {e.tensor_name: e for e in projector_of(directory)["train"].embeddings}
    assert set(found) == {"weights/embed/embedding epoch 0", "scaled step 10", "weights/embed/embedding epoch 3"}
    last = found["weights/embed/embedding epoch 3"]
    assert list(last.tensor_shape) == [6, 2]
    vectors = np.loadtxt(directory / "train" / last.tensor_path, dtype=np.float32)
    np.testing.assert_array_equal(vectors, whole[1].params["embed"]["embedding"])
    assert (directory / "train" / last.metadata_path).read_text().splitlines() == WORDS
    scaled = found["scaled step 10"]
    assert (directory / "train" / scaled.metadata_path).read_text().split() == ["even", "odd"] * 3
    assert list(scaled.sprite.single_image_dim) == [3, 4]
    sheet = PIL.Image.open(directory / "train" / scaled.sprite.image_path)
    assert sheet.size == (9, 12)  # three by three pictures
    pixels = np.asarray(sheet)
    assert (pixels[:8] == 128).all(), "the first six of them are grey"
    assert (pixels[8:] == 0).all()


def groups_of(directory):
    """The lines of TensorBoard's HParams page."""
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(directory))
    multiplexer.Reload()
    context = HParamsContext(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(directory))))
    asked = api_pb2.ListSessionGroupsRequest(  # pyright: ignore[reportAttributeAccessIssue]
        start_index=0,
        slice_size=100,
        allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_UNKNOWN],  # pyright: ignore[reportAttributeAccessIssue]
    )
    experiment = context.experiment_from_metadata(
        RequestContext(), "", True, context.hparams_metadata(RequestContext(), ""), []
    )
    for info in experiment.metric_infos:
        asked.col_params.add(metric=info.name)
    handler = Handler(RequestContext(), context, "", asked)
    return list(handler.run().session_groups)


def test_the_hparams_page_has_a_line_of_settings_and_final_metrics(whole):
    directory, result = whole
    (group,) = groups_of(directory)
    assert group.hparams["batch_size"].number_value == 16
    assert group.hparams["learning_rate"].number_value == pytest.approx(0.05)
    assert group.hparams["ReduceLROnPlateau.patience"].number_value == 3
    assert group.hparams["kind"].string_value == "plain"
    assert group.hparams["shuffle"].bool_value is True
    final = {m.name.tag: m.value for m in group.metric_values}
    assert set(final) == {"final/loss", "final/mae", "final/val_loss", "final/val_mae"}
    for name in ("loss", "val_loss"):
        assert np.float32(final[f"final/{name}"]) == result.history[name][-1]
    (session,) = group.sessions
    assert session.status == api_pb2.STATUS_SUCCESS  # pyright: ignore[reportAttributeAccessIssue]


def test_runs_side_by_side_have_a_line_each(tmp_path, whole):
    for name, units in (("a", 1), ("b", 2)):
        board = jc.TensorBoard(write_graph=False, hparams={"units": units, name: True})
        _runs.fit(epochs=1, callbacks=[board], run_dir=tmp_path / name, validation_data=None)
    lines = groups_of(tmp_path)
    assert sorted(line.hparams["units"].number_value for line in lines) == [1, 2]


def test_the_chosen_batches_are_profiled(whole):
    (profile,) = (whole[0] / "logs" / "plugins" / "profile").iterdir()
    (planes,) = profile.glob("*.xplane.pb")
    assert planes.stat().st_size > 0
    assert (whole[0] / "logs" / "plugins" / "profile") in whole[1].files


def test_nothing_imports_tensorflow(whole):
    assert "tensorflow" not in sys.modules
    code = "import sys, jaxcb, jaxcb._src.writers.tensorboard.writer; print('tensorflow' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "False"


CUTS = [12, *(pytest.param(at, marks=pytest.mark.long) for at in (1, 3, 4, 7, 10, 16, 20))]


@pytest.mark.parametrize("at", CUTS)
def test_a_run_that_was_cut_short_has_written_the_same(tmp_path, whole, at):
    run(tmp_path, at)
    result = run(tmp_path)
    whole_run, resumed = written(whole[0] / "logs"), written(tmp_path / "logs")
    assert resumed.keys() == whole_run.keys()
    for name, own in whole_run.items():
        assert resumed[name] == own, name
    assert len(whole_run["train"]) > 30
    np.testing.assert_array_equal(result.history["loss"], whole[1].history["loss"])


def test_a_run_that_goes_on_for_longer_has_one_end(tmp_path):
    board = jc.TensorBoard(write_graph=False)
    for epochs in (1, 2):
        _runs.fit(epochs=epochs, callbacks=[board], run_dir=tmp_path, resume=True)
    ends = [v.tag for e in events_of(tmp_path / "logs" / "hparams") for v in e.summary.value]
    assert ends.count("_hparams_/session_end_info") == 1
    assert points(read(tmp_path / "logs" / "train"), "epoch_loss")[0] == [0, 1]


def test_a_training_step_of_ones_own_is_drawn_as_well(tmp_path):
    def train_step(state, batch):
        loss, grads = jax.value_and_grad(lambda p: loss_fn(p, batch)[0])(state.params)
        return state.apply_gradients(grads), {"loss": loss, "norm": optax.tree.norm(grads)}

    state = jc.TrainState.create(params=make_model(), tx=optax.sgd(0.1))
    loop = jc.Loop(train_step, callbacks=[jc.TensorBoard()])
    loop.run(state, make_data(), epochs=1, batch_size=16, verbose=0, run_dir=tmp_path)
    nodes = {node.name: node for node in read(tmp_path / "logs" / "train").Graph().node}
    (product,) = (node for node in nodes.values() if node.op == "dot_general")
    assert product.input[1].endswith("out/w") or product.input[1].endswith("/w")
    assert [node.name for node in nodes.values() if node.op == "Output"] == ["loss"]


def test_each_member_of_a_population_has_its_own_line_and_there_is_one_graph(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    states = jax.tree.map(lambda *x: jnp.stack(x), _runs.make_state(0), _runs.make_state(1))
    _runs.make_driver([jc.TensorBoard()], states, members=2, epochs=1).train()
    assert len([e for e in events_of(tmp_path / "logs" / "train") if e.HasField("graph_def")]) == 1
    assert {"epoch_loss/0", "epoch_loss/1"} <= set(read(tmp_path / "logs" / "train").Tags()["scalars"])
    assert {"final/loss/0", "final/loss/1"} <= set(read(tmp_path / "logs" / "hparams").Tags()["scalars"])


def test_a_run_that_fails_at_its_beginning_has_begun_once(tmp_path):
    fail = [True]

    def once(run):
        if fail.pop() if fail else False:
            raise Cut

    callbacks = [
        jc.TensorBoard(),
        jc.make_callback(on_train_begin=lambda s, m: (s, jc.actions.Call(once)), name="Once"),
    ]
    with pytest.raises(Cut):
        _runs.fit(epochs=1, callbacks=callbacks, run_dir=tmp_path, resume=True)
    _runs.fit(epochs=1, callbacks=callbacks, run_dir=tmp_path, resume=True)
    events = events_of(tmp_path / "logs" / "train")
    assert len([e for e in events if e.HasField("graph_def")]) == 1
    tags = [v.tag for e in events for v in e.summary.value]
    assert tags.count("configuration/text_summary") == tags.count("epoch_loss") == 1


def test_a_drawing_that_fails_warns_once_and_the_run_goes_on(tmp_path, monkeypatch):
    class Draws(jc.Callback):
        def on_epoch_end(self, state, metrics):
            return state, jc.actions.Figure("mine", lambda values: 1 / 0, {"loss": metrics["loss"]})

    def fails(*args):
        raise RuntimeError("no graph")

    monkeypatch.setattr("jaxcb._src.writers.tensorboard.writer.draw", fails)
    with pytest.warns(RuntimeWarning, match="could not draw") as seen:
        result = _runs.fit(epochs=3, run_dir=tmp_path, callbacks=[jc.TensorBoard(), Draws()])
    assert int(result.state.step) == 15
    graph, figure = [str(w.message) for w in seen]
    assert "TensorBoard could not draw the graph of the step: RuntimeError: no graph" in graph
    assert "Draws could not draw the Figure 'mine' at step 5: ZeroDivisionError" in figure
