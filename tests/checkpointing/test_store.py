"""The store of a run's own checkpoints: what goes in comes out, whatever happens to process and disk."""

import contextlib
import functools
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from _patience import PATIENCE
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from loop._changes import CHANGES, watch_changes

import jaxcb
from jaxcb._src.checkpointing import arrays as _snapshot
from jaxcb._src.checkpointing import manifest as _manifest
from jaxcb._src.checkpointing.manifest import DamagedError, read, verify
from jaxcb._src.checkpointing.store import Store, remove_store

ROOT = Path(jaxcb.__file__).parents[1]


def silent(line):
    raise AssertionError(f"nothing was to be said, got: {line}")


def open_store(directory, **settings):
    return contextlib.closing(Store(directory, **{"say": silent, **settings}))


def newest(store):
    saved = store.latest()
    assert saved is not None
    return saved


def save_steps(directory, steps, **settings):
    with open_store(directory, **settings) as store:
        for step in steps:
            store.save(step, leaves_of(step), {"step": step})


def leaves_of(step, size=100) -> dict[str, jax.Array]:
    return {"w": jnp.full(size, step, jnp.float32), "b/c": jnp.arange(3) + step}


def assert_leaves_of(step, found, size=100):
    for name, expected in leaves_of(step, size).items():
        np.testing.assert_array_equal(found[name], expected)


def steps_in(directory):
    return sorted(int(path.name[5:14]) for path in directory.iterdir())


def bits(x):
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return (str(jax.random.key_impl(x)), *bits(jax.random.key_data(x)))
    x = np.asarray(x)
    return x.dtype, x.shape, x.tobytes()


# What goes in comes out

WHOLE_BYTES = """int8 int16 int32 uint8 uint16 uint32 float16 float32 bfloat16 complex64
float8_e4m3fn float8_e5m2 float8_e4m3b11fnuz"""
DTYPES = [*WHOLE_BYTES.split(), "bool", "int4"]
with contextlib.suppress(ValueError):  # TensorStore knows it since 0.1.84
    DTYPES.append(tensorstore.dtype("float8_e8m0fnu").name)


@st.composite
def arrays(draw):
    kind = draw(st.sampled_from(["jax", "numpy", "numpy64", "key", "scalar"]))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    if kind == "scalar":
        return draw(st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.just(np.float32(0.1))))
    if kind == "key":
        impl = draw(st.sampled_from(["threefry2x32", "rbg"]))
        return jax.random.split(jax.random.key(draw(st.integers(0, 99)), impl=impl), shape)
    if kind == "numpy64":
        return np.full(shape, draw(st.floats(width=32)), draw(st.sampled_from([np.float64, ">f4", np.complex128])))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    count = math.prod(shape)
    if dtype.name in ("bool", "int4"):  # not all of a byte is theirs
        array = np.array(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)), dtype).reshape(shape)
    else:  # any bits at all: NaN's payloads, denormals
        raw = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
        array = np.frombuffer(raw, dtype).reshape(shape)
    return jnp.asarray(array) if kind == "jax" else array


@given(
    leaves=st.dictionaries(st.text(max_size=8), arrays(), max_size=4),
    facts=st.dictionaries(
        st.text(max_size=4), st.one_of(st.none(), st.floats(allow_nan=False), st.text(), st.just([1]))
    ),
    step=st.integers(0, 10**12),
)
def test_round_trip(tmp_path_factory, leaves, facts, step):
    directory = tmp_path_factory.mktemp("store")
    with open_store(directory) as store:
        store.save(step, leaves, facts)
        saved = newest(store)
        assert (saved.step, saved.facts) == (step, facts)
        found = store.load(saved)
        again = store.load(saved, saved.leaves)
    assert list(found) == list(again) == list(saved.leaves) == list(leaves)
    for name, value in leaves.items():
        if not isinstance(value, jax.Array):
            value = np.array(value, dtype=np.asarray(value).dtype.newbyteorder("="))
        assert bits(found[name]) == bits(again[name]) == bits(value)
        assert (saved.leaves[name].shape, saved.leaves[name].dtype) == (value.shape, value.dtype)
        off = isinstance(value, np.ndarray) and jax.dtypes.canonicalize_dtype(value.dtype) != value.dtype
        assert isinstance(found[name], np.ndarray if off else jax.Array)


