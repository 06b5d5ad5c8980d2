"""Programs are kept: a run of the same kind compiles nothing, and a run of another kind is never served by it."""

import dataclasses
import gc
import os
import random
import subprocess
import sys
import threading
import warnings
import weakref
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _compilations import counting
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from kept_programs._variants import VARIANTS, WIDTH, Chosen, X, Y, loss_fn, make_loss, params, run

import jaxcb as jc
from jaxcb._src.utils import kept_programs


@pytest.fixture(autouse=True)
def _nothing_kept():
    jc.clear_caches()
    yield
    jc.clear_caches()


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name, strict=True)


# What costs nothing the second time


def _step(state, batch):
    loss, grads = jax.value_and_grad(lambda p: loss_fn(p, batch)[0])(state.params)
    return state.apply_gradients(grads), {"loss": loss}


STATE = jc.TrainState.create(params=params(), tx=optax.sgd(0.1))
LOOP = jc.Loop(_step, callbacks=[jc.TerminateOnNaN()])
RECORD = {"val_loss": [3.0, 2.0, 2.5, 2.5, 2.25, 1.0]}


def _apply(model, x):
    return x @ model["w"]


def _sweep(rate):
    return jc.sweep(
        params(),
        loss_fn,
        (X, Y),
        over={"optimizer.learning_rate": [rate, 0.2]},
        optimizer=optax.adam,
        callbacks=[jc.EarlyStopping("loss")],
        epochs=2,
        batch_size=8,
        strategy="vmap",
        verbose=0,
    )


CALLS = {
    "fit": lambda i: run(learning_rate=0.1 * (1 + i), seed=i, epochs=2 + i),
    "fit, stepped": lambda i: run(execution=jc.Execution(executor="stepped"), seed=i),
    "fit in a directory": lambda i, tmp: run(run_dir=tmp / str(i), seed=i),
    "Loop.run": lambda i: LOOP.run(STATE, (X, Y), epochs=2 + i, batch_size=8, verbose=0),
    "evaluate": lambda i: jc.evaluate(params(), loss_fn, (X, Y), batch_size=7, seed=i),
    "predict": lambda i: jc.predict(params(), X, batch_size=7, fn=_apply),
    "sweep": lambda i: _sweep(0.1 * (1 + i)),
    "lr_find": lambda i: jc.lr_find(params(), loss_fn, (X, Y), optimizer=optax.sgd, rates=4, steps=3, seed=i),
    "replay": lambda i: jc.replay([jc.EarlyStopping(patience=1 + i)], RECORD),
    "replay of a grid": lambda i: jc.replay(
        [jc.EarlyStopping()], RECORD, over={"callbacks.EarlyStopping.patience": [1 + i, 3]}
    ),
}


@pytest.mark.everyday(6)
@pytest.mark.parametrize("name", CALLS)
def test_the_second_call_traces_and_compiles_nothing(name, tmp_path):
    call = CALLS[name]
    arguments = (tmp_path,) if call.__code__.co_argcount == 2 else ()
    with counting() as counts:
        call(0, *arguments)
        assert counts["traced"] > 0
        counts.clear()
        call(1, *arguments)
        assert not counts


def test_no_library_that_a_run_imports_changes_the_configuration_of_jax():
    """JAX traces all functions again after an import that adds to its configuration, as that of Pallas does."""
    code = (
        "import jaxcb._src.fit\nfrom jaxcb._src.utils.program_key import context_key\nbefore = context_key()\n"
        "import flax.linen, flax.nnx, jax.experimental.pallas, optax, tensorboardX\n"
        "from orbax.checkpoint import v1\nimport jax.experimental.multihost_utils, jax.experimental.colocated_python\n"
        "assert context_key() == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_says_whether_it_compiles(capsys):
    def train(epochs):
        jc.fit(params(), loss_fn, (X, Y), optimizer=optax.adam, learning_rate=0.1, epochs=epochs, verbose=2)
        return capsys.readouterr().out

    assert "the first step compiles the run" in train(1)
    assert "its programs are those of an earlier run" in train(2)


def test_a_model_that_is_made_again_needs_no_other_program():
    nnx = pytest.importorskip("flax.nnx")

    def train():
        rngs = nnx.Rngs(0)
        model = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs))
        result = jc.fit(model, _module_loss, (X, Y), optimizer=optax.adam, learning_rate=0.1, epochs=2, verbose=0)
        assert result.model is model
        return result.history["loss"]

    first = train()
    with counting() as counts:
        second = train()
    assert not counts
    np.testing.assert_array_equal(first, second)


