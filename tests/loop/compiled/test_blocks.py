"""Blocks: a fixed number of steps, masked where they must not run. Each run equals that of the dynamic loop."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from loop._runs import control, fit, make_data, make_driver, make_params

import jaxcb as jc
from jaxcb._src.core.callback import STEP_HOOKS
from jaxcb._src.sharding.placement import Placement
from jaxcb._src.utils.xla import jaxpr_in

SIZES = (1, 2, 7, 32)

# Runs whose step is compiled otherwise than in the dynamic loop: a select instead of a branch, or one step with its
# probes beside steps without. Other kernels may round differently, so that only runs in blocks have the same bits.
OTHER_KERNELS = ("averages", "rare probes")


def same(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y, equal_nan=True) for x, y in leaves)


class StopAt(jc.Callback):
    """Stops in the middle of an epoch."""

    step: int = 7

    def on_batch_end(self, state, metrics):
        return state, jc.actions.Stop(metrics.step == self.step, "enough")


class Averaging(jc.Callback):
    """Weights that actions in a step hook change: they select, where the loop has branches."""

    def slots(self):
        return {"mean": "params"}

    def on_batch_end(self, state, metrics):
        due = metrics.step % 3 == 0
        average = jc.actions.Average("mean", 0.9, when=due)
        return state, (average, jc.actions.Restore("mean", when=metrics.step == 10))


def stream():
    x, y = make_data()
    return [(x[i : i + 16], y[i : i + 16]) for i in range(0, len(x), 16)]


RUNS = {
    "usual": lambda: {"callbacks": control()},
    "stops in mid-epoch": lambda: {"callbacks": [StopAt()], "epochs": 3},
    "validates every three steps": lambda: {"eval_every": 3, "epochs": 3},
    "no remainder": lambda: {"drop_remainder": True, "epochs": 3},
    "few steps at a time": lambda: {"steps_per_execution": 3, "epochs": 4},
    "a stream": lambda: {"data": stream(), "batch_size": None, "epochs": 4},
    "rare probes": lambda: {"metrics": {"norm": jc.probes.grad_norm(every=4)}, "epochs": 4},
    "probes at each step": lambda: {"metrics": {"norm": jc.probes.grad_norm()}, "epochs": 3},
    "records at steps": lambda: {"callbacks": [jc.CSVLogger("own.csv"), jc.callbacks.JSONLogger("a.jsonl", every=2)]},
    "averages": lambda: {"callbacks": [Averaging(name="own")], "epochs": 4},
}


@pytest.mark.everyday(2)
@pytest.mark.parametrize("name", RUNS)
def test_the_size_of_a_block_changes_no_bit(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dynamic = fit(block=0, **RUNS[name]())
    if name in OTHER_KERNELS:
        # a block of one step has no loop, and may round like neither
        one, blocks = (fit(executor=None, block=size, **RUNS[name]()) for size in SIZES[:2])
        for other in (dynamic, one):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), other.params, blocks.params)
        dynamic = blocks
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for size in SIZES[1:] if name in OTHER_KERNELS else SIZES:
        run = fit(executor=None, block=size, **RUNS[name]())
        assert run.executor == "looped"
        assert same(run.params, dynamic.params), size
        assert same(run.callback_states, dynamic.callback_states), size
        assert same(dict(run.history), dict(dynamic.history)), size
        assert (run.stop_reason, run.stopped_epoch) == (dynamic.stop_reason, dynamic.stopped_epoch)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


@pytest.mark.everyday(1)
@pytest.mark.parametrize("size", SIZES)
def test_members_are_those_of_the_loop(size):
    def sweep(block):
        return jc.sweep(
            lambda seed: make_params(seed),
            loss_fn_of_members,
            make_data(),
            over={"optimizer.learning_rate": [0.02, 0.05, 0.4]},
            optimizer=optax.adam,
            callbacks=[jc.EarlyStopping("loss", patience=1), jc.TerminateOnNaN()],
            epochs=6,
            batch_size=16,
            strategy="vmap",
            execution=jc.Execution(executor="looped", block=block),
            verbose=0,
        )

    dynamic, blocks = sweep(0), sweep(size)
    for index in range(3):
        a, b = dynamic.member(index), blocks.member(index)
        assert same((a.params, dict(a.history)), (b.params, dict(b.history)))
        assert a.stop_reason == b.stop_reason
    assert len({dynamic.member(index).stopped_epoch for index in range(3)}) > 1


def loss_fn_of_members(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


def test_masked_steps_are_counted_and_shown(capsys):
    steps = -(-len(make_data()[0]) // 16)
    full = len(make_data()[0]) // 16  # the smaller last batch is a step of its own
    fit(executor=None, block=7, callbacks=[], epochs=3, verbose=2)
    text = capsys.readouterr().out
    assert f"{3 * steps} steps, and {3 * (-(-full // 7) * 7 - full)} masked steps in blocks" in text
    assert "in blocks of 7 steps" in text
    fit(block=0, callbacks=[], epochs=1, verbose=2)
    assert "masked" not in capsys.readouterr().out


def test_a_callback_that_needs_the_host_at_steps_gets_the_stepped_executor(capsys):
    seen = []
    calls = jc.make_callback(
        on_batch_end=lambda state, m: (state, jc.actions.Call(lambda run: seen.append(run.step), when=m.step == 2)),
        name="calls",
    )
    assert fit(executor=None, block=7, callbacks=[calls], epochs=1, verbose=2).executor == "stepped"
    assert "calls acts at every step" in capsys.readouterr().out
    assert seen == [2]
    with pytest.raises(ValueError, match=r"executor='looped' with block=7 .* calls acts at every step"):
        fit(block=7, callbacks=[calls], epochs=1)


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"block": 33}, "block must be at most 32, got 33"),
        ({"block": -1}, "block must be a whole number of at least 0"),
        ({"block": 2, "executor": "stepped"}, "needs the looped executor"),
        ({"block": 2, "debug": True}, "needs the looped executor"),
    ],
)
def test_bad_sizes_are_refused(how, match):
    with pytest.raises(ValueError, match=match):
        jc.Execution(**how)


def test_a_run_resumes_with_its_own_size(tmp_path):
    """Whichever part of the run ran before, and whatever the size was; another size is refused."""
    whole = fit(executor=None, block=7, callbacks=[], epochs=4, run_dir=tmp_path / "whole")
    fit(executor=None, block=7, callbacks=[], epochs=2, run_dir=tmp_path / "parts")
    with pytest.raises(ValueError, match=r"began with block=7, got Execution\(block=2\)"):
        fit(executor=None, block=2, callbacks=[], epochs=4, run_dir=tmp_path / "parts", resume=True)
    parts = fit(executor=None, callbacks=[], epochs=4, run_dir=tmp_path / "parts", resume=True)
    assert same(whole.params, parts.params)
    assert same(dict(whole.history), dict(parts.history))
    dynamic = fit(block=0, callbacks=[], epochs=2, run_dir=tmp_path / "dynamic")
    assert dynamic.executor == "looped"
    with pytest.raises(ValueError, match="began with block=0"):
        fit(executor=None, block=2, callbacks=[], epochs=4, run_dir=tmp_path / "dynamic", resume=True)


def loops_around(jaxpr, inside, path=()):
    """Yields the loops and branches around each operation that `inside` accepts, outermost first."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if inside(equation):
            yield path
        length = equation.params.get("length")
        own = {"while": "while", "scan": f"scan {length}", "cond": "cond"}.get(name)
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                inner = jaxpr_in(part)
                if inner is not None:
                    yield from loops_around(inner, inside, path if own is None else (*path, own))