def test_names_that_would_be_one_file(tmp_path):
    names = ["a.b", "a/b", "a", "", "..", "/etc/passwd", "A", "é", "e\u0301", "0", "\0", "x" * 5000]
    leaves = {name: jnp.full(2, i) for i, name in enumerate(names)}
    with open_store(tmp_path) as store:
        store.save(1, leaves, {})
        found = store.load(newest(store))
    assert {name: int(x[0]) for name, x in found.items()} == {name: i for i, name in enumerate(names)}


@pytest.mark.parametrize("route", ["copies on the devices", "Orbax's own"])
def test_arrays_are_free_after_save(tmp_path, monkeypatch, route):
    if route == "Orbax's own":
        monkeypatch.setattr(_snapshot, "_have_room", lambda arrays: False)
    size = 1_000_000
    expected = np.arange(size, dtype=np.float32)
    donate = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    leaves: dict[str, Any] = {
        "donated": jnp.arange(size, dtype=jnp.float32) + 0,
        "deleted": jnp.arange(size, dtype=jnp.float32) + 0,
    }
    leaves |= {"numpy": expected.copy(), "key": jax.random.key(7)}
    with open_store(tmp_path) as store:
        store.save(1, leaves, {})
        jax.block_until_ready(donate(leaves["donated"]))
        leaves["deleted"].delete()
        leaves["key"].delete()
        leaves["numpy"][:] = -1
        if route == "copies on the devices":  # the other one holds on to them, so that XLA copies instead
            assert leaves["donated"].is_deleted()
        over = [jnp.ones(size) for _ in range(4)]  # takes up what memory was freed
        found = store.load(newest(store))
        del over
    for name in ("donated", "deleted", "numpy"):
        np.testing.assert_array_equal(found[name], expected)
    assert bits(found["key"]) == bits(jax.random.key(7))


def test_room_is_what_the_peak_leaves(monkeypatch):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 1000, "peak_bytes_in_use": 601}

    class OneSharding:
        addressable_devices = frozenset({Device()})

        def shard_shape(self, shape):
            return shape

    class OneArray:
        sharding, dtype = OneSharding(), np.dtype(np.float32)

        def __init__(self, *shape):
            self.shape = shape

    have_room: Any = _snapshot._have_room
    assert have_room([OneArray(49), OneArray(50)])
    assert not have_room([OneArray(50), OneArray(50)])


def test_load_compares_first(tmp_path):
    with open_store(tmp_path) as store:
        store.save(1, {"w": jnp.zeros((2, 3)), "n": jnp.int32(1), "key": jax.random.key(0)}, {})
        saved = newest(store)
        shutil.rmtree(saved.path / "arrays")  # nothing is read before the comparison
        struct = jax.ShapeDtypeStruct
        target = {"w": struct((3, 2), jnp.float32), "n": struct((), jnp.float32), "gone": struct((1,), jnp.int8)}
        with pytest.raises(ValueError, match="does not match") as error:
            store.load(saved, target)
        assert "w: stored float32[2,3], expected float32[3,2]" in str(error.value)
        assert "n: stored int32[], expected float32[]" in str(error.value)
        assert "gone: not stored, expected int8[1]" in str(error.value)
        with pytest.raises(ValueError, match=r"key: stored key<fry>\[\], expected key<rbg>\[\]"):
            store.load(saved, {"key": jax.eval_shape(functools.partial(jax.random.key, 0, impl="rbg"))})
        many = {f"leaf {i}": struct((), jnp.int8) for i in range(30)}
        with pytest.raises(ValueError, match="and 20 more"):
            store.load(saved, many)


def test_load_reads_what_is_asked_for(tmp_path):
    device = SingleDeviceSharding(jax.devices()[0])
    with open_store(tmp_path) as store:
        store.save(3, {**leaves_of(3), "none": jnp.zeros((0, 4))}, {})
        saved = newest(store)
        target = {"none": jax.ShapeDtypeStruct((0, 4), jnp.float32, sharding=device), "w": saved.leaves["w"]}
        found = store.load(saved, target)
        assert list(found) == ["none", "w"]
        assert found["none"].committed
        assert not found["w"].committed
        np.testing.assert_array_equal(found["w"], leaves_of(3)["w"])
        assert store.load(saved, {}) == {}


