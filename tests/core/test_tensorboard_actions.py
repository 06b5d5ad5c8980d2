"""Actions for TensorBoard beside curves: what they take and refuse, and what a recorder makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import jaxcb as jc
from jaxcb._src.storage.ownership import RunRecord
from jaxcb._src.writers.tensorboard.projector import Projector


def read(directory):
    reader = EventAccumulator(str(directory), size_guidance={"images": 0, "tensors": 0, "scalars": 0})
    reader.Reload()
    return reader


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: jc.actions.Embedding("e"), "takes either an array or of="),
        (lambda: jc.actions.Embedding("e", jnp.ones(3)), r"vectors of shape \(3,\), expected \(rows, size\)"),
        (lambda: jc.actions.Embedding("e", jnp.ones((3, 2)), ("a", "b")), "has 3 rows and 2 labels"),
        (
            lambda: jc.actions.Embedding("e", jnp.ones((3, 2)), classes=jnp.zeros(2, jnp.int32)),
            r"integers of shape \(3,\)",
        ),
        (lambda: jc.actions.Embedding("e", jnp.ones((3, 2)), classes=jnp.zeros(3)), r"integers of shape \(3,\)"),
        (lambda: jc.actions.Embedding("e", jnp.ones((3, 2)), sprites=jnp.ones((2, 4, 4))), "3 rows and 2 sprites"),
        (
            lambda: jc.actions.Embedding("e", jnp.ones((3, 2)), sprites=jnp.ones((3, 4))),
            r"expected \(rows, height, width\)",
        ),
        (lambda: jc.actions.Figure("f", max, {"x": 1.0}, of="params"), "takes either values or of="),
        (lambda: jc.actions.HParams(final={"loss": jnp.ones(2)}), "final takes scalars, got 'loss' of shape"),
    ],
)
def test_what_does_not_fit_together_is_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: jc.actions.Figure("f", "draw"), "takes a function of its values, got a str"),
        (lambda: jc.actions.Graph(jnp.sin), "takes the result of jax.make_jaxpr"),
        (lambda: jc.actions.Embedding("e", jnp.ones((3, 2), jnp.complex64)), "expected real numbers"),
    ],
)
def test_what_is_of_another_kind_is_refused(make, match):
    with pytest.raises(TypeError, match=match):
        make()


def test_a_recorder_performs_them_all(tmp_path):
    state = jc.TrainState.create(params={"a": {"embedding": jnp.eye(3)}, "b": jnp.ones(2)})
    matplotlib = pytest.importorskip("matplotlib.figure")

    def draw(values):
        figure = matplotlib.Figure(figsize=(2, 1), dpi=50)
        figure.subplots().plot(values["b"])
        return figure

    jaxpr = jax.make_jaxpr(lambda params, x: x @ params["w"])({"w": jnp.ones((3, 2))}, jnp.ones(3))
    with jc.Recorder(tmp_path, verbose=0) as recorder:
        actions = (
            jc.actions.Graph(jaxpr),
            jc.actions.HParams({"units": 3}),
            jc.actions.Figure("weights", draw, of="params", where="b"),
            jc.actions.Embedding("words", of="params", where="**embedding", labels=("a", "b", "c")),
            jc.actions.Embedding("twice", of=lambda train: 2.0 * train.params["a"]["embedding"], classes=jnp.arange(3)),
        )
        recorder.perform(actions, state, step=7)
        recorder.perform(jc.actions.HParams(final={"loss": 0.5}), step=9)
    train = read(tmp_path / "logs" / "train")
    assert [node.name for node in train.Graph().node][-1] == "output_0"
    (image,) = train.Images("weights")
    assert (image.step, image.width, image.height) == (7, 100, 50)
    (final,) = read(tmp_path / "logs" / "hparams").Scalars("final/loss")
    assert (final.step, final.value) == (9, 0.5)
    room = tmp_path / "logs" / "train" / "projector"
    vectors = np.loadtxt(room / "twice_step_7" / "vectors.tsv", dtype=np.float32)
    np.testing.assert_array_equal(vectors, 2.0 * np.eye(3))
    assert (room / "twice_step_7" / "labels.tsv").read_text() == "0\n1\n2\n"
    assert (room / "words_a_embedding_step_7" / "labels.tsv").read_text() == "a\nb\nc\n"


def test_a_recorder_knows_no_step_to_draw(tmp_path):
    with (
        jc.Recorder(tmp_path, verbose=0) as recorder,
        pytest.raises(ValueError, match="not available in a hand-written loop: pass Graph"),
    ):
        recorder.perform(jc.actions.Graph(), step=0)


def test_labels_that_are_no_file_are_refused(tmp_path):
    with (
        jc.Recorder(tmp_path, verbose=0) as recorder,
        pytest.raises(FileNotFoundError, match=r"labels of Embedding 'e' are in .*words.tsv, which is not a file"),
    ):
        recorder.perform(jc.actions.Embedding("e", jnp.eye(2), str(tmp_path / "words.tsv")), step=0)


def test_labels_of_several_columns_come_from_a_file(tmp_path):
    labels = tmp_path / "words.tsv"
    labels.write_text("word\tcount\ncat\t3\ndog\t5\n")
    with jc.Recorder(tmp_path, verbose=0) as recorder:
        recorder.perform(jc.actions.Embedding("e", jnp.eye(2), labels), step=0)
    assert (tmp_path / "logs/train/projector/e_step_0/labels.tsv").read_text() == labels.read_text()


def test_labels_with_tabs_and_newlines_keep_their_row(tmp_path):
    with jc.Recorder(tmp_path, verbose=0) as recorder:
        recorder.perform(jc.actions.Embedding("e", jnp.eye(3), ("a\tb", "c\nd", "")), step=0)
    lines = (tmp_path / "logs/train/projector/e_step_0/labels.tsv").read_text().split("\n")
    assert lines == ["a b", "c d", " ", ""]


def test_names_that_differ_in_punctuation_keep_their_files_apart(tmp_path):
    projector = Projector(tmp_path)
    for value, name in enumerate(("a b", "a/b", "a_b")):
        projector.add(name, np.full((2, 2), float(value), np.float32), None)
    found = sorted(path.read_text().split()[0] for path in tmp_path.glob("projector/*/vectors.tsv"))
    assert [float(x) for x in found] == [0.0, 1.0, 2.0]


def test_a_projector_goes_back_to_what_it_had(tmp_path):
    record = RunRecord()
    projector = Projector(tmp_path, record)
    projector.add("first", np.eye(2, dtype=np.float32), None)
    position, before = projector.position(), (tmp_path / "projector_config.pbtxt").read_text()
    projector.add("second", np.eye(2, dtype=np.float32), [["a", "b"]])
    Projector(tmp_path, record).restore(position)
    assert (tmp_path / "projector_config.pbtxt").read_text() == before
    assert [p.name for p in (tmp_path / "projector").iterdir()] == ["first"]
    Projector(tmp_path, record).restore([])
    assert not (tmp_path / "projector_config.pbtxt").exists()
    assert not list((tmp_path / "projector").iterdir())


def test_two_runs_have_their_embeddings_in_one_directory(tmp_path):
    """Folders and the configuration are shared; a run goes back without the other one's."""
    config, eye = tmp_path / "projector_config.pbtxt", np.eye(2, dtype=np.float32)
    config.write_text('embeddings {\n  tensor_name: "theirs"\n}\n')
    records = RunRecord(), RunRecord()
    one, other = (Projector(tmp_path, record) for record in records)
    one.add("same", eye, None)
    other.add("same", 2 * eye, None)
    position = one.position()
    one.add("größer", eye, [["a", "b"]])
    (tmp_path / "projector" / "same" / "notes.txt").write_text("theirs")
    Projector(tmp_path, records[0]).restore(position)
    rooms = {p.name: np.loadtxt(p / "vectors.tsv")[0, 0] for p in (tmp_path / "projector").iterdir()}
    assert rooms == {"same": 1, "same_": 2}
    assert config.read_text().count("embeddings") == 3
    Projector(tmp_path, records[0]).restore([])
    assert config.read_text().count("embeddings") == 2
    assert '"theirs"' in config.read_text()
    assert "projector/same_/vectors.tsv" in config.read_text()
    assert [p.name for p in (tmp_path / "projector" / "same").iterdir()] == ["notes.txt"]


def test_a_profile_beside_another_is_an_error_that_says_so(tmp_path):
    jax.profiler.start_trace(str(tmp_path / "other"))
    try:
        with (
            jc.Recorder(tmp_path, verbose=0) as recorder,
            pytest.raises(RuntimeError, match="stop the other one first"),
        ):
            recorder.perform(jc.actions.Profile(True), jc.TrainState.create(params={"w": jnp.ones(1)}), step=0)
    finally:
        jax.profiler.stop_trace()