def chunk_of(**how):
    """Returns the jaxpr of a chunk of steps."""
    driver = make_driver(control(), state_of(), **how)
    device: Any = driver.device
    inputs = device._without_steps(np.zeros(len(driver._host_metrics.names), np.float32))
    chunk = jax.make_jaxpr(lambda leaves: device.executor._chunk._run(device.live.form, leaves, (), (inputs,)))
    return chunk(device.live.leaves).jaxpr


@pytest.mark.parametrize("metrics", [None, {"norm": jc.probes.grad_norm(every=4)}])
def test_directly_around_a_step_is_a_loop_of_known_length(metrics):
    """A step is recognized by its matrix products: those of the batch of 16 rows."""

    def is_step(equation):
        return equation.primitive.name == "dot_general" and equation.invars[0].aval.shape[:1] == (16,)

    paths = list(loops_around(chunk_of(metrics=metrics, block=7), is_step))
    in_blocks = [path for path in paths if path[-1:] == ("scan 7",)]
    assert set(in_blocks) == {("while", "while", "scan 7")}
    others = set(paths) - set(in_blocks)  # steps with probes and smaller batches, once a turn; validation
    assert all(path[:1] == ("while",) and path.count("while") <= 2 for path in others), others


def test_a_rare_probe_is_one_branch_of_a_step():
    """It looks and counts in the same one."""
    chunk = chunk_of(metrics={"norm": jc.probes.grad_norm(every=4)})
    branches = loops_around(chunk, lambda equation: equation.primitive.name == "cond")
    assert list(branches).count(("while", "while")) == 2, "one in full batches, one in the smaller last batch"


def state_of():
    return jc.TrainState.create(params=make_params(), tx=jc.adjustable_lr(optax.adam, learning_rate=0.05))


def test_a_block_is_no_longer_than_the_buffers_of_its_steps(monkeypatch):
    monkeypatch.setattr("jaxcb._src.loop.compiled.record_buffer._MOST", 5)
    driver = make_driver([jc.callbacks.JSONLogger("never.jsonl", every=1)], state_of(), block=7)
    assert driver.device.program.block == 5
    assert driver.device.program.buffers.capacity_of(STEP_HOOKS) == 5


@pytest.mark.parametrize(("platform", "blocks"), [("gpu", True), ("tpu", False), ("cpu", False)])
def test_the_platform_of_the_run_decides_about_blocks(monkeypatch, capsys, platform, blocks):
    monkeypatch.setattr(Placement, "platform", platform)
    fit(epochs=2, verbose=2)
    assert ("in blocks of" in capsys.readouterr().out) is blocks