def _module_loss(model, batch):
    return jnp.mean((model(batch[0]) - batch[1]) ** 2)


def _make_rectified(constant):
    return lambda model, batch: make_loss(constant)(model, (jax.nn.relu(batch[0]), batch[1]))


@pytest.mark.parametrize(
    ("make", "constants"),
    [(make_loss, (2.0, 3.0)), (_make_rectified, (np.full(2, 2.0, np.float32), np.full(2, 3.0, np.float32)))],
)
def test_new_functions_of_the_same_program_are_traced_and_not_compiled(make, constants):
    def train(constant):
        with counting() as counts:
            return run(loss=make(constant), optimizer=optax.sgd(0.1), learning_rate=None), counts

    train(constants[0])
    again, counts = train(constants[0])
    assert counts["traced"] > 0
    assert counts["lowered"] == counts["compiled"] == 0
    other, counts = train(constants[1])
    assert counts["compiled"] > 0
    for constant, found in zip(constants, (again, other), strict=True):
        jc.clear_caches()
        assert_same(found, train(constant)[0])


def test_an_array_of_numpy_that_was_changed_where_it_is_makes_another_program():
    table = np.ones((600, 600), np.float32)  # more than a key has a copy of

    def train():
        return run(loss=lambda model, batch: make_loss(2.0)(model, batch) * jnp.sum(table) / table.size)

    train()
    table *= 2
    found = train()
    jc.clear_caches()
    assert_same(found, train())


def test_paths_texts_and_functions_for_the_host_need_no_other_program(tmp_path):
    """The hooks are traced, and the first state of the callbacks; not the steps."""

    def train(number):
        seen = []
        callbacks = [
            jc.CSVLogger(tmp_path / f"{number}.csv"),
            jc.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch)),
            jc.callbacks.LogTo(lambda step, values: seen.append(values["loss"])),
            Chosen(_above_one if number < 2 else lambda metrics: metrics["loss"] > 1.0),
        ]
        found = run(callbacks=lambda: callbacks, run_dir=tmp_path / str(number))
        return found, seen, (tmp_path / f"{number}.csv").read_text()

    found, seen, text = train(0)
    for number in (1, 2):
        with counting() as counts:
            again = train(number)
        assert counts["compiled"] == 0
        assert counts["lowered"] <= 1
        assert_same(found, again[0])
        assert again[1:] == (seen, text)
        assert len(seen) > 1


def _above_one(metrics):
    return metrics["loss"] > 1.0


@pytest.mark.everyday(1)
@pytest.mark.parametrize("second", ["rule", "text", "constant"])
def test_static_fields_that_reach_a_program_have_their_own(second):
    """Each of these runs has the traces of the run before it, except for one thing."""
    captured = np.full((), 2.0, np.float32)
    runs = {
        "rule": (lambda m: m["loss"] > 1.0, lambda m: m["loss"] < 1.0),
        "text": (lambda m: m["loss"] > 1.0, lambda m: m["loss"] > np.nextafter(np.float32(1), np.float32(2))),
        "constant": (lambda m: m["loss"] > jnp.asarray(captured), lambda m: m["loss"] > jnp.asarray(captured - 1)),
    }[second]
    found = [run(callbacks=lambda rule=rule: [Chosen(rule)]) for rule in runs]
    alone = []
    for rule in runs:
        jc.clear_caches()
        alone.append(run(callbacks=lambda rule=rule: [Chosen(rule)]))
    for shared, own in zip(found, alone, strict=True):
        assert_same(shared, own)


class TwoNumbers(jc.Callback):
    """Prints what two functions compute."""

    first: Any = jc.static(default=None)
    second: Any = jc.static(default=None)

    def on_epoch_end(self, state, metrics):
        values = {"a": self.first(metrics["loss"]), "b": self.second(metrics["loss"])}
        return state, jc.actions.Print("a={a:.3f} b={b:.3f}", values=values)