@pytest.mark.parametrize("value", ["text", object(), np.array(["a"]), 2**80, np.datetime64("2020-01-01")])
def test_what_is_no_array_is_named(tmp_path, value):
    with open_store(tmp_path) as store, pytest.raises(TypeError, match="'culprit': expected an array"):
        store.save(1, {"culprit": value}, {})


def test_wrong_arguments(tmp_path):
    with open_store(tmp_path / "new") as store:
        with pytest.raises(TypeError, match="not JSON serializable"):
            store.save(1, {}, {"x": object()})
        with pytest.raises(ValueError, match="step must be at least 0, got -1"):
            store.save(-1, {}, {})
        assert store.latest() is None
    assert not (tmp_path / "new").exists()  # who only looks makes nothing
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        Store(tmp_path, keep=0, say=silent)
    with pytest.raises(ValueError, match="on_error must be"):
        open_store(tmp_path, on_error="ignore")


def test_float64(tmp_path):
    """What is off in JAX stays NumPy's, and Orbax's threads do not know of a switch that holds for one thread."""
    value = np.array([0.1, math.pi])
    device = SingleDeviceSharding(jax.devices()[0])
    with open_store(tmp_path) as store:
        with jax.enable_x64(True):
            store.save(0, {"numpy": value, "jax": jnp.asarray(value)}, {})
        saved = newest(store)
        target = {name: struct.update(sharding=device) for name, struct in saved.leaves.items()}
        for name, found in store.load(saved, target).items():
            assert isinstance(found, np.ndarray), name
            assert bits(found) == bits(value)
        with jax.enable_x64(True):
            for name, found in store.load(saved, target).items():
                assert isinstance(found, jax.Array), name
                assert bits(found) == bits(value)


# Which checkpoints stay


@given(saves=st.integers(0, 6), keep=st.integers(1, 3), reopen=st.integers(0, 6))
def test_the_newest_are_kept(tmp_path_factory, saves, keep, reopen):
    directory = tmp_path_factory.mktemp("store") / "checkpoints"
    store = Store(directory, keep=keep, say=silent)
    for step in range(saves):
        if step == reopen:
            store.close()
            store = Store(directory, keep=keep, say=silent)
        store.save(step, {}, {}, wait=True)
        assert steps_in(directory) == list(range(step + 1))[-keep:]
        assert newest(store).step == step
    store.close()


def test_a_step_saved_again_replaces_the_old_one(tmp_path):
    with open_store(tmp_path) as store:
        for number in range(3):
            store.save(5, leaves_of(number), {"number": number}, wait=True)
            saved = newest(store)
            assert (saved.step, saved.facts) == (5, {"number": number})
            assert_leaves_of(number, store.load(saved))
            assert len(list(tmp_path.iterdir())) == 1


def test_a_step_saved_again_stays_until_the_new_one_is_complete(tmp_path, monkeypatch):
    save_steps(tmp_path, [5])
    with open_store(tmp_path) as store:
        monkeypatch.setattr(
            "jaxcb._src.checkpointing.manifest.write", fail_with(OSError(28, "No space left on device"))
        )
        with pytest.raises(OSError, match="No space left"):
            store.save(5, leaves_of(6), {}, wait=True)
        assert_leaves_of(5, store.load(newest(store)))


