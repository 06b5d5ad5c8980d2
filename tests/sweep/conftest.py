"""A sweep that the tests of results share."""

import optax
import pytest
from loop._runs import loss_fn, make_data, make_params

import jaxcb as jc


@pytest.fixture(scope="session")
def small_sweep(tmp_path_factory):
    """Six members, of which some stop; one is NaN from the start."""
    points = jc.search.grid({"optimizer.learning_rate": [0.02, 0.3, 1e30], "callbacks.EarlyStopping.patience": [1, 4]})
    return jc.sweep(
        make_params,
        loss_fn,
        make_data(),
        over=points,
        optimizer=optax.adam,
        epochs=8,
        batch_size=16,
        validation_data=make_data(20, seed=1),
        callbacks=[jc.EarlyStopping(min_delta=0.02), jc.TerminateOnNaN(), jc.CSVLogger("log.csv")],
        run_dir=tmp_path_factory.mktemp("sweep"),
        strategy="vmap",
        repack=True,
        verbose=0,
    )
