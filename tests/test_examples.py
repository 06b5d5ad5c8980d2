"""The examples run as their pages say, small here, and in full behind the `deep` marker."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp

import jaxcb as jc

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
pytestmark = pytest.mark.usefixtures("children_share_the_cache")


@pytest.fixture
def example(monkeypatch):
    """Imports an example by name."""
    monkeypatch.syspath_prepend(EXAMPLES)
    with jax.numpy_rank_promotion("allow"):  # as it is where users run them
        yield lambda name: __import__(name)


def run(name: str, *arguments: object) -> str:
    """Runs an example as a user does, and returns what it printed."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(x):
    """Returns an array, or the numbers of keys."""
    return jax.random.key_data(x) if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key) else x


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", pytest.param("digits_linen", marks=pytest.mark.long)])
def test_digits_in_short(name, tmp_path):
    pytest.importorskip("sklearn")
    out = run(f"{name}.py", "--run-dir", tmp_path / "run", "--epochs", 2)
    assert "test accuracy" in out
    assert "all epochs done" in out
    for file in ("history.csv", "log.csv", "curves.png"):
        assert (tmp_path / "run" / file).stat().st_size > 0
        assert file in out
    assert len((tmp_path / "run" / "log.csv").read_text().splitlines()) == 3


@pytest.mark.long
def test_distributed_digits_in_short(tmp_path):
    pytest.importorskip("sklearn")
    arguments = ("distributed_digits.py", "--processes", 2, "--run-dir", tmp_path / "run", "--epochs", 2)
    out = run(*arguments)
    assert "2 processes, 2 devices" in out
    assert out.count("test accuracy") == 1
    assert len((tmp_path / "run" / "log.csv").read_text().splitlines()) == 3
    assert "this is its result" in run(*arguments)  # the same command again: it is done


@pytest.mark.slow
@pytest.mark.long
def test_sweep_digits_in_short(tmp_path):
    pytest.importorskip("sklearn")
    out = run("sweep_digits.py", "--run-dir", tmp_path / "run", "--members", 4, "--epochs", 3)
    assert "4 members by their best val_loss" in out
    assert "test accuracy" in out
    for file in ("history.csv", "table.csv", "sweep.png"):
        assert (tmp_path / "run" / file).stat().st_size > 0
        assert file in out
    assert len((tmp_path / "run" / "table.csv").read_text().splitlines()) == 5


@pytest.mark.deep
def test_sweep_digits_in_full(tmp_path):
    pytest.importorskip("sklearn")
    out = run("sweep_digits.py", "--run-dir", tmp_path / "run")
    assert float(out.split("test accuracy")[1].split("%")[0]) >= 94.0


@pytest.mark.deep
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["digits", "digits_linen"])
def test_digits_in_full(name, seed, tmp_path):
    pytest.importorskip("sklearn")
    out = run(f"{name}.py", "--run-dir", tmp_path / "run", "--seed", seed)
    accuracy = float(out.split("test accuracy")[1].split("%")[0])
    assert accuracy >= 98.0
    assert "EarlyStopping: val_loss has not improved for 8 reports" in out
    assert "ReduceLROnPlateau multiplies the learning rate" in out


def test_digits_parts_share_no_image(example):
    pytest.importorskip("sklearn")
    parts = [images.reshape(len(images), -1) for images, _ in example("_digits_data").load()]
    assert [len(part) for part in parts] == [1149, 288, 360]
    rows = [{row.tobytes() for row in part} for part in parts]
    assert len(set().union(*rows)) == sum(len(part) for part in rows)


def test_digits_shift_moves_by_one_pixel_at_most(example):
    pytest.importorskip("sklearn")
    images = np.zeros((50, 8, 8, 1), np.float32)
    images[:, 4, 4] = 1.0
    moved = np.asarray(example("_digits_data").shift(images, jax.random.key(0)))
    places = {tuple(place) for place in np.argwhere(moved)[:, 1:3].tolist()}
    assert places == {(row, column) for row in (3, 4, 5) for column in (3, 4, 5)}


def test_own_callback(example, tmp_path, capsys):
    example("own_callback").main(tmp_path / "run")
    out = capsys.readouterr().out.splitlines()
    assert "StopOnGap: val_loss is" in out[0]
    stopped = [int(line.rsplit(" ", 1)[1]) for line in out[1:]]
    assert stopped == sorted(stopped)  # a wider gap takes longer


def test_own_callback_keeps_the_laws(example):
    example("own_callback").test_stop_on_gap()


