"""Arrays that stay with the host: the same batches, the same decisions."""

import tracemalloc

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop import _runs

import jaxcb as jc
from jaxcb._src.data import resident as _residence


def seen(**how):
    """The rows of each batch that a run trains on, in their order."""
    rows = np.arange(how.pop("rows"), dtype=np.float32)
    found = []

    def loss_fn(params, x):
        jax.debug.callback(lambda x: found.append(np.asarray(x).tolist()), x, ordered=True)
        return params["w"] * x.mean()

    _runs.fit(loss_fn=loss_fn, data=rows, model={"w": np.ones((), np.float32)}, callbacks=[], **how)
    jax.effects_barrier()
    return found


@pytest.mark.long
@settings(max_examples=5, deadline=None)
@given(
    rows=st.integers(2, 12),
    size=st.integers(1, 5),
    shuffle=st.booleans(),
    drop=st.booleans(),
    seed=st.integers(0, 3),
    length=st.sampled_from([None, 1]),
)
def test_the_host_gathers_the_batches_that_the_device_would(rows, size, shuffle, drop, seed, length):
    how = {"rows": rows, "batch_size": min(size, rows), "shuffle": shuffle, "drop_remainder": drop, "seed": seed}
    how |= {"epochs": 3, "steps_per_epoch": length if shuffle else None}
    how |= {"validation_data": None, "executor": "stepped"}
    assert seen(resident=False, **how) == seen(resident=True, **how)


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_a_run_on_the_hosts_rows_decides_alike(executor):
    found, expected = (_runs.fit(executor, resident=resident) for resident in (False, True))
    assert expected.stop_reason is not None
    assert found.stop_reason == expected.stop_reason
    assert found.history.keys() == expected.history.keys()
    for name, value in expected.history.items():
        np.testing.assert_allclose(found.history[name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_array_equal(found.history["learning_rate"], expected.history["learning_rate"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), found.params, expected.params)


@pytest.mark.parametrize("first", [pytest.param(True, marks=pytest.mark.long), False])
def test_a_run_goes_on_where_the_rows_lie_elsewhere(tmp_path, first):
    class Cut(Exception):
        pass

    def cut(run):
        raise Cut

    at = jc.make_callback(on_batch_end=lambda s, m: (s, jc.actions.Call(cut, when=m.step == 12)), name="CutAt")
    how = {"run_dir": tmp_path, "resume": True, "epochs": 5}
    saves = jc.BackupAndRestore("unused", save_freq=1)
    with pytest.raises(Cut):
        _runs.fit(callbacks=[saves, at], resident=first, **how)
    found = _runs.fit(callbacks=[saves], resident=not first, **how)
    expected = _runs.fit(callbacks=[], epochs=5)
    for name, value in expected.history.items():
        np.testing.assert_allclose(found.history[name], value, rtol=1e-5, err_msg=name)


def test_what_a_device_has_no_room_for_stays_with_the_host(monkeypatch, capsys):
    x, y = _runs.make_data()
    needed = x.nbytes + y.nbytes
    for free, kept in ((2 * needed, True), (2 * needed - 1, False)):
        monkeypatch.setattr(_residence, "free_bytes", lambda devices, free=free: free)
        _runs.fit(data=(x, y), epochs=1, callbacks=[], verbose=2, validation_data=None)
        assert ("stays on the host" not in capsys.readouterr().out) == kept
    x, y = jax.device_put((x, y))  # on the device already
    _runs.fit(data=(x, y), epochs=1, callbacks=[], verbose=2, validation_data=None)
    assert "stays on the host" not in capsys.readouterr().out


def test_the_room_of_devices():
    class Told:
        def __init__(self, **stats):
            self.stats = stats

        def memory_stats(self):
            return self.stats or None

    assert _residence.free_bytes([Told(bytes_limit=9, bytes_in_use=4), Told(bytes_limit=9, bytes_in_use=6)]) == 3
    whole = _residence.free_bytes([Told()])
    assert whole > 1 << 28
    assert _residence.free_bytes([Told(), Told()]) == whole // 2


def test_a_file_is_never_in_memory_as_a_whole(tmp_path):
    mapped = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.float32, (4096, 2048))
    held = []

    def look():
        held.append(sum(x.nbytes for x in jax.live_arrays()) - before)

    before = sum(x.nbytes for x in jax.live_arrays())
    tracemalloc.start()
    try:
        _runs.fit(
            loss_fn=lambda p, x: p["w"] * x.mean(),
            data=mapped,
            model={"w": np.ones((), np.float32)},
            batch_size=64,
            steps=8,
            epochs=None,
            steps_per_execution=2,
            callbacks=[jc.LambdaCallback(on_train_batch_end=lambda batch, logs: look())],
            validation_data=mapped[:512],
            resident=False,
        )
        held.append(tracemalloc.get_traced_memory()[1])  # the host's arrays
    finally:
        tracemalloc.stop()
    assert len(held) == 8 + 1
    assert max(held) < mapped.nbytes / 2


@pytest.mark.parametrize(("given", "meant"), [(0, False), (1, True), (np.True_, True), (None, None)])
def test_a_number_counts_as_the_truth_that_it_stands_for(given, meant):
    assert jc.Execution(resident=given).resident is meant


def test_what_cannot_be_kept_is_refused():
    batches = [_runs.make_data(16)] * 3
    with pytest.raises(jc.errors.DataError, match=r"Execution\(resident=True\) was given, but train_data is a list"):
        _runs.fit(data=batches, batch_size=None, resident=True)
    with pytest.raises(TypeError, match="Execution: resident must be True or False, got 'host'"):
        _runs.fit(resident="host")
    with pytest.raises(jc.errors.DataError, match="leaves nothing to train on"):
        _runs.fit(batch_size=100, drop_remainder=True, resident=False)
    with pytest.raises(jc.errors.DataError, match="steps_per_epoch=9, but one pass over 70 rows has 5"):
        _runs.fit(steps_per_epoch=9, resident=False)