def fail_with(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def test_damaged_ones_take_no_place(tmp_path):
    save_steps(tmp_path, [1, 2, 3, 4], keep=4)
    for step in (3, 4):
        cut(tmp_path / f"step_{step:09d}" / "manifest.json")
    said = []
    with open_store(tmp_path, keep=2, say=said.append) as store:
        assert newest(store).step == 2
        assert len(said) == 2
        store.save(3, leaves_of(3), {}, wait=True)
        # those whose manifest does not say what they are made of stay, and count for nothing
        there = ["step_000000002", "step_000000003", "step_000000003-1", "step_000000004"]
        assert sorted(p.name for p in tmp_path.iterdir()) == there
        said.clear()
        assert newest(store).step == 3
    assert said == []


def test_damaged_arrays_are_deleted(tmp_path):
    save_steps(tmp_path, [1, 2, 3], keep=3)
    cut(next((tmp_path / "step_000000003").rglob("_METADATA")))
    said = []
    with open_store(tmp_path, keep=1, say=said.append) as store:
        assert newest(store).step == 2
        store.save(2, leaves_of(2), {}, wait=True)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000000002-1"]


def test_others_things_are_left_alone(tmp_path):
    others = ["9", "step_5", "step_000000007", ".saving-mine", "orbax-checkpoint-tmp", ".trash-9"]
    for name in others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    save_steps(tmp_path, range(10, 15), keep=1)
    assert {p.name for p in tmp_path.iterdir()} == {*others, "notes.txt", "step_000000014"}
    assert all((tmp_path / name / "file").read_text() == "mine" for name in others)


def test_files_of_others_in_a_checkpoint_stay_where_they_are(tmp_path):
    save_steps(tmp_path, [1])
    notes = [tmp_path / "step_000000001" / name for name in ("thesis.txt", "arrays/state/d/mine", "deep/er/mine")]
    for note in notes:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text("mine")
    save_steps(tmp_path, range(2, 6), keep=1)
    assert {p.name for p in tmp_path.iterdir()} == {"step_000000001", "step_000000005"}
    assert sorted(p for p in (tmp_path / "step_000000001").rglob("*") if p.is_file()) == sorted(notes)


def test_checkpoints_of_other_runs_are_neither_used_nor_deleted(tmp_path):
    mine, other = "a" * 16, "b" * 16
    for run, step in ((other, 8), (mine, 1)):
        with open_store(tmp_path, run=run) as store:
            store.save(step, leaves_of(step), {"run": run}, wait=True)
    said = []
    with open_store(tmp_path, run=mine, keep=1, say=said.append) as store:
        assert newest(store).step == 1
        assert "step_000000008 cannot be used: it is of another run" in said[0]
        for step in (2, 3):
            store.save(step, leaves_of(step), {"run": mine}, wait=True)
    (tmp_path / f".saving-{other}-step_000000009").mkdir()
    remove_store(tmp_path, mine)
    assert {p.name for p in tmp_path.iterdir()} == {"step_000000008", f".saving-{other}-step_000000009"}
    remove_store(tmp_path, other)
    assert not list(tmp_path.iterdir())


# Damage


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A directory with steps 1 and 2, and the files of step 2."""
    directory = tmp_path_factory.mktemp("two")
    save_steps(directory, [1, 2])
    newest = directory / "step_000000002"
    return directory, sorted(path for path in newest.rglob("*") if path.is_file())


def latest_of(directory):
    said = []
    with open_store(directory, say=said.append) as store:
        saved = newest(store)
        assert_leaves_of(saved.step, store.load(saved))
        return saved, said


def assert_skipped(directory):
    saved, said = latest_of(directory)
    assert saved.step == 1
    (line,) = said
    assert str(directory / "step_000000002") in line
    assert "damaged" in line
    return line


@given(data=st.data())
def test_a_flipped_bit_anywhere_is_found(two, data):
    directory, files = two
    for path in files:
        whole = path.read_bytes()
        if whole:
            flip(path, data.draw(st.integers(0, 8 * len(whole) - 1), label=path.name))
            with pytest.raises(DamagedError, match="has changed since it was written"):
                verify(directory / "step_000000002")
            path.write_bytes(whole)
    verify(directory / "step_000000002")


def test_each_damage_of_each_file_is_named_and_skipped(two):
    directory, files = two
    assert len(files) > 5
    for path in files:
        whole = path.read_bytes()
        for damage in (cut, Path.unlink, lambda path: path.write_bytes(path.read_bytes() + b"\0")):
            if damage is cut and not whole:
                continue
            damage(path)
            assert path.name in assert_skipped(directory)
            path.write_bytes(whole)
        if whole:
            flip(path, 4 * len(whole))
            assert path.name in assert_skipped(directory)
            path.write_bytes(whole)
    assert latest_of(directory)[0].step == 2


def test_bits_of_a_manifest_count(two):
    files = two[1]
    (path,) = (path for path in files if path.name == "manifest.json")
    whole = path.read_bytes()
    read(path.parent)
    for bit in range(0, 8 * len(whole), 37):  # each bit of a byte in turn
        flip(path, bit)
        with pytest.raises(DamagedError):
            read(path.parent)
        path.write_bytes(whole)


def test_a_manifest_is_json(two):
    manifest = json.loads((two[0] / "step_000000002" / "manifest.json").read_text())["manifest"]
    assert manifest["step"] == 2
    assert manifest["facts"] == {"step": 2}


def test_directories_that_are_no_checkpoints(tmp_path):
    save_steps(tmp_path, [1])
    (tmp_path / "9").mkdir()
    saved, said = latest_of(tmp_path)
    assert (saved.step, said) == (1, [])
    (tmp_path / "step_000000009").mkdir()
    saved, said = latest_of(tmp_path)
    assert saved.step == 1
    assert "step_000000009 is damaged: it has no manifest.json" in said[0]


def test_a_checkpoint_without_its_arrays(two, tmp_path):
    shutil.copytree(two[0], tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "step_000000002" / "arrays" / "state")
    assert_skipped(tmp_path / "copy")


def test_no_silent_fresh_start(tmp_path):
    save_steps(tmp_path, [1, 2])
    for path in tmp_path.rglob("_METADATA"):
        path.unlink()
    with open_store(tmp_path) as store, pytest.raises(ValueError, match="none of them is complete") as error:
        store.latest()
    assert "step_000000001 is damaged: arrays/state/_METADATA is missing" in str(error.value)
    assert "step_000000002" in str(error.value)


def test_a_newer_format_is_not_guessed_at(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxcb._src.checkpointing.manifest._FORMAT", 2)
    save_steps(tmp_path, [1])
    monkeypatch.undo()
    with open_store(tmp_path) as store, pytest.raises(ValueError, match="cannot be used: a newer jaxcb wrote it"):
        store.latest()
    save_steps(tmp_path, range(2, 5), keep=1)
    assert steps_in(tmp_path) == [1, 4]  # nor deleted


def test_arrays_that_are_gone(tmp_path):
    """A mistake of the caller is raised as such, whatever is to happen on the disk's faults."""
    x = jnp.zeros(3)
    x.delete()
    with open_store(tmp_path, on_error="warn") as store, pytest.raises(RuntimeError, match="deleted"):
        store.save(1, {"x": x}, {})


# Faults of the disk


@contextlib.contextmanager
def mounted(directory, size):
    """A small disk of its own; where mounting is not allowed the test is skipped."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "jaxcb", str(directory)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def noise(size):
    return {"w": jnp.asarray(np.random.default_rng(0).random(size), jnp.float32)}  # does not compress


def test_a_full_disk_raises_with_the_path(tmp_path):
    with mounted(tmp_path / "disk", "1m") as disk, open_store(disk / "run") as store:
        store.save(1, leaves_of(1), {}, wait=True)
        store.save(2, noise(1_000_000), {})
        with pytest.raises(OSError, match="cannot save the checkpoint: No space left on device") as error:
            store.save(3, leaves_of(3), {})
        assert error.value.filename == str(disk / "run" / "step_000000002")
        assert newest(store).step == 1
        assert steps_in(disk / "run") == [1]  # the failed one gave its room back
        store.save(4, leaves_of(4), {}, wait=True)
        assert_leaves_of(4, store.load(newest(store)))


def test_a_full_disk_is_said_once(tmp_path, capfd):
    said = []
    with mounted(tmp_path / "disk", "1m") as disk:
        with open_store(disk / "run", on_error="warn", say=said.append) as store:
            store.save(1, leaves_of(1), {}, wait=True)
            for step in (2, 3, 4):
                store.save(step, noise(1_000_000), {}, wait=True)
            (line,) = said
            assert f"{disk / 'run' / 'step_000000002'}: cannot save the checkpoint: No space left" in line
            assert f"{disk / 'run' / 'step_000000001'}, is kept" in line
            store.save(5, leaves_of(5), {}, wait=True)
            store.save(6, noise(1_000_000), {})
            assert len(said) == 1
            assert newest(store).step == 5
        assert len(said) == 2  # it worked in between, so this is another fault
    assert capfd.readouterr().err == ""


def test_writes_that_fail(tmp_path):
    save_steps(tmp_path, [1])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_store(tmp_path) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(OSError, match="step_000000002") as error:
                store.save(2, noise(1_000_000), {}, wait=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "File too large" in str(error.value)
        assert newest(store).step == 1
        store.save(3, leaves_of(3), {}, wait=True)
        assert newest(store).step == 3


def test_a_read_only_disk(tmp_path):
    said = []
    with mounted(tmp_path / "disk", "1m") as disk, open_store(disk, on_error="warn", say=said.append) as store:
        store.save(1, leaves_of(1), {}, wait=True)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        store.save(2, leaves_of(2), {}, wait=True)
        store.save(3, leaves_of(3), {}, wait=True)
        assert len(said) == 1
        assert "Read-only file system" in said[0]
        assert newest(store).step == 1
        with open_store(disk) as other:  # a look needs no writing
            assert newest(other).step == 1
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        store.save(4, leaves_of(4), {}, wait=True)
        assert newest(store).step == 4


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    said = []
    refused = pytest.raises(NotADirectoryError, match="cannot save the checkpoint: Not a directory")
    with open_store(tmp_path / "file" / "run") as store, refused:
        store.save(1, leaves_of(1), {}, wait=True)
    with open_store(tmp_path / "file" / "run", on_error="warn", say=said.append) as store:
        store.save(1, leaves_of(1), {})
        assert "There is none yet" not in "".join(said)
    assert "There is none yet" in said[0]


def test_a_directory_that_vanishes(tmp_path):
    said = []
    run = tmp_path / "run"
    with open_store(run, on_error="warn", say=said.append) as store:
        store.save(1, leaves_of(1), {}, wait=True)
        run.rename(tmp_path / "elsewhere")
        store.save(2, leaves_of(2), {}, wait=True)
        assert not run.exists()
        assert len(said) == 1
        assert f"{run / 'step_000000002'}: cannot save the checkpoint: No such file or directory" in said[0]
        (tmp_path / "elsewhere").rename(run)
        store.save(3, leaves_of(3), {}, wait=True)
        assert steps_in(run) == [1, 3]
    assert len(said) == 1


def test_a_directory_that_vanishes_during_a_save(tmp_path, monkeypatch):
    run = tmp_path / "run"
    original = _manifest.write

    def vanish(half, **rest):
        shutil.rmtree(run)
        original(half, **rest)

    with open_store(run) as store:
        monkeypatch.setattr("jaxcb._src.checkpointing.manifest.write", vanish)
        store.save(1, leaves_of(1), {})
        with pytest.raises(FileNotFoundError, match="step_000000001"):
            store.close()
    assert not run.exists()


def test_an_error_is_told_once(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxcb._src.checkpointing.manifest.write", fail_with(RuntimeError("broken")))
    store = Store(tmp_path, say=silent)
    store.save(1, leaves_of(1), {})
    with pytest.raises(OSError, match=r"RuntimeError: broken.*step_000000001") as error:
        store.close()
    assert isinstance(error.value.__cause__, RuntimeError)
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_old_ones_that_cannot_be_deleted(tmp_path, monkeypatch):
    said = []
    with open_store(tmp_path, keep=1, on_error="warn", say=said.append) as store:
        store.save(1, leaves_of(1), {}, wait=True)
        monkeypatch.setattr(store, "_delete", fail_with(PermissionError(1, "Operation not permitted")))
        store.save(2, leaves_of(2), {}, wait=True)
        store.save(3, leaves_of(3), {}, wait=True)
        (line,) = said
        assert "cannot delete older checkpoints: Operation not permitted" in line
        assert newest(store).step == 3


class Killed(SystemExit):
    """Ends the saving thread at once; nothing of ours catches it."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_killed_at_a_change_of_the_disk(tmp_path, monkeypatch):
    def count(name):
        calls.append(name)
        if len(calls) == kill_at:
            raise Killed

    watch_changes(count, monkeypatch.setattr)

    def save_second(directory):
        with open_store(directory, keep=1) as store:
            store.save(2, leaves_of(2), {}, wait=True)

    kill_at, calls = 0, []
    save_steps(tmp_path / "one", [1])
    shutil.copytree(tmp_path / "one", tmp_path / "all")
    calls.clear()
    save_second(tmp_path / "all")
    every = tuple(calls)
    assert CHANGES.keys() <= set(every)
    steps = set()
    for kill_at in [i + 1 for i, name in enumerate(every) if name == "rename" or i % 4 == 0]:
        directory = tmp_path / str(kill_at)
        shutil.copytree(tmp_path / "one", directory)
        calls.clear()
        save_second(directory)
        assert len(calls) == kill_at
        with open_store(directory) as store:
            assert not [path for path in directory.iterdir() if path.name.startswith(".")]
            saved = newest(store)
            assert_leaves_of(saved.step, store.load(saved))
            steps.add(saved.step)
    assert steps == {1, 2}


# Processes

ZYGOTE = """
import contextlib, json, os, sys
import jax, jax.numpy as jnp
import orbax.checkpoint
from jaxcb._src.checkpointing.store import Store
from loop._changes import wait_at_change
from checkpointing.test_store import leaves_of

for line in sys.stdin:  # one import for many processes
    task = json.loads(line)
    pid = os.fork()
    if pid == 0:
        break
    print("pid", pid, flush=True)
    status = os.waitpid(pid, 0)[1]
    print("end", os.waitstatus_to_exitcode(status), flush=True)
else:
    sys.exit()

if task["change"]:
    wait_at_change(*task["change"])
with contextlib.closing(Store(task["directory"], keep=2, say=print)) as store:
    step = task["step"]
    while step < task["until"]:
        step += 1
        store.save(step, leaves_of(step, task["size"]), {"step": step})
        print("begun", step, flush=True)
    if task["end"] == "error":
        raise LookupError("uncaught")
    if task["end"] == "exit":
        sys.exit(3)
"""


class Zygote:
    """Starts processes that save."""

    def __init__(self):
        path = os.pathsep.join([str(ROOT), str(Path(__file__).parents[1])])
        self.process = subprocess.Popen(
            [sys.executable, "-c", ZYGOTE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        )  # fmt: skip

    def start(self, directory, *, step=0, until=10**6, size=100, end=None, change=None):
        task = {"directory": str(directory), "step": step, "until": until, "size": size, "end": end, "change": change}
        print(json.dumps(task), file=self.process.stdin, flush=True)
        return int(self.expect("pid"))

    def expect(self, word, begun=None):
        """Reads to the line with that word, and returns what follows it; `begun` collects steps on the way."""
        for line in self.process.stdout or ():
            first, _, rest = line.strip().partition(" ")
            if first == "begun" and begun is not None:
                begun.append(int(rest))
            if first == word:
                return rest
        raise AssertionError(self.process.communicate()[1])

    def kill(self, pid, begun=None):
        os.kill(pid, signal.SIGKILL)
        assert self.expect("end", begun) == str(-signal.SIGKILL)


@pytest.fixture(scope="module")
def zygote():
    zygote = Zygote()
    yield zygote
    zygote.process.communicate(timeout=PATIENCE)  # the end of its input is its end


def after_a_kill(directory, step, begun, size):
    """Looks at what a process left that went on from a step and was killed; returns the step that it came to."""
    with open_store(directory) as store:  # says nothing of damaged ones: there are none
        assert not [path for path in directory.iterdir() if path.name.startswith(".")]
        saved = store.latest()
        last = max([step, *begun])  # a save begins when the one before is done; `begun` is said after that
        if saved is None:
            assert last <= 1
            return 0
        assert saved.step in (last - 1, last, last + 1)
        assert saved.facts == {"step": saved.step}
        assert_leaves_of(saved.step, store.load(saved), size)
        return saved.step


MOMENTS = [(name, number) for number in (1, 4) for name in CHANGES]


def test_kills_during_saves(tmp_path, zygote):
    """Each process is killed at a change of the disk that its first or a later save makes."""
    step, halves, steps = 0, [], []
    for change in MOMENTS:
        begun: list[int] = []
        pid = zygote.start(tmp_path, step=step, change=change)
        assert zygote.expect("at", begun) == change[0]
        halves += [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
        zygote.kill(pid, begun)
        step = after_a_kill(tmp_path, step, begun, 100)
        steps.append(step)
    assert {name.split("-")[0] for name in halves} == {".saving"}  # what is deleted is deleted in its place
    assert steps == sorted(steps)
    assert step > 2


def test_kills_while_arrays_are_written(tmp_path, zygote):
    """Killed as soon as arrays are seen in a save that is half done, until that has hit a few."""
    size, step, hits = 2_000_000, 0, 0
    for _ in range(100):
        begun: list[int] = []
        pid = zygote.start(tmp_path, step=step, size=size)
        zygote.expect("begun", begun)
        while not halves_with_arrays(tmp_path):
            time.sleep(0.001)
        zygote.kill(pid, begun)
        hits += halves_with_arrays(tmp_path)
        step = after_a_kill(tmp_path, step, begun, size)
        if hits == 3:
            break
    assert hits == 3


def halves_with_arrays(directory):
    """Whether a save has begun to write its arrays, and nothing behind them."""
    halves = [path for path in directory.iterdir() if path.name.startswith(".saving-")]
    files = [name for half in halves for _, _, names in os.walk(half) for name in names]  # of what is still there
    return bool(files) and _manifest.NAME not in files


@pytest.mark.parametrize(("end", "code"), [("exit", 3), ("error", 1)])
def test_a_process_that_ends_loses_nothing(tmp_path, zygote, end, code):
    zygote.start(tmp_path, until=3, size=300_000, end=end)
    assert zygote.expect("end") == str(code)
    assert steps_in(tmp_path) == [2, 3]
    with open_store(tmp_path) as store:
        assert_leaves_of(3, store.load(newest(store)), 300_000)


def test_who_looks_does_not_disturb(tmp_path, zygote):
    pid = zygote.start(tmp_path)
    for _ in range(3):
        zygote.expect("begun")
    for _ in range(10):
        with open_store(tmp_path) as store:
            assert newest(store) is not None
    zygote.expect("begun")  # would end with an error
    zygote.kill(pid)


FOUR = """
import contextlib, logging, sys, warnings
warnings.simplefilter("error")
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P, SingleDeviceSharding
from jaxcb._src.checkpointing.store import Store

devices = jax.devices()
assert len(devices) == 4
four, two = (Mesh(np.array(devices[:n]), ("x",)) for n in (4, 2))
keys = jax.random.split(jax.random.key(3), 4)
leaves = {
    "rows": jax.device_put(jnp.arange(16.0).reshape(8, 2), NamedSharding(four, P("x"))),
    "all": jax.device_put(jnp.arange(5), NamedSharding(four, P())),
    "keys": jax.device_put(keys, NamedSharding(four, P("x"))),
    "none": jax.device_put(jnp.zeros((0, 8)), NamedSharding(four, P(None, "x"))),
}
with contextlib.closing(Store(sys.argv[1], say=print)) as store:
    store.save(1, leaves, {})
    for leaf in leaves.values():
        leaf.delete()
    saved = store.latest()
    splits = {"rows": P("x"), "all": P(), "keys": P("x"), "none": P(None, "x")}
    for shardings in (
        {name: NamedSharding(two, spec) for name, spec in splits.items()},
        {name: NamedSharding(four, spec) for name, spec in splits.items()},
        {name: SingleDeviceSharding(devices[2]) for name in splits},
    ):
        target = {name: struct.update(sharding=shardings[name]) for name, struct in saved.leaves.items()}
        found = store.load(saved, target)
        for name, x in found.items():
            assert x.sharding.is_equivalent_to(shardings[name], x.ndim), (name, x.sharding)
        np.testing.assert_array_equal(found["rows"], np.arange(16.0).reshape(8, 2))
        np.testing.assert_array_equal(found["all"], np.arange(5))
        np.testing.assert_array_equal(jax.random.key_data(found["keys"]), jax.random.key_data(keys))
        assert found["none"].shape == (0, 8)
"""


@pytest.mark.long
def test_saved_on_four_devices(tmp_path):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", FOUR, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")  # and no word of Orbax
    one = SingleDeviceSharding(jax.devices()[0])
    split = NamedSharding(Mesh(np.array(jax.devices()[:1]), ("x",)), PartitionSpec("x"))
    with open_store(tmp_path) as store:  # on one device
        saved = newest(store)
        for sharding in (None, one, split):
            target = {name: struct.update(sharding=sharding) for name, struct in saved.leaves.items()}
            found = store.load(saved, target)
            np.testing.assert_array_equal(found["rows"], np.arange(16.0).reshape(8, 2))
            assert bits(found["keys"]) == bits(jax.random.split(jax.random.key(3), 4))
