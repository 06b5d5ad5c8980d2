"""SwapEMAWeights: the same as by hand, raw weights for training, averages for validation and for the end."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from loop._runs import fit, make_data, make_driver, make_state

import jaxcb as jc

EXECUTORS = ["looped", "stepped"]
KEY = "SwapEMAWeights/ema"


@pytest.fixture(autouse=True)
def _strict():
    """Not here: optax and flax promote dtypes. The laws look at the callback's own arithmetic."""


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a, b, rtol=2e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), a, b)


# The same as a loop by hand, under dropout, batch norm and early stopping

DECAY, BATCH, EPOCHS, PATIENCE = 0.8, 8, 12, 2


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.hidden = nnx.Linear(3, 6, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(6, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(6, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


def net_loss(model, batch):
    x, y = batch
    return jnp.mean((model(x) - y) ** 2)


def copy_of(model, *parts):
    """The Variables of some kinds, which share nothing with the model."""
    return jax.tree.map(jnp.copy, nnx.state(model, nnx.Any(*(parts or (nnx.Param, nnx.BatchStat)))))


def by_hand(of):
    """A plain NNX loop: its validation losses, its best averaged weights, and its last ones."""
    parts = (nnx.Param, nnx.BatchStat) if of == "model" else (nnx.Param,)
    model = Net()
    optimizer = nnx.Optimizer(model, optax.sgd(0.05, momentum=0.9), wrt=nnx.Param)

    @nnx.jit
    def train_step(model, optimizer, batch):
        _, grads = nnx.value_and_grad(net_loss)(model, batch)
        optimizer.update(model, grads)

    validate = nnx.jit(net_loss)
    (x, y), validation = make_data(48), make_data(20, seed=1)
    ema, best, wait, losses, best_state = None, np.inf, 0, [], None
    for _ in range(EPOCHS):
        model.train()
        for start in range(0, len(x), BATCH):
            train_step(model, optimizer, (x[start : start + BATCH], y[start : start + BATCH]))
            now = copy_of(model, *parts)
            ema = now if ema is None else jax.tree.map(lambda e, w: DECAY * e + (1 - DECAY) * w, ema, now)
        raw = copy_of(model)
        nnx.update(model, ema)
        model.eval()
        losses.append(float(validate(model, validation)))
        averaged = copy_of(model)
        nnx.update(model, raw)
        if losses[-1] < best:
            best, wait, best_state = losses[-1], 0, averaged
        else:
            wait += 1
        if wait >= PATIENCE:
            break
    return losses, best_state, averaged


@pytest.fixture(scope="module", params=["params", "model"])
def hand(request):
    return request.param, *by_hand(request.param)


def fit_net(of, executor, ema_first=True, **more):
    early = jc.EarlyStopping(patience=PATIENCE, restore_best_weights=True)
    callbacks = [jc.SwapEMAWeights(decay=DECAY, of=of, **more), early]
    return jc.fit(
        Net(),
        net_loss,
        make_data(48),
        optimizer=optax.sgd(0.05, momentum=0.9),
        epochs=EPOCHS,
        batch_size=BATCH,
        shuffle=False,
        validation_data=make_data(20, seed=1),
        callbacks=callbacks if ema_first else callbacks[::-1],
        verbose=0,
        execution=jc.Execution(executor=executor),
    )


@pytest.mark.everyday(1)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_ends_where_a_loop_by_hand_ends(hand, executor):
    of, losses, best, _ = hand
    result = fit_net(of, executor)
    assert PATIENCE < len(losses) < EPOCHS  # it stopped early, and not at once
    assert np.argmin(losses) > 0
    assert_close(result.history["val_loss"], np.asarray(losses), rtol=1e-4)
    assert_close(nnx.to_pure_dict(copy_of(result.model)), nnx.to_pure_dict(best), rtol=1e-4)


@pytest.mark.everyday(1)
def test_behind_early_stopping_the_last_averages_hold_but_its_best_ones_are_the_same(hand):
    of, losses, best, last = hand
    result = fit_net(of, "looped", ema_first=False)
    assert_close(result.history["val_loss"], np.asarray(losses), rtol=1e-4)
    assert_close(result.params, nnx.to_pure_dict(nnx.filter_state(last, nnx.Param)), rtol=1e-4)
    kept = result.state.weights["EarlyStopping/best"].value["params"]
    assert_close(kept, nnx.to_pure_dict(nnx.filter_state(best, nnx.Param)), rtol=1e-4)


# Training goes on from the raw weights


def averages(params, **changes):
    """What the slot would hold after these weights, one a step from step 1 on."""
    given = {"decay": 0.5, "every": 1, "start_step": 0} | changes
    ema = None
    for step, now in enumerate(params, 1):
        if step % given["every"] == 0 and step >= given["start_step"]:
            mix = jax.tree.map(lambda e, w: given["decay"] * e + (1 - given["decay"]) * w, ema or now, now)
            ema = mix if ema is not None else now
    return ema


def recorder(into, hook="on_batch_end"):
    """A callback that keeps the weights of a moment, as the host sees them."""

    def note(run):
        into.append(jax.device_get(run.state.params))

    return jc.make_callback(name=f"Recorder{hook}", **{hook: lambda state, metrics: (state, jc.actions.Call(note))})


@pytest.mark.filterwarnings("ignore:.*SwapEMAWeights does nothing in this run:RuntimeWarning")
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("swap_on_epoch", [False, True])
def test_validation_in_an_epochs_middle_changes_nothing_of_the_training(executor, swap_on_epoch):
    options = {"epochs": 3, "eval_every": 3}  # of 5 steps an epoch
    # the same program, in which the average never begins: the bits of different programs may differ
    plain = fit(executor, callbacks=[jc.SwapEMAWeights(swap_on_epoch, decay=0.5, start_step=1000)], **options)
    result = fit(executor, callbacks=[jc.SwapEMAWeights(swap_on_epoch, decay=0.5)], **options)
    assert_same(result.history["loss"], plain.history["loss"])
    assert_same(result.state.weights[KEY].value["params"], plain.params)  # the raw ones, swapped out at the end
    assert_same(result.state.opt_state, plain.state.opt_state)
    assert not np.array_equal(result.params["w"], plain.params["w"])
    assert not np.allclose(result.history["val_loss"], plain.history["val_loss"], equal_nan=True)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("swap_on_epoch", [False, True])
def test_the_average_is_that_of_the_raw_weights_after_each_step_due(swap_on_epoch):
    raw, options = [], {"every": 2, "start_step": 5, "decay": 0.5}
    ema = jc.SwapEMAWeights(swap_on_epoch, **options)
    result = fit(epochs=3, eval_every=4, callbacks=[ema, recorder(raw)])
    assert len(raw) == 15
    assert_close(result.params, averages(raw, **options))
    assert_same(result.state.weights[KEY].value["params"], raw[-1])


@pytest.mark.parametrize(("swap_on_epoch", "sees"), [(False, "raw"), (True, "averages")])
def test_what_host_actions_see_at_an_epochs_end_and_begin(swap_on_epoch, sees):
    raw, ends, begins = [], [], []
    watch = [recorder(raw), recorder(ends, "on_epoch_end"), recorder(begins, "on_epoch_begin")]
    fit(epochs=3, callbacks=[*watch, jc.SwapEMAWeights(swap_on_epoch, decay=0.5)])
    for epoch, seen in enumerate(ends, 1):
        assert_close(seen, raw[5 * epoch - 1] if sees == "raw" else averages(raw[: 5 * epoch]))
    for epoch, seen in enumerate(begins[1:], 1):
        assert_same(seen, raw[5 * epoch - 1])


# The end


@pytest.mark.everyday(1)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("swap_on_epoch", [False, True])
@pytest.mark.parametrize("hook", ["on_eval_end", "on_batch_end"])
def test_a_run_stopped_in_an_epochs_middle_ends_averaged(executor, swap_on_epoch, hook):
    """At a validation the averages stand in the model when the stop is asked for."""
    raw = []
    stop = jc.make_callback(name="S", **{hook: lambda state, m: (state, jc.actions.Stop(m.step >= 8, "enough"))})
    ema = jc.SwapEMAWeights(swap_on_epoch, decay=0.5)
    result = fit(executor, epochs=3, eval_every=4, callbacks=[ema, stop, recorder(raw)])
    assert (int(result.state.step), len(raw)) == (8, 8)
    assert_close(result.params, averages(raw))
    assert_same(result.state.weights[KEY].value["params"], raw[-1])
    assert bool(result.callback_states["SwapEMAWeights"].swapped)


@pytest.mark.parametrize("swap_on_epoch", [False, True])
def test_without_validation_it_ends_averaged(swap_on_epoch):
    raw = []
    ema = jc.SwapEMAWeights(swap_on_epoch, decay=0.5)
    result = fit(epochs=2, validation_data=None, callbacks=[ema, recorder(raw)])
    assert_close(result.params, averages(raw))


@pytest.mark.everyday(1)
@pytest.mark.filterwarnings("ignore:.*SwapEMAWeights does nothing in this run:RuntimeWarning")
@pytest.mark.parametrize("swap_on_epoch", [False, True])
def test_a_run_that_ends_before_the_average_begins_keeps_its_weights(swap_on_epoch):
    plain = fit(epochs=2, callbacks=[])
    result = fit(epochs=2, callbacks=[jc.SwapEMAWeights(swap_on_epoch, start_step=11)])
    assert_same(result.params, plain.params)
    assert_same(result.history["val_loss"], plain.history["val_loss"])
    assert not bool(result.state.weights[KEY].filled)
    assert not bool(result.callback_states["SwapEMAWeights"].averaged)
    assert not bool(result.callback_states["SwapEMAWeights"].swapped)


@pytest.mark.parametrize("of", ["params", "model"])
def test_of_model_averages_the_floating_state_alone(of):
    chain = jc.chain(jc.SwapEMAWeights(decay=0.5, of=of))
    train = jc.TrainState.create(
        params=jnp.float32(0), model_state={"mean": jnp.float32(0), "count": jnp.int32(0)}, callbacks=chain
    )
    state = chain.init()
    for step in range(1, 4):
        now = {"mean": jnp.float32(step), "count": jnp.int32(step)}
        train = train.replace(params=jnp.float32(step), model_state=now)
        state, actions = chain.on_batch_end(state, jc.Metrics({}, step=step))
        train = jc.apply(actions, train)
    _, actions = chain.on_train_end(state, jc.Metrics({}, step=3))
    train = jc.apply(actions, train)
    assert float(train.params) == 2.25
    assert (float(train.model_state["mean"]), int(train.model_state["count"])) == (2.25 if of == "model" else 3.0, 3)


@pytest.mark.long
def test_each_member_of_a_population_ends_with_its_own_averages():
    """The one that stops first waits for the other, with the averages swapped in."""

    def train(state, **more):
        early = jc.EarlyStopping(patience=1, min_delta=0.02)
        driver = make_driver([jc.SwapEMAWeights(True, decay=0.5), early], state, epochs=8, **more)
        driver.train()
        return driver.results.stops, driver.device.live.carry().train

    keys = jnp.stack([jax.random.key(5), jax.random.key(6)])
    states = [jc.apply(jc.actions.SetLearningRate(rate), make_state(seed)) for seed, rate in enumerate((0.4, 0.1))]
    stops, population = train(jax.tree.map(lambda *x: jnp.stack(x), *states), members=2, keys=keys)
    assert len({stop.epoch for stop in stops}) == 2
    first = stops[0].member
    _, alone = train(states[first], keys=keys[first])
    own = jax.tree.map(lambda x: x[first], (population.params, population.weights[KEY]))
    assert_close(own, (alone.params, alone.weights[KEY]), rtol=1e-3)
    assert population.weights[KEY].filled.tolist() == [True, True]


# What it asks for


@pytest.mark.parametrize(
    ("every", "start_step", "due"), [(1, 0, [1, 2, 3, 4, 5, 6]), (2, 0, [2, 4, 6]), (2, 3, [4, 6])]
)
def test_when_an_average_is_due(play, every, start_step, due):
    played = play(jc.SwapEMAWeights(every=every, start_step=start_step), hook="on_batch_end", loss=[1.0] * 6)
    assert [i + 1 for i in played.when(jc.actions.Average)] == due


def test_a_hook_that_a_mode_does_not_need_is_not_there():
    assert "on_epoch_begin" not in jc.SwapEMAWeights().hooks()
    assert "on_epoch_begin" in jc.SwapEMAWeights(True).hooks()


def test_decay_can_be_swept():
    def first(decay):
        _, (action,) = jc.chain(jc.SwapEMAWeights().replace(decay=decay)).on_batch_end(
            {"SwapEMAWeights": jc.SwapEMAWeights().init()}, jc.Metrics({}, step=1)
        )
        return action.decay

    assert jax.vmap(first)(jnp.array([0.5, 0.75])).tolist() == [0.5, 0.75]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"decay": 1.0}, "SwapEMAWeights: decay must lie strictly between 0.0 and 1.0, got 1.0"),
        ({"every": 0}, "every must be a whole number of at least 1, got 0"),
        ({"start_step": -1}, "start_step must be a whole number of at least 0, got -1"),
        ({"of": "optimizer"}, "of must be one of 'params', 'model', got 'optimizer'"),
        ({"swap_on_epoch": 0.99}, "swap_on_epoch must be one of False, True, got 0.99"),
    ],
)
def test_arguments_are_checked(arguments, says):
    with pytest.raises(ValueError, match=says):
        jc.SwapEMAWeights(**arguments)
