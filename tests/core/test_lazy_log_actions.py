"""Requests: log actions whose payload is computed on the device, of what is inside the run, when they fire."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from loop import _runs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import jaxcb as jc

EXECUTORS = ("looped", "stepped")
EVERY = 3


class Asks(jc.Callback):
    """Asks for one histogram of each part now and then, and for the weights at the end of each epoch."""

    of: object = jc.static()

    def hooks(self):
        return frozenset(["on_epoch_end" if self.of == "params" else "on_before_update"])

    def _ask(self, due):
        return jc.actions.Histogram("part", of=self.of, when=due)

    def on_before_update(self, state, metrics):
        return state, self._ask(metrics.step % EVERY == 0)

    def on_epoch_end(self, state, metrics):
        return state, self._ask(metrics.epoch != 1)


def histograms(directory):
    reader = EventAccumulator(str(directory / "logs" / "train"), size_guidance={"histograms": 0})
    reader.Reload()
    return {tag: reader.Histograms(tag) for tag in reader.Tags()["histograms"]}


def by_hand(steps):
    """Params, gradients and updates of a plain loop over the same batches in their order, step by step."""
    x, y = _runs.make_data()
    params, tx = _runs.make_params(), optax.adam(0.05)
    opt_state, found = tx.init(params), []
    for step in range(steps):
        start = (step % 5) * 16
        batch = (x[start : start + 16], y[start : start + 16])
        grads = jax.grad(lambda p, b: _runs.loss_fn(p, b)[0])(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        found.append({"params": params, "grads": grads, "updates": updates})
    return found


def assert_is_of(event, values):
    values = np.asarray(values, np.float32).ravel()
    own = event.histogram_value
    assert (own.num, sum(own.bucket)) == (values.size, values.size)
    np.testing.assert_allclose([own.min, own.max], [values.min(), values.max()], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        [own.sum, own.sum_squares], [values.sum(), np.sum(values.astype(np.float64) ** 2)], rtol=1e-3, atol=1e-5
    )


@pytest.mark.everyday(1)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("of", ["grads", "updates", "params", "a function"])
def test_what_is_asked_for_is_that_of_a_hand_written_loop_when_it_is_due(tmp_path, executor, of):
    asked = (lambda look: look.grads) if of == "a function" else of
    _runs.fit(executor, epochs=3, shuffle=False, callbacks=[Asks(asked)], run_dir=tmp_path, validation_data=None)
    found, hand = histograms(tmp_path), by_hand(15)
    assert set(found) == {"part/w", "part/b"}
    part = "grads" if of == "a function" else of
    moments = {5: 4, 15: 14} if of == "params" else {step: step for step in range(0, 15, EVERY)}
    for name in ("w", "b"):
        assert [event.step for event in found[f"part/{name}"]] == list(moments)
        for event, step in zip(found[f"part/{name}"], moments.values(), strict=True):
            assert_is_of(event, hand[step][part][name])


@pytest.mark.parametrize("executor", EXECUTORS)
def test_what_is_not_due_is_not_computed(tmp_path, executor):
    looked = []

    def look(seen):
        jax.debug.callback(lambda: looked.append(1))
        return seen.grads

    _runs.fit(executor, epochs=3, callbacks=[Asks(look)], run_dir=tmp_path, validation_data=None)
    jax.effects_barrier()
    assert len(looked) == len(range(0, 15, EVERY))


@pytest.mark.long
def test_asking_changes_no_result(tmp_path):
    plain = _runs.fit(epochs=3)
    asking = _runs.fit(epochs=3, callbacks=[*_runs.control(), Asks("grads"), Asks("params")], run_dir=tmp_path)
    for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(asking.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(self.drop(jnp.tanh(self.hidden(x))))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(0.5, deterministic=not train)(jnp.tanh(nn.Dense(4, name="hidden")(x)))
        return nn.Dense(1, name="out")(x)


def model_loss(model, batch):
    x, y = batch
    return jnp.mean((model(x) - y) ** 2)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_activations_are_those_of_the_training_forward_pass(tmp_path, kind):
    x, _ = _runs.make_data()
    model = NNXNet(nnx.Rngs(0)) if kind == "nnx" else jc.linen(LinenNet(), x[:1])
    if kind == "nnx":
        kernel, bias = model.hidden.kernel[...], model.hidden.bias[...]  # pyright: ignore[reportAttributeAccessIssue]
    else:
        params = model.split()[0]  # pyright: ignore[reportAttributeAccessIssue]
        kernel, bias = params["hidden"]["kernel"], params["hidden"]["bias"]
    hidden = x[:16] @ np.asarray(kernel) + np.asarray(bias)
    _runs.fit(
        model=model, loss_fn=model_loss, epochs=1, shuffle=False, callbacks=[Asks("activations")], run_dir=tmp_path,
        validation_data=None,
    )  # fmt: skip
    found = histograms(tmp_path)
    (dropped,) = {"part/drop", "part/Dropout_0"} & found.keys()
    assert {"part/hidden", "part/out", "part/output"} < found.keys()
    assert_is_of(found["part/hidden"][0], hidden)
    # dropout was on: half of what stands behind it is 0, and the rest is doubled
    kept = found[dropped][0].histogram_value
    assert kept.num == 64
    assert kept.max <= 2.0
    assert kept.sum_squares != pytest.approx(float((np.tanh(hidden) ** 2).sum()), rel=1e-3)


def test_each_member_has_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    states = jax.tree.map(lambda *x: jnp.stack(x), _runs.make_state(0), _runs.make_state(1))
    _runs.make_driver([Asks("params")], states, members=2, epochs=1).train()
    found = histograms(tmp_path)
    assert set(found) == {"part/w/0", "part/w/1", "part/b/0", "part/b/1"}
    assert found["part/w/0"][0].histogram_value.sum != found["part/w/1"][0].histogram_value.sum


@pytest.mark.parametrize(
    ("action", "match"),
    [
        (
            lambda: jc.actions.Histogram("h", of="gradients"),
            r"of='gradients'\) is not available. Available: 'params'",
        ),
        (lambda: jc.actions.Histogram("h", of="grads"), "available in on_before_update only"),
        (
            lambda: jc.actions.Histogram("h", of="params", where="weights"),
            r"where='weights' matches no parameter.*\bw\b",
        ),
    ],
)
def test_what_cannot_be_known_is_refused_before_the_first_step(action, match):
    callback = jc.make_callback(on_epoch_end=lambda state, metrics: (state, action()), name="mine")
    with pytest.raises(ValueError, match=match):
        _runs.fit(callbacks=[callback])


def test_activations_of_what_is_no_flax_model_are_refused():
    with pytest.raises(ValueError, match=r"not for a plain pytree. Return the arrays"):
        _runs.fit(callbacks=[Asks("activations")])


def test_a_function_that_fails_names_itself():
    with pytest.raises(AttributeError) as caught:
        _runs.fit(callbacks=[Asks(lambda look: look.gradients)])
    assert any("while computing of= of Histogram for Asks" in note for note in caught.value.__notes__)


def test_values_and_a_request_exclude_each_other():
    with pytest.raises(ValueError, match="takes either an array or of="):
        jc.actions.Histogram("h")
    with pytest.raises(ValueError, match="takes either an array or of="):
        jc.actions.Image("i", jnp.ones((2, 2)), of="params")
    with pytest.raises(ValueError, match="of= is not given"):
        jc.actions.Histogram("h", jnp.ones(2), where="a")


def test_a_recorder_answers_what_asks_for_weights(tmp_path):
    train = jc.TrainState.create(params={"w": jnp.arange(4.0)})
    with jc.Recorder(tmp_path, verbose=0) as recorder:
        recorder.perform(jc.actions.Histogram("weights", of="params"), train, step=3)
        with pytest.raises(ValueError, match="available in on_before_update only"):
            recorder.perform(jc.actions.Histogram("weights", of="grads"), train, step=3)
        with pytest.raises(ValueError, match="pass the train state"):
            recorder.perform(jc.actions.Histogram("weights", of="params"), step=3)
    (event,) = histograms(tmp_path)["weights/w"]
    assert_is_of(event, np.arange(4.0))