class Drawing(jc.Callback):
    """Scales the rate by a number that depends on a setting of JAX."""

    partitionable: bool = jc.static(default=True)

    def on_epoch_end(self, state, metrics):
        with jax.threefry_partitionable(self.partitionable):
            number = jax.random.uniform(jax.random.key(0), (4,))[2]
        return state, jc.actions.ScaleLearningRate(number)


class FewerRows(jc.PopulationCallback):
    """Decides by the number of rows, which is another one after a compaction."""

    few: int = jc.static(default=2)

    def on_epoch_end(self, state, metrics):
        factor = 0.0 if metrics.alive.shape[0] < self.few else 1.0
        half = jc.actions.Stop((metrics.epoch == 1) & (metrics.member >= 4), "half")
        return state, (half, jc.actions.ScaleLearningRate(factor))


def _sweep_of(few):
    result = jc.sweep(
        lambda seed: {"w": jax.random.normal(jax.random.key(seed), (WIDTH, 2)), "b": jnp.zeros(2)},
        _plain_loss,
        (X, Y),
        over={"seed": list(range(8))},
        optimizer=optax.sgd,
        learning_rate=0.1,
        epochs=4,
        batch_size=8,
        strategy="vmap",
        repack=True,
        callbacks=[FewerRows(few)],
        execution=jc.Execution(steps_per_execution=3),
        verbose=0,
    )
    assert result.parts[0].sizes == (8, 4)
    return dict(result.parts[0].history)


def _plain_loss(params, batch):
    return loss_fn(params, batch)[0]


def _doubled():
    return jax.jit(lambda x: 2 * x)


def test_equal_traces_with_other_rows_have_their_own_programs():
    """Two functions that compute the same are one array of a row, or two, as they are one function or two."""
    fn = _doubled()
    found = []
    for pair in ((fn, fn), (_doubled(), _doubled()), (fn, fn)):
        found.append(run(callbacks=lambda pair=pair: [TwoNumbers(*pair)]))
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


@pytest.mark.everyday(1)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda: run(callbacks=lambda: [Drawing(True)]), lambda: run(callbacks=lambda: [Drawing(False)])),
        (lambda: _sweep_of(2), lambda: _sweep_of(6)),
    ],
)
def test_what_a_trace_does_not_show_is_no_reason_to_share(first, second):
    first()
    after = second()
    jc.clear_caches()
    assert_same(after, second())


def test_the_caches_can_be_cleared():
    run()
    jc.clear_caches()
    with counting() as counts:
        run()
    assert counts["lowered"] > 0


# JAX's own cache


@pytest.fixture
def on_disk(tmp_path):
    """JAX's cache of compiled programs in an empty directory, and a counter of the programs that are read from it."""
    hits = []

    def note(event, **_):
        hits.extend([event] * (event == "/jax/compilation_cache/cache_hits"))

    settings = {"jax_compilation_cache_dir": str(tmp_path), "jax_persistent_cache_min_compile_time_secs": 0}
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    reset_cache()  # JAX looks at the directory once
    jax.monitoring.register_event_listener(note)
    yield hits
    jax.monitoring.unregister_event_listener(note)
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()


def test_where_nothing_is_kept_all_is_read_from_the_cache_of_jax(on_disk):
    def as_a_new_process():
        jc.clear_caches()
        jax.clear_caches()
        on_disk.clear()
        with counting() as counts:
            return run(), counts["compiled"], len(on_disk)

    first, compiled, read = as_a_new_process()
    assert compiled > read  # it compiles, and writes what it has compiled
    again, compiled, read = as_a_new_process()
    assert compiled == read > 0  # JAX counts what it reads as compiled
    assert_same(again, first)


# What must never be shared

ALIKE = [  # whose programs have arguments of the same shapes
    "base",
    "static integer",
    "static function",
    "other static function",
    "captured array",
    "other captured array",
    "other schedule",
]


@pytest.mark.parametrize("names", [ALIKE, pytest.param(list(VARIANTS), marks=pytest.mark.long)], ids=["alike", "all"])
def test_each_run_is_that_of_a_process_without_other_runs(names):
    """Every variant after all others has the values that it has alone."""
    names = random.Random(0).sample(names, len(names))
    shared = {name: run(**VARIANTS[name]) for name in names}
    for name in names:
        jc.clear_caches()
        assert_same(shared[name], run(**VARIANTS[name]))
    assert len({tuple(x.tobytes() for x in found.values()) for found in shared.values()}) > len(names) // 2


