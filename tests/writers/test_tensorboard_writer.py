"""TensorBoard: what compiled runs write, read back by TensorBoard's own reader."""

import io
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from loop._runs import fit, make_driver, make_state
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import jaxcb as jc

STEPS = 5  # of an epoch
EVERYTHING = {"scalars": 0, "histograms": 0, "images": 0, "tensors": 0}


def read(directory):
    reader = EventAccumulator(str(directory), size_guidance=EVERYTHING)
    reader.Reload()
    return reader


def spread(loss):
    """Values that a test can make again."""
    return jnp.sin(jnp.arange(50, dtype=jnp.float32)).reshape(5, 10) * loss


def picture():
    return jnp.linspace(0.0, 1.0, 4 * 6 * 3).reshape(4, 6, 3)


def on_batch_end(state, metrics):
    return state, (
        jc.actions.Scalars({"loss": metrics["loss"], "mae": metrics["mae"]}),
        jc.actions.Histogram("spread", spread(metrics["loss"]), when=metrics.step % 4 == 0),
    )


def on_epoch_end(state, metrics):
    return state, (
        jc.actions.Scalars({"loss": metrics["val_loss"]}, run="validation"),
        jc.actions.Image("color", picture(), when=metrics.epoch == 1),
        jc.actions.Image("gray", jnp.full((3, 5), 7, jnp.uint8)),
        jc.actions.Text("note", "epoch {epoch}: {val_loss:.3f}, {best:.1f}", values={"best": 0.5}),
    )


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_what_callbacks_ask_for_is_in_the_event_files(executor, tmp_path):
    losses = []
    callbacks = [
        jc.make_callback(on_batch_end=on_batch_end, on_epoch_end=on_epoch_end),
        jc.LambdaCallback(on_train_batch_end=lambda batch, logs: losses.append(logs["loss"])),
    ]
    result = fit(executor, epochs=2, callbacks=callbacks, run_dir=tmp_path)
    assert {tmp_path / "logs" / "train", tmp_path / "logs" / "validation"} <= set(result.files)

    train, validation = (read(tmp_path / "logs" / run) for run in ("train", "validation"))
    points = train.Scalars("loss")
    assert [p.step for p in points] == list(range(1, 2 * STEPS + 1))
    np.testing.assert_array_equal(np.float32([p.value for p in points]), np.float32(losses))
    assert len(train.Scalars("mae")) == 2 * STEPS
    points = validation.Scalars("loss")
    assert [p.step for p in points] == [STEPS, 2 * STEPS]
    np.testing.assert_array_equal(np.float32([p.value for p in points]), result.history["val_loss"])

    histograms = train.Histograms("spread")
    assert [h.step for h in histograms] == [4, 8]
    for event in histograms:
        values = np.asarray(spread(np.float32(losses[event.step - 1])))
        histogram = event.histogram_value
        counts, limits = np.histogram(values, bins=64)
        np.testing.assert_allclose(histogram.bucket_limit, limits, rtol=1e-5, atol=1e-6)
        counts, _ = np.histogram(values, bins=histogram.bucket_limit)
        assert histogram.bucket == [0, *counts]
        assert (histogram.num, histogram.min, histogram.max) == (50, values.min(), values.max())
        np.testing.assert_allclose([histogram.sum, histogram.sum_squares], [values.sum(), (values**2).sum()], rtol=1e-4)

    (color,) = train.Images("color")
    assert (color.step, color.height, color.width) == (2 * STEPS, 4, 6)
    pixels = np.asarray(PIL.Image.open(io.BytesIO(color.encoded_image_string)))
    np.testing.assert_array_equal(pixels, np.round(np.asarray(picture()) * 255))
    gray = train.Images("gray")
    assert [(i.step, i.height, i.width) for i in gray] == [(STEPS, 3, 5), (2 * STEPS, 3, 5)]
    assert (np.asarray(PIL.Image.open(io.BytesIO(gray[0].encoded_image_string))) == 7).all()

    notes = [e.tensor_proto.string_val[0].decode() for e in train.Tensors("note/text_summary")]
    assert notes == [f"epoch {i + 1}: {v:.3f}, 0.5" for i, v in enumerate(result.history["val_loss"])]
    assert "tensorflow" not in sys.modules


def test_logs_lie_in_the_working_directory_without_a_run_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    callback = jc.make_callback(
        on_epoch_end=lambda s, m: (s, jc.actions.Scalars({"loss": m["loss"]}, run="mine/train"))
    )
    fit(epochs=1, callbacks=[callback])
    assert [p.step for p in read("logs/mine/train").Scalars("loss")] == [STEPS]


def test_two_runs_within_one_second_keep_their_own_files(tmp_path):
    callback = jc.make_callback(on_epoch_end=lambda s, m: (s, jc.actions.Scalars({"loss": m["loss"]})))
    for _ in range(2):
        fit(epochs=1, callbacks=[callback], run_dir=tmp_path, overwrite=True, validation_data=None)
    assert len(list((tmp_path / "logs" / "train").iterdir())) == 2


def test_files_are_closed_when_a_run_fails(tmp_path):
    def fail(batch, logs):
        if batch == 3:
            raise RuntimeError("enough")

    callbacks = [jc.make_callback(on_batch_end=on_batch_end), jc.LambdaCallback(on_train_batch_end=fail)]
    with pytest.raises(RuntimeError, match="enough"):
        fit(callbacks=callbacks, run_dir=tmp_path)
    assert [p.step for p in read(tmp_path / "logs" / "train").Scalars("loss")] == [1, 2, 3, 4]


