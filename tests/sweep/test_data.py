"""The data of a sweep: streams that all members share, and a trial on a few batches."""

import jax
import numpy as np
import optax
import pytest
from loop._runs import control, loss_fn, make_data, make_params

import jaxcb as jc


def batches(seed, rows=16, count=4):
    x, y = make_data(rows * count, seed=seed)
    return [(x[i : i + rows], y[i : i + rows]) for i in range(0, rows * count, rows)]


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_members_share_streams(executor):
    common = {"epochs": 8, "validation_data": batches(1), "callbacks": control(), "verbose": 0}
    common["execution"] = jc.Execution(executor=executor)
    rates = [0.05, 0.3]
    result = jc.sweep(
        make_params,
        loss_fn,
        batches(0),
        over={"optimizer.learning_rate": rates},
        optimizer=optax.adam,
        strategy="vmap",
        repack=True,
        **common,
    )
    for rate, own in zip(rates, result, strict=True):
        single = jc.fit(make_params(), loss_fn, batches(0), optimizer=optax.adam, learning_rate=rate, **common)
        assert own.stop_reason == single.stop_reason
        np.testing.assert_allclose(own.history["val_loss"], single.history["val_loss"], rtol=1e-3)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), own.params, single.params)


def test_a_trial_leaves_no_files(tmp_path):
    result = jc.sweep(
        make_params,
        loss_fn,
        make_data(),
        over={"seed": [0, 1]},
        optimizer=optax.sgd(0.1),
        epochs=50,
        callbacks=[jc.CSVLogger("log.csv")],
        run_dir=tmp_path / "run",
        verbose=0,
        execution=jc.Execution(fast_dev_run=2),
    )
    assert result.table()["steps"] == [2, 2]
    assert not (tmp_path / "run").exists()