def test_picture_marks_what_happened(example, tmp_path):
    pytest.importorskip("matplotlib")
    own = example("own_callback")
    early = jc.EarlyStopping(patience=4, restore_best_weights=True)
    result = jc.fit(
        own.network(seed=0),
        own.loss_fn,
        own.noisy_rows(seed=1),
        optimizer=optax.adam,
        learning_rate=1e-2,
        epochs=200,
        validation_data={"near": own.noisy_rows(seed=2), "far": own.noisy_rows(seed=3)},
        callbacks=[early.replace(monitor="val_far_loss"), jc.ReduceLROnPlateau("val_near_loss", patience=2)],
        verbose=0,
    )
    figure = result.plot(tmp_path / "curves.png")
    loss, rate = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["best epoch", "rate cut", "stop"]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["train", "far", "near"]
    assert (loss.get_ylabel(), rate.get_ylabel()) == ("loss", "learning rate")
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_hand_loops_agree(example, capsys):
    by_hand, compiled = example("hand_loop").main()
    assert "EarlyStopping: val_loss has not improved for 6 reports" in capsys.readouterr().out
    assert int(by_hand.step) == int(compiled.step)
    for a, b in zip(jax.tree.leaves(by_hand.params), jax.tree.leaves(compiled.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.long
@pytest.mark.slow
def test_gan_in_short(tmp_path):
    out = run("gan.py", "--run-dir", tmp_path / "run", "--epochs", 2)
    assert re.search(r"^modes      \d of 8, ", out, re.MULTILINE)
    assert "EarlyStopping" not in out.split("end  ")[1]
    header, *rows = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert {"discriminator_loss", "generator_loss", "val_distance", "val_modes"} <= set(header.split(","))
    assert len(rows) == 2


@pytest.mark.deep
@pytest.mark.parametrize("seed", [0, 1])
def test_gan_in_full(seed, tmp_path):
    out = run("gan.py", "--run-dir", tmp_path / "run", "--seed", seed)
    assert "modes      8 of 8" in out
    assert float(re.search(r"distance   ([\d.]+);", out).group(1)) < 0.05


def test_gan_distance_is_one_between_sets(example):
    gan = example("gan")
    a, b = gan.ring(64, seed=0), gan.ring(64, seed=1)
    assert float(gan.distance(a, a[::-1])) == pytest.approx(0.0, abs=1e-6)
    assert float(gan.distance(a, b)) == pytest.approx(float(gan.distance(b, a)), rel=1e-5)
    # a shift moves each point by its part along each side: on average 2 / pi of it
    assert float(gan.distance(a, a + np.float32([3.0, 0.0]))) == pytest.approx(3.0 * 2 / np.pi, rel=1e-2)


@pytest.mark.long
@pytest.mark.slow
def test_finetune_in_short():
    pytest.importorskip("sklearn")
    out = run("finetune.py", "--epochs", 4, "--low-epochs", 2)
    moved = [float(percent) for percent in re.findall(r"% +([\d.]+)%$", out, re.MULTILINE)]
    assert len(moved) == 4
    assert moved[2] == 0.0  # frozen for ever
    assert 0.0 < moved[3] < moved[1]  # frozen for half of the time, and never


@pytest.mark.long
@pytest.mark.slow
def test_lora_in_short(tmp_path):
    pytest.importorskip("sklearn")
    out = run("lora.py", "--run-dir", tmp_path / "run", "--epochs", 2, "--base-epochs", 1)
    assert "trains 4,096 of 105,930 parameters (3.87%)" in out
    assert float(re.search(r"differ by (\S+)$", out, re.MULTILINE)[1]) < 1e-5  # by jaxcb and by hand
    by_us, by_hand = re.findall(r"LoRA.*, turned digits +([\d.]+)%", out)
    assert abs(float(by_us) - float(by_hand)) < 0.5
    small, large = map(int, re.findall(r"(\d+) KiB", out.splitlines()[-1]))
    assert small < large / 4


def test_finetune_keeps_the_digits_that_it_is_told(example):
    pytest.importorskip("sklearn")
    labels = np.asarray([7, 1, 5, 9, 5, 5, 3], np.int32)
    images, kept = example("finetune").only((np.arange(7), labels), range(5, 10), of_each=2)
    assert images.tolist() == [2, 4, 0, 3]
    assert kept.tolist() == [0, 0, 2, 4]


@pytest.mark.long
@pytest.mark.slow
def test_lm_in_short(tmp_path):
    out = run("lm.py", "--run-dir", tmp_path / "run", "--steps", 8, "--batch-size", 2)
    assert out.count("--- a sample at step") == 8  # a validation at each step
    assert re.search(r"counting bytes +\d\.\d\d", out)
    header, *rows = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert {"grad_norm", "val_bits_per_byte", "learning_rate"} <= set(header.split(","))
    assert len(rows) == 8
    assert "tokens/s" in out


@pytest.mark.deep
def test_lm_in_full(tmp_path):
    out = run("lm.py", "--run-dir", tmp_path / "run")
    bits = {
        name: float(re.search(rf"  {name} +([\d.]+)$", out, re.MULTILINE).group(1))
        for name in ("counting bytes", "counting pairs", "this model")
    }
    assert bits["this model"] < bits["counting pairs"] - 0.5 < bits["counting bytes"] - 1.0


def test_lm_windows_are_pieces_of_the_text_and_the_same_for_a_seed(example):
    lm = example("lm")
    text = np.random.default_rng(0).integers(256, size=2000).astype(np.uint8)
    batches, again = lm.windows(text, 4, seed=1), lm.windows(text, 4, seed=1)
    for _ in range(3):
        batch = next(batches)
        assert batch.shape == (4, lm.CONTEXT + 1)
        assert all(row.astype(np.uint8).tobytes() in text.tobytes() for row in batch)
        np.testing.assert_array_equal(batch, next(again))


def test_lm_modules_for_validation_are_none_of_training(example):
    training, validation = (text.tobytes() for text in example("lm").read_texts())
    assert len(training) > 5 * len(validation) > 0
    assert validation[:2000] not in training


def test_lm_sees_only_what_came_before(example):
    lm = example("lm")
    model = lm.Transformer(lm.nnx.Rngs(0))
    tokens = jax.random.randint(jax.random.key(0), (1, 12), 0, 256)
    logits, changed = model(tokens), model(tokens.at[0, 7].add(1))
    np.testing.assert_allclose(logits[:, :7], changed[:, :7], atol=1e-5)
    assert not np.allclose(logits[:, 7], changed[:, 7], atol=1e-3)


# The loops that `jc.scan` and `jc.Loop` replace: equal numbers, as long as rounding does not matter


@pytest.mark.long
@pytest.mark.slow
def test_ppo_is_the_loop_by_hand_and_each_seed_stops_alone(example, monkeypatch):
    ppo = example("ppo")
    monkeypatch.setattr(ppo, "STEPS", 16)
    stop_below = jc.EarlyStopping("episode_return", mode="max", patience=1, min_delta=1e6, restore_best_weights=True)
    keys = jax.random.split(jax.random.key(0), 3)
    _, values = jax.jit(jax.vmap(lambda key: ppo.by_hand(key, 6)))(keys)

    @jax.jit
    @jax.vmap
    def train(key):
        first = jc.scan([stop_below, jc.History()], ppo.update, ppo.start(key), 2, steps_per_epoch=1)
        whole = jc.scan([jc.History()], ppo.update, ppo.start(key), 6, steps_per_epoch=1)
        return first, whole

    first, whole = train(keys)
    row = whole.records.of(jc.actions.LogHistory)[0]
    for name in ("loss", "episode_return"):
        np.testing.assert_allclose(row.values[name], values[name], rtol=1e-4)
    assert first.step.tolist() == [2, 2, 2]
    weights, other = (jax.tree.leaves(run.state.train.params)[0] for run in (first, whole))
    assert not np.array_equal(weights, other)


@pytest.mark.long
@pytest.mark.slow
def test_ppo_in_parts_is_the_whole_run(example, monkeypatch, tmp_path):
    ppo = example("ppo")
    monkeypatch.setattr(ppo, "STEPS", 8)
    monkeypatch.setattr(ppo, "EPOCH", 2)
    keys = jax.random.split(jax.random.key(0), 2)
    whole, (*_, last) = ppo.begin(keys, 6), ppo.in_parts(tmp_path, keys, [3, 3])
    for a, b in zip(jax.tree.leaves(last.state.train.params), jax.tree.leaves(whole.state.train.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert ppo.curves(whole).shape == (2, 3)
    *_, again = ppo.in_parts(tmp_path, keys, [3, 3])  # from the disk
    assert jax.tree.structure(again) == jax.tree.structure(last)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(last), strict=True):
        np.testing.assert_array_equal(*map(numbers, (a, b)))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_ppo_that_is_killed_ends_with_the_same_bits(tmp_path):
    options = ("--seeds", 2, "--updates", 16, "--parts", 4)
    whole = run("ppo.py", "--run-dir", tmp_path / "whole", *options)
    command = [sys.executable, str(EXAMPLES / "ppo.py"), "--run-dir", str(tmp_path / "cut"), *map(str, options)]
    # without the cache: a process that is killed while JAX writes an entry would leave half of it
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_ENABLE_COMPILATION_CACHE": "0"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert next(line for line in process.stdout if line.startswith("part 2"))
        time.sleep(random.SystemRandom().uniform(0, 0.3))  # in the middle of the third part, or of its save
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "cut" / "part3").exists()
    killed = run("ppo.py", "--run-dir", tmp_path / "cut", *options)
    assert "part 2 of 4" not in killed
    results = [[line for line in out.splitlines() if line.startswith(("seed", "solved"))] for out in (killed, whole)]
    assert results[0] == results[1]
    assert len(results[0]) == 3
    a, b = (ocp.load(str(tmp_path / name / "part3")) for name in ("cut", "whole"))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(*map(numbers, (x, y)))
    logs = [(tmp_path / name / "seed0" / "history.csv").read_bytes() for name in ("cut", "whole")]
    assert logs[0] == logs[1]


@pytest.mark.deep
def test_ppo_in_full(tmp_path):
    out = run("ppo.py", "--run-dir", tmp_path)
    assert float(re.search(r"solved +(\d+)%", out).group(1)) >= 75.0


def test_svi_is_the_loop_by_hand_and_finds_the_posterior(example):
    svi = example("svi")
    state, values = jax.jit(svi.by_hand, static_argnums=1)(0, 300)
    ours = jax.jit(lambda: jc.scan([jc.History()], svi.step, svi.start(0), 300, steps_per_epoch=svi.EPOCH))()
    row = ours.records.of(jc.actions.LogHistory)[0].values["neg_elbo"]
    np.testing.assert_allclose(row, values.reshape(3, -1).mean(axis=1), rtol=1e-3)
    for a, b in zip(jax.tree.leaves(ours.state.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    run = jax.jit(svi.infer, static_argnums=1)(1, 4000)
    mean, scale = svi.exact_posterior()
    assert np.max(np.abs(run.state.params["mean"] - mean) / scale) < 0.5
    np.testing.assert_allclose(np.exp(run.state.params["log_scale"]), scale, rtol=0.15)
    assert int(run.step) < 4000


@pytest.mark.parametrize("optimizer", ["ADAM", pytest.param("LBFGS", marks=pytest.mark.long)])
def test_pinn_is_the_loop_by_hand(example, optimizer):
    pinn, steps = example("pinn"), 12
    tx, params = getattr(pinn, optimizer), example("pinn").network(0)
    expected, losses = jax.jit(lambda p: pinn.by_hand(p, tx, steps))(params)
    step, state = jc.Step(pinn.loss_fn), jc.TrainState.create(params=params, tx=tx)
    ours = jax.jit(lambda s: jc.scan([jc.History()], step, s, steps, steps_per_epoch=1))(state)
    np.testing.assert_allclose(ours.records.of(jc.actions.LogHistory)[0].values["loss"], losses, rtol=1e-2)
    assert pinn.error(ours.state.params) == pytest.approx(pinn.error(expected), rel=1e-2)


@pytest.mark.deep
def test_pinn_in_full():
    errors = [float(e) for e in re.findall(r"error (\S+?)[,\n]", run("pinn.py"))]
    assert errors[0] > 20 * errors[1] > 100 * errors[2]


def test_byol_is_the_loop_by_hand(example):
    pytest.importorskip("sklearn")
    byol = example("byol")
    images = byol.load()[0][0][:64]
    batches = images.reshape(4, 16, 8, 8, 1)
    expected, losses = jax.jit(byol.by_hand)(byol.new_state(0), batches)
    result = jc.Loop(byol.train_step, callbacks=[jc.SwapEMAWeights(decay=0.5)]).run(
        byol.new_state(0), images, epochs=1, batch_size=16, shuffle=False, verbose=0
    )
    np.testing.assert_allclose(result.history["loss"], [losses.mean()], rtol=1e-4)
    for a, b in zip(jax.tree.leaves(result.state.model_state), jax.tree.leaves(expected.model_state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.deep
def test_byol_in_full(tmp_path):
    pytest.importorskip("sklearn")
    before, after = (float(x) for x in re.findall(r"tells ([\d.]+)%", run("byol.py", "--run-dir", tmp_path)))
    assert after > before + 5.0


def test_gan_is_the_loop_by_hand(example):
    gan = example("gan")
    real = gan.ring(48, seed=1)
    params, losses = gan.by_hand(gan.new_state(0), real.reshape(3, 16, 2))
    result = jc.Loop(gan.train_step).run(gan.new_state(0), real, epochs=1, batch_size=16, shuffle=False, verbose=0)
    for name, mean in zip(("generator_loss", "discriminator_loss"), np.mean(losses, axis=0), strict=True):
        np.testing.assert_allclose(result.history[name], [mean], rtol=1e-4)
    for name, rate in gan.RATES.items():
        np.testing.assert_allclose(result.history[f"learning_rate/{name}"], [rate], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(result.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