def test_one_number_of_a_large_captured_array_tells_two_programs_apart():
    def make(number):
        constant = jnp.ones(100_000).at[50_000].set(number)
        return lambda model, batch: model["b"].sum() + (constant * batch[0].mean()).sum()

    found = [jc.evaluate(params(), make(number), (jnp.ones((4, 3)), Y[:4]))["loss"] for number in (1.0, 1001.0)]
    assert found[1] - found[0] == pytest.approx(1000.0, rel=1e-3)  # a float32 sum of 100,000 numbers


class Slotted:
    """A loss function that cannot be referred to weakly."""

    __slots__ = ("factor",)

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, model, batch):
        return self.factor * loss_fn(model, batch)[0]

    def method(self, model, batch):
        return self(model, batch)


@pytest.mark.parametrize("pick", [lambda own: own, lambda own: own.method], ids=["object", "method"])
def test_an_object_with_slots_compares_by_identity(pick):
    one, two = Slotted(1.0), Slotted(2.0)
    losses = [jc.evaluate(params(), pick(own), (X, Y))["loss"] for own in (one, two, one)]
    assert losses[0] == losses[2] == pytest.approx(losses[1] / 2)
    with counting() as counts:
        jc.evaluate(params(), pick(two), (X, Y))
    assert not counts


