"""Which way a step goes over the members, and what happens to host actions and signals on the way."""

import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _arguments import grouped
from flax import nnx
from loop._runs import loss_fn, make_data, make_params

import jaxcb as jc
from jaxcb._src.loop.compiled import member_map as _strategy


def sweep(points=None, **more):
    given = {"optimizer": optax.adam, "epochs": 4, "batch_size": 16, "verbose": 0, "learning_rate": 0.1} | more
    return jc.sweep(make_params, loss_fn, make_data(), **grouped(over=points or {"seed": range(4)}, **given))


@pytest.mark.parametrize("fastest", ["vmap", "map"])
def test_auto_takes_the_fastest_and_says_so(fastest, monkeypatch, capsys):
    measured = []

    def seconds(own, *_):
        measured.append(own.name)
        return 0.001 if own.name == fastest else 0.002

    monkeypatch.setattr(_strategy, "_seconds", seconds)
    jc.clear_caches()  # a choice is kept with the program
    result = sweep(verbose=2, epochs=1)
    said = capsys.readouterr().out
    assert result.parts[0].strategy == fastest
    assert {"vmap", "map"} <= set(measured)
    assert f"{fastest}, {_strategy._WORDS[fastest]}; a step took: vmap" in said


@pytest.mark.parametrize("kind", ["looped", "stepped"])
def test_a_measurement_is_of_real_steps(kind):
    calls = []

    def step(state, batch):
        jax.debug.callback(lambda: calls.append(1))
        return state + batch.sum(), {}

    own, said = _strategy.measured(step, jnp.zeros(3), jnp.ones(2), None, 3, kind)
    jax.effects_barrier()
    assert own.name in ("vmap", "map")
    assert said.startswith(own.name)
    assert len(calls) >= 2 * 3 * _strategy._STEPS, "each way runs some steps, some times"


@pytest.fixture
def lowered():
    """Lowers a step of two members for a platform."""
    state = jc.TrainState.create(params=make_params(), tx=optax.adam(0.1))
    states = jax.tree.map(lambda x: jnp.stack([x, x]), state)

    def lower(step, platform):
        traced = jax.jit(jax.vmap(step, in_axes=(0, None))).trace(states, make_data())
        return traced.lower(lowering_platforms=(platform,))

    return lower


@pytest.mark.parametrize(("platform", "borders"), [("cuda", len(make_params())), ("cpu", 0), ("tpu", 0)])
def test_gradients_of_members_are_stored_on_nvidia_gpus_alone(lowered, platform, borders):
    """Without it, a sweep on an H100 copies a weight at each step."""
    step = jc.Step(loss_fn)
    assert lowered(step.for_population(), platform).as_text().count("optimization_barrier") == borders
    assert "optimization_barrier" not in lowered(step, platform).as_text()


def test_on_a_cpu_a_step_of_members_compiles_to_the_same_instructions(lowered):
    def instructions(step):
        lines = lowered(step, "cpu").compile().as_text().splitlines()
        return [re.sub(r", metadata=\{[^}]*\}", "", line) for line in lines if " = " in line]

    step = jc.Step(loss_fn)
    assert instructions(step.for_population()) == instructions(step) != []


def test_what_cannot_be_asked_for():
    with pytest.raises(ValueError, match="strategy must be one of"):
        sweep(strategy="fast")
    with pytest.raises(jc.errors.DataError, match="function, which follows the controls"):
        jc.sweep(
            make_params, loss_fn, lambda epoch, controls: [], over={"seed": [0]}, optimizer=optax.sgd(0.1), epochs=1
        )


@pytest.mark.long
def test_each_member_is_saved_under_its_number_after_others_have_left(tmp_path):
    points = [{"callbacks.StopAt.epochs": n} for n in (1, 3, 1, 1)]

    class StopAt(jc.Callback):
        epochs: int = 1

        def on_epoch_end(self, state, metrics):
            return state, jc.actions.Stop(metrics.epoch + 1 >= self.epochs)

    saves = jc.ModelCheckpoint("at/{epoch}", "loss", save_weights_only=True)
    result = sweep(
        points, callbacks=[StopAt(), saves], run_dir=tmp_path, repack=True, strategy="vmap", steps_per_execution=5
    )
    assert result.parts[0].sizes == (4, 1)
    assert sorted(p.name for p in (tmp_path / "at" / "1").iterdir() if p.name.isdigit()) == ["0", "1", "2", "3"]
    assert [p.name for p in (tmp_path / "at" / "3").iterdir() if p.name.isdigit()] == ["1"]
    from orbax.checkpoint import v1 as ocp

    like = {"params": result.member(1).params, "model_state": None}
    found = ocp.load(str(tmp_path / "at" / "3" / "1"), like)
    jax.tree.map(np.testing.assert_array_equal, found["params"], result.member(1).params)


def test_an_interrupt_hands_the_sweep_over():
    class Interrupt(jc.Callback):
        def on_epoch_end(self, state, metrics):
            return state, jc.actions.Call(lambda run: signal.raise_signal(signal.SIGINT), when=metrics.epoch == 1)

    with pytest.raises(KeyboardInterrupt) as caught:
        sweep(callbacks=[Interrupt()], epochs=50, at_once=2, strategy="vmap")
    result = caught.value.result  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(result, jc.search.SweepResult)
    assert jc.last_result() is result
    assert result.table()["member"] == [0, 1]
    assert result.member(0).stop_reason == "interrupted"
    with pytest.raises(LookupError, match="member 2 was not trained"):
        result.member(2)


class Conv(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 2, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.head = nnx.Linear(32, 1, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.conv(x))).reshape(len(x), -1))


def conv_loss(model, batch):
    x, y = batch
    return jnp.mean((model(x) - y) ** 2)


@pytest.mark.everyday(1)
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["vmap", "map"])
def test_convolutions_with_statistics_equal_their_single_runs(strategy):
    rng = np.random.default_rng(0)
    data = rng.normal(size=(32, 4, 4, 1)).astype(np.float32), rng.normal(size=(32, 1)).astype(np.float32)
    # not Adam, which makes steps of the rounding in a bias that batch normalisation takes out again
    common = {"optimizer": optax.sgd, "epochs": 2, "batch_size": 16, "validation_data": data, "verbose": 0}
    over = {"seed": [0, 1], "optimizer.learning_rate": [0.01]}
    result = jc.sweep(lambda seed: Conv(nnx.Rngs(seed)), conv_loss, data, over=over, strategy=strategy, **common)
    assert result.parts[0].executor == "stepped"
    for seed in (0, 1):
        single = jc.fit(Conv(nnx.Rngs(seed)), conv_loss, data, learning_rate=0.01, seed=seed, **common)
        own = result.member(seed)
        np.testing.assert_allclose(own.history["val_loss"], single.history["val_loss"], rtol=1e-3)
        np.testing.assert_allclose(own.model.norm.mean[...], single.model.norm.mean[...], rtol=1e-3, atol=1e-5)
