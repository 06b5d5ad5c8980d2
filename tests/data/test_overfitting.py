"""`Execution(overfit_batches=)`: the first batches alone, the same in each epoch."""

import itertools

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcb as jc

ROWS = np.arange(20, dtype=np.float32)


def batches():
    return [ROWS[i : i + 4] for i in range(0, 20, 4)]


def reusing():
    """A loader that writes each batch into the same array."""
    room = np.empty(4, np.float32)
    for batch in batches():
        room[:] = batch
        yield room


class Table:
    def __iter__(self):
        return iter(batches())


DATA = {
    "arrays": lambda: ROWS,
    "arrays on the host": lambda: ROWS,
    "list": batches,
    "iterable": Table,
    "generator": reusing,
    "endless": lambda: (b for _ in itertools.count() for b in batches()),
    "function": lambda: lambda epoch, controls: batches()[epoch:],
}


def fit(data, epochs=3, callbacks=(), run_dir=None, resume=False, **execution):
    return jc.fit(
        jnp.zeros(()), lambda w, b: (jnp.mean((w - b) ** 2), {"sum": b.sum()}), data, optimizer=optax.sgd(0.1),
        epochs=epochs, verbose=0, callbacks=callbacks, run_dir=run_dir, resume=resume,
        batch_size=4 if isinstance(data, np.ndarray) else None, execution=jc.Execution(overfit_batches=2, **execution),
    )  # fmt: skip


@pytest.mark.parametrize("kind", DATA)
def test_each_epoch_has_the_first_batches_in_their_order(kind):
    seen = []
    watch = jc.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(logs["sum"]))
    resident = False if kind == "arrays on the host" else None
    result = fit(DATA[kind](), callbacks=[watch], resident=resident)
    assert seen == [batches()[0].sum(), batches()[1].sum()] * 3
    assert result.history.step.tolist() == [2, 4, 6]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["arrays", "iterable"])
def test_a_resumed_run_has_them_too(kind, tmp_path):
    whole = fit(DATA[kind]())
    fit(DATA[kind](), epochs=1, run_dir=tmp_path)
    assert float(fit(DATA[kind](), run_dir=tmp_path, resume=True).params) == float(whole.params)


def test_members_have_them():
    result = jc.sweep(
        lambda seed: jnp.zeros(()), lambda w, b: jnp.mean((w - b) ** 2), ROWS, over={"seed": [0, 1]}, epochs=2,
        optimizer=optax.sgd(0.1), batch_size=4, verbose=0, execution=jc.Execution(overfit_batches=2),
    )  # fmt: skip
    np.testing.assert_allclose(result.member(0).params, fit(ROWS, epochs=2).params, rtol=1e-6)
    assert float(result.member(1).params) == float(result.member(0).params)


def test_more_than_there_are_is_all_and_what_does_not_fit_is_refused():
    few = jc.fit(
        jnp.zeros(()), lambda w, b: jnp.mean(w * b), ROWS, optimizer=optax.sgd(0.1), batch_size=8, epochs=1, verbose=0,
        execution=jc.Execution(overfit_batches=9),
    )  # fmt: skip
    assert int(few.state.step) == 3
    with pytest.raises(jc.errors.DataError, match=r"overfit_batches=2\) and steps_per_epoch=3 both say"):
        jc.fit(
            jnp.zeros(()), lambda w, b: jnp.mean(w * b), ROWS, optimizer=optax.sgd(0.1), epochs=1, steps_per_epoch=3,
            verbose=0, execution=jc.Execution(overfit_batches=2),
        )  # fmt: skip