@pytest.mark.long
@pytest.mark.parametrize("name", VARIANTS)
def test_each_run_is_that_of_a_fresh_process(name, tmp_path):
    for other in random.Random(name).sample(list(VARIANTS), 5):
        run(**VARIANTS[other])
    found = run(**VARIANTS[name])
    path = tmp_path / "found.npz"
    code = (
        "import conftest, numpy as np\nfrom kept_programs._variants import VARIANTS, run\n"
        f"np.savez({str(path)!r}, **{{k: v for k, v in run(**VARIANTS[{name!r}]).items()}})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
    with np.load(path) as expected:
        for key, value in found.items():
            stored = expected[key]
            if stored.dtype.kind == "V":  # npz has no bfloat16
                stored = stored.view(value.dtype)
            np.testing.assert_array_equal(value, stored, err_msg=key)


@pytest.mark.everyday(2)
@pytest.mark.parametrize(
    "context",
    [
        lambda: jax.enable_x64(True),
        lambda: jax.default_matmul_precision("bfloat16"),
        lambda: jax.threefry_partitionable(False),
        lambda: jax.default_prng_impl("rbg"),
    ],
    ids=["x64", "precision", "threefry", "prng"],
)
def test_settings_of_jax_are_part_of_the_key(context):
    alike = {"loss": VARIANTS["key"]["loss"]}
    run(**alike)
    with context():
        kept = run(**alike)
        jc.clear_caches()
        assert_same(kept, run(**alike))


@pytest.mark.long
def test_without_compilation_nothing_is_kept():
    run()
    with jax.disable_jit():
        run(epochs=1)
    assert len(kept_programs._programs) == 1


def test_a_field_of_a_module_is_part_of_the_key():
    nn = pytest.importorskip("flax.linen")

    class Net(nn.Module):
        scale: float = 1.0

        @nn.compact
        def __call__(self, x):
            return self.scale * nn.Dense(2)(x)

    def train(scale):
        model = jc.linen(Net(scale), X[:1])
        return jc.fit(model, _module_loss, (X, Y), optimizer=optax.sgd(0.1), epochs=2, verbose=0).history["loss"]

    kept = [train(1.0), train(2.0)]
    jc.clear_caches()
    np.testing.assert_array_equal(kept[1], train(2.0))
    assert kept[0][0] != kept[1][0]


@dataclasses.dataclass
class Noting(jc.HostCallback):
    """A callback with a state of its own, which compares by value."""

    seen: list = dataclasses.field(default_factory=list)

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(epoch)


class Listening:
    """Compares by identity."""

    def __init__(self):
        self.seen = []

    def note(self, step, values):
        self.seen.append(step)


class Filling(jc.Callback):
    """Writes to a container in a static field."""

    into: dict = jc.static(default_factory=dict)

    def on_epoch_end(self, state, metrics):
        return state, jc.actions.Call(lambda run: self.into.update({int(run.step): 1}))


def test_a_container_in_a_static_field_is_the_one_of_its_run():
    containers = [{}, {}]
    for container in containers:
        run(callbacks=lambda container=container: [Filling(container)])
    assert [list(container) for container in containers] == [[3, 6, 9]] * 2


def test_each_run_calls_its_own_functions():
    for make, note in [(Noting, None), (Listening, "note")]:
        objects = [make() for _ in range(3)]
        for own in objects:
            callback = own if note is None else jc.callbacks.LogTo(own.note)
            run(callbacks=lambda callback=callback: [callback])
        assert [own.seen for own in objects] == [objects[0].seen] * 3
        assert len(objects[0].seen) == 3


# What is kept


def test_no_arrays_and_no_functions_of_the_user_are_kept():
    def train():
        constant = jnp.ones((1000, 7))
        loss = make_loss(constant.mean())
        data = (jnp.asarray(X), jnp.asarray(Y))
        result = jc.fit(params(), loss, data, optimizer=optax.adam, learning_rate=0.1, epochs=1, verbose=0)
        jc.evaluate(result.params, loss, data)
        jc.predict(result.params, data[0], fn=lambda model, x: x @ model["w"] * constant.mean())
        return [weakref.ref(x) for x in (constant, loss, data[0], result, result.params["w"])]

    train()
    gc.collect()
    before = len(jax.live_arrays())
    references = train()
    gc.collect()
    assert [reference() for reference in references] == [None] * len(references)
    assert len(jax.live_arrays()) == before


def test_what_is_kept_is_bounded():
    for i in range(kept_programs._PROGRAMS + 5):
        jc.replay([jc.EarlyStopping(patience=3)], {"val_loss": [1.0] * (2 + i), f"other_{i}": [1.0] * (2 + i)})
    assert len(kept_programs._programs) == kept_programs._PROGRAMS
    assert len(kept_programs._executables) <= kept_programs._EXECUTABLES


@pytest.mark.long
def test_a_thousand_fits_of_two_programs_need_no_more_memory():
    def train(number):
        run(loss=loss_fn, batch_size=8 if number % 2 else 6, seed=number)

    def resident():
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    if not Path("/proc/self/statm").exists():
        pytest.skip("the system does not tell the memory of a process")
    for number in range(200):
        train(number)
    before, arrays = resident(), len(jax.live_arrays())
    for number in range(1000):
        train(number)
    assert resident() - before < 20
    assert len(jax.live_arrays()) == arrays


def test_a_program_is_dropped_with_its_function():
    jc.evaluate(params(), make_loss(1.0), (X, Y))
    gc.collect()
    jc.evaluate(params(), loss_fn, (X, Y))
    assert len(kept_programs._programs) == 1


def test_threads_share_programs():
    alone = [run(seed=seed) for seed in range(4)]
    jc.clear_caches()
    found = {}

    def train(seed):
        found[seed] = run(seed=seed)

    threads = [threading.Thread(target=train, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        assert_same(found[seed], alone[seed])


def test_a_resumed_run_uses_what_is_kept(tmp_path):
    run(run_dir=tmp_path / "a", epochs=2)
    more = run(run_dir=tmp_path / "a", epochs=4, resume=True)
    run(run_dir=tmp_path / "c", epochs=2)
    with counting() as counts:  # the first resumed run compiles copies of the restored arrays
        run(run_dir=tmp_path / "c", epochs=4, resume=True)
    assert counts["compiled"] <= 1  # the order of the rows
    assert_same(more, run(run_dir=tmp_path / "b", epochs=4))


# Shapes that keep changing


def _sizes(*rows):
    """Data of which each epoch has batches of another size."""
    return lambda epoch, controls: [(X[:size], Y[:size]) for size in [rows[epoch % len(rows)]] * 2]


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_a_run_whose_shapes_keep_changing_says_so_once(executor):
    how = {"batch_size": None, "callbacks": list, "epochs": 7, "execution": jc.Execution(executor=executor)}
    with pytest.warns(RuntimeWarning, match="shapes of the batches keep changing") as caught:
        run(data=_sizes(8, 7, 6, 5, 4, 3), **how)
    assert len([w for w in caught if "keep changing" in str(w.message)]) == 1
    text = str(caught[0].message)
    assert "4, 3]" in text
    assert "drop_remainder" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(data=_sizes(8, 7, 5), **how)