def test_each_member_of_a_population_has_its_own_series(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def everything(state, metrics):
        histogram = jc.actions.Histogram("spread", spread(metrics["loss"]))
        return state, (jc.actions.Scalars({"loss": metrics["loss"]}), histogram, jc.actions.Text("note", "{loss:.3f}"))

    states = jax.tree.map(lambda *x: jnp.stack(x), make_state(0), make_state(1))
    make_driver([jc.make_callback(on_epoch_end=everything)], states, members=2, epochs=2).train()
    reader = read("logs/train")
    assert sorted(reader.Tags()["scalars"]) == ["loss/0", "loss/1"]
    assert [len(reader.Histograms(f"spread/{m}")) for m in range(2)] == [2, 2]
    loss = reader.Scalars("loss/1")[0].value
    assert reader.Tensors("note/1/text_summary")[0].tensor_proto.string_val == [f"{loss:.3f}".encode()]


def test_a_place_that_cannot_be_written_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "logs").touch()
    steps = []
    watch = jc.LambdaCallback(on_train_batch_begin=lambda batch, logs: steps.append(batch))
    with pytest.raises(OSError, match=r"cannot write TensorBoard's event files: .*logs/train"):
        fit(callbacks=[jc.make_callback(on_batch_end=on_batch_end), watch], run_dir=tmp_path)
    assert steps == []


@pytest.mark.parametrize(
    "values",
    [[1.0, 1.0, 1.0], [0.0, 1.0, 2.0, 3.0, 3.0], [-3e38, 3e38], [1, 2, 2], [True, False, True], [[-4.0], [0.5]]],
    ids=["equal", "whole", "huge", "integers", "booleans", "two axes"],
)
@pytest.mark.usefixtures("strict_dtypes")
def test_bins_are_those_of_numpy(values):
    histogram = jax.jit(lambda x: jc.actions.Histogram("h", x, bins=3))(jnp.asarray(values))
    with np.errstate(over="ignore"):
        counts, limits = np.histogram(np.asarray(values, np.float64), bins=3)
    np.testing.assert_array_equal(histogram.counts, counts)
    np.testing.assert_allclose(histogram.limits, limits, rtol=1e-6, atol=1e-6)
    assert jax.tree.map(lambda x: str(x.dtype), histogram).counts == "int32"


def test_a_histogram_leaves_out_what_is_not_finite():
    histogram = jc.actions.Histogram("h", jnp.array([jnp.nan, 1.0, jnp.inf, 3.0, -jnp.inf]), bins=2)
    assert histogram.counts.tolist() == [1, 1]
    assert (float(histogram.low), float(histogram.high), float(histogram.total)) == (1.0, 3.0, 4.0)
    nothing = jc.actions.Histogram("h", jnp.full(3, jnp.nan), bins=2)
    assert nothing.counts.tolist() == [0, 0]
    assert bool(jnp.isfinite(nothing.limits).all())


def test_large_counts_are_exact():
    counts = jax.eval_shape(
        lambda x: jc.actions.Histogram("h", x), jax.ShapeDtypeStruct((1 << 25,), jnp.bfloat16)
    ).counts
    assert counts.dtype == jnp.int32, "a float32 counter stands still at 2**24"


def test_pictures_are_uint8_before_they_travel():
    assert jc.actions.Image("a", jnp.array([[-1.0, 0.5, jnp.nan, 2.0]])).image.tolist() == [[0, 128, 0, 255]]
    assert jax.eval_shape(lambda x: jc.actions.Image("a", x), jnp.ones((4, 4, 1))).image.dtype == jnp.uint8


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"Scalars takes scalars, got 'w' of shape \(3,\)"):
        jc.actions.Scalars({"w": jnp.ones(3)})
    with pytest.raises(ValueError, match="Histogram 'h': bins must be an integer above 0, got 0"):
        jc.actions.Histogram("h", jnp.ones(3), bins=0)
    with pytest.raises(ValueError, match=r"Histogram 'h' got an array of shape \(0,\)"):
        jc.actions.Histogram("h", jnp.ones(0))
    with pytest.raises(ValueError, match=r"Image 'i' has shape \(3, 8, 8\), expected \(height, width\)"):
        jc.actions.Image("i", jnp.ones((3, 8, 8)))
    with pytest.raises(TypeError, match="Image 'i' is of int32, expected uint8"):
        jc.actions.Image("i", jnp.ones((8, 8), jnp.int32))


def test_what_writes_is_imported_when_it_is_used():
    code = "import sys, jaxcb; print([m for m in ('tensorboardX', 'orbax') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


def test_a_tag_of_two_kinds_is_refused_before_the_first_step(tmp_path):
    """TensorBoard's pages show the first kind only, as a look at them in a browser found."""

    def both(state, metrics):
        return state, (jc.actions.Histogram("weights", of="params"), jc.actions.Image("weights", of="params"))

    with pytest.raises(ValueError, match=r"both writes images under the tag 'weights', under which both writes histo"):
        fit(callbacks=[jc.make_callback(on_epoch_end=both, name="both")], run_dir=tmp_path)
    apart = [jc.actions.Scalars({"a": 1.0}), jc.actions.Text("a", "a"), jc.actions.Image("a", picture(), run="other")]
    with jc.Recorder(tmp_path / "apart", verbose=0) as recorder:
        for action in apart:
            recorder.perform(action, step=0)
    assert [p.value for p in read(tmp_path / "apart" / "logs" / "train").Scalars("a")] == [1.0]
