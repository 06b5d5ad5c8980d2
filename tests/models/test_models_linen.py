"""Linen: the same as applying the module by hand, with nothing to thread."""

import warnings
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jaxcb as jc
from jaxcb._src.models.linen import LinenModel, linen
from jaxcb.models import adapt


def stream_key(key, call, name="dropout"):
    return jax.random.fold_in(jax.random.fold_in(key, call), zlib.crc32(name.encode()))


def test_the_initial_values_are_those_of_init(nets, batch):
    expected = nets.linen().init(jax.random.key(4), batch["x"], train=False)
    params, model_state, rngs = linen(nets.linen(), batch["x"], seed=4).split()
    jax.tree.map(np.testing.assert_array_equal, {"params": params, **model_state}, expected)
    assert rngs is None
    given = linen(nets.linen(), variables=expected).split()
    jax.tree.map(np.testing.assert_array_equal, given[:2], (params, model_state))


def test_two_steps_are_those_by_hand(nets, batch):
    module, tx = nets.linen(), optax.adam(1e-2)
    adapter = linen(module, batch["x"])
    params, model_state, _ = adapter.split()
    opt_state = tx.init(params)
    by_hand, stats, hand_opt = params, model_state["batch_stats"], tx.init(params)

    @jax.jit
    def step(params, model_state, opt_state, key):
        def loss(params):
            model = adapter.merge(params, model_state, None, train=True, key=key)
            return nets.cross_entropy(model(batch["x"]), batch["y"]), adapter.carried(model)[0]

        (value, model_state), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), model_state, opt_state, value

    @jax.jit
    def hand_step(params, stats, opt_state, key):
        def loss(params):
            logits, new = module.apply(
                {"params": params, "batch_stats": stats},
                batch["x"],
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": stream_key(key, 0)},
            )
            return nets.cross_entropy(logits, batch["y"]), new["batch_stats"]

        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), stats, opt_state, value

    values = []
    for i in range(2):
        key = jax.random.fold_in(jax.random.key(0), i)
        params, model_state, opt_state, value = step(params, model_state, opt_state, key)
        by_hand, stats, hand_opt, expected = hand_step(by_hand, stats, hand_opt, key)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        values.append(value)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        (params, model_state["batch_stats"]),
        (by_hand, stats),
    )


def test_dropout_differs_by_step_and_by_call(nets, batch):
    adapter = linen(nets.linen(), batch["x"])
    parts = adapter.split()

    def outputs(key):
        model = adapter.merge(*parts, train=True, key=key)
        return model(batch["x"]), model(batch["x"])

    first, second = outputs(jax.random.key(0))
    assert not np.allclose(first, second)
    assert not np.allclose(first, outputs(jax.random.key(1))[0])
    np.testing.assert_array_equal(first, outputs(jax.random.key(0))[0])


def test_statistics_move_in_training_only(nets, batch):
    adapter = linen(nets.linen(), batch["x"])
    parts = adapter.split()
    for train in (True, False):
        model = adapter.merge(*parts, train=train, key=jax.random.key(0))
        model(batch["x"])
        moved = adapter.carried(model)[0]["batch_stats"]["BatchNorm_0"]["mean"]
        assert np.any(moved) == train


def test_the_training_argument_may_be_passed(nets, batch):
    adapter = linen(nets.linen(), batch["x"])
    model = adapter.merge(*adapter.split(), train=True, key=jax.random.key(0))
    np.testing.assert_array_equal(model(batch["x"], train=False), model(batch["x"], False))
    evaluation = adapter.merge(*adapter.split(), train=False, key=jax.random.key(0))
    np.testing.assert_array_equal(evaluation(batch["x"]), model(batch["x"], train=False))
    for args, kwargs in (((True,), {}), ((), {"train": True})):
        before = evaluation.state
        assert not np.allclose(evaluation(batch["x"], *args, **kwargs), model(batch["x"], train=False))
        assert evaluation.state is before


@pytest.mark.parametrize(
    ("name", "while_training"), [("train", True), ("training", True), ("is_training", True), ("deterministic", False)]
)
def test_names_of_the_training_argument(name, while_training):
    scope: dict = {"nn": nn}
    source = (
        f"class Net(nn.Module):\n @nn.compact\n def __call__(self, x, {name}=None):\n  return nn.Dense(1)(x), {name}\n"
    )
    exec(source, scope)
    adapter = linen(scope["Net"](), jnp.ones((1, 2)))
    for train in (True, False):
        assert adapter.merge(*adapter.split(), train=train)(jnp.ones((1, 2)))[1] is (while_training == train)


class AutoEncoder(nn.Module):
    def setup(self):
        self.down, self.up = nn.Dense(1), nn.Dense(2)

    def encode(self, x):
        return self.down(x)

    def __call__(self, x):
        self.sow("losses", "penalty", jnp.sum(x))
        self.sow("intermediates", "seen", x)
        return self.up(self.encode(x) + jax.random.normal(self.make_rng("noise"), (1, 1)))


def test_methods_streams_and_what_is_sown():
    x = jnp.ones((1, 2))
    adapter = linen(AutoEncoder(), x, rngs=("noise",))
    assert adapter.split()[1] == {}  # what is sown is not carried
    model = adapter.merge(*adapter.split(), train=True, key=jax.random.key(0))
    assert model.apply(x, method="encode").shape == (1, 1)
    np.testing.assert_array_equal(model.apply(x, method=AutoEncoder.encode), model.apply(x, method="encode"))
    y, sown = model.apply(x, mutable=["losses"])
    assert y.shape == (1, 2)
    assert float(sown["losses"]["penalty"][0]) == 2.0
    assert adapter.carried(model) == ({}, None)
    assert not np.allclose(model(x), model(x))  # keys come in evaluation too
    unnamed = linen(AutoEncoder(), x)
    with pytest.raises(Exception, match="noise") as caught:
        unnamed.merge(*unnamed.split(), train=True, key=jax.random.key(0))(x)
    assert "rngs=('dropout', 'noise')" in "".join(caught.value.__notes__)


def test_the_delivered_model_stands_alone(nets, batch):
    adapter = linen(nets.linen(), batch["x"])
    model = adapter.deliver(*adapter.split())
    assert isinstance(model, LinenModel)
    expected = nets.linen().apply(model.variables, batch["x"], train=False)
    np.testing.assert_array_equal(model(batch["x"]), expected)
    np.testing.assert_allclose(jax.jit(model)(batch["x"]), expected, rtol=1e-5, atol=1e-6)


def test_the_delivered_model_can_be_trained_on(nets, batch):
    adapter = linen(nets.linen(), batch["x"], rngs=("dropout", "noise"))
    again = adapt(adapter.deliver(*adapter.split()))
    assert again.streams == ("dropout", "noise")  # pyright: ignore[reportAttributeAccessIssue]
    jax.tree.map(np.testing.assert_array_equal, again.split(), adapter.split())


def test_an_argument_that_is_an_attribute_is_left_alone():
    adapter = linen(nn.Sequential([nn.Dense(2), nn.Dropout(0.5, deterministic=True)]), jnp.ones((1, 2)))
    model = adapter.merge(*adapter.split(), train=True, key=jax.random.key(0))
    np.testing.assert_array_equal(model(jnp.ones((1, 2))), model(jnp.ones((1, 2))))


# Modules whose mode is fixed where they are made

X, Y = np.ones((8, 4), np.float32), np.zeros((8, 1), np.float32)


class Fixed(nn.Module):
    """Dropout in training mode, for ever."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.Dropout(0.5, deterministic=False)(x))


class Field(nn.Module):
    """The mode is an attribute of the module, and the noise its own."""

    train: bool = True

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(x + jax.random.normal(self.make_rng("noise"), x.shape) if self.train else x)


class Asking(nn.Module):
    """Drops where there are keys."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.Dropout(0.5)(x, deterministic=not self.has_rng("dropout")))


class Cell(nn.Module):
    deterministic: bool

    @nn.compact
    def __call__(self, carry, x):
        return nn.Dropout(0.5, deterministic=self.deterministic)(nn.Dense(4)(carry)), None


class Scanned(nn.Module):
    """Lifted, so that keys are split for the layers in any mode."""

    deterministic: bool = False

    @nn.compact
    def __call__(self, x):
        split = {"params": True, "dropout": True}
        layers = nn.scan(nn.remat(Cell), variable_axes={"params": 0}, split_rngs=split, length=3)
        return nn.Dense(1)(layers(self.deterministic)(x, None)[0])


class Jitted(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.jit(Fixed)()(x)


class Variational(nn.Module):
    """Always draws, in evaluation too."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(x + jax.random.normal(self.make_rng("noise"), x.shape))


class Argument(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(1)(nn.Dropout(0.5, deterministic=not train)(x))


def square(model, batch):
    return jnp.mean((model(batch[0]) - batch[1]) ** 2)


def warned(run):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(w.message) for w in caught if "jaxcb" in str(w.message)]


@pytest.mark.everyday(2)
@pytest.mark.parametrize(
    ("module", "stream", "where"),
    [
        (Fixed(), "dropout", "Dropout at Dropout_0"),
        (Field(), "noise", "in Field"),
        (Asking(), "dropout", "Dropout at Dropout_0"),
        (Scanned(), "dropout", "Dropout at .*/Dropout_0"),
        (Jitted(), "dropout", "Dropout at .*/Dropout_0"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else "",
)
def test_draws_of_a_module_that_always_trains_are_warned_of_once(module, stream, where):
    model = linen(module, X[:1], rngs=(stream,))
    runs = [
        lambda: jc.evaluate(model, square, (X, Y), batch_size=3),
        lambda: jc.predict(model, X, batch_size=3),
    ]
    with pytest.warns(
        UserWarning, match=rf"{type(module).__name__} draws .*'{stream}' in evaluation.*{where}"
    ) as first:
        runs[0]()
    assert len(first) == 1
    (text,) = [str(w.message) for w in first]
    for part in ("argument of __call__", "deterministic", f"rngs={{{stream!r}: key}}"):
        assert part in text
    assert ("dropout is active" in text) == (stream == "dropout")
    assert not warned(runs[0])
    assert not warned(runs[1])
    again = linen(module, X[:1], rngs=(stream,))
    assert len(warned(lambda: jc.predict(again, X))) == 1


@pytest.mark.parametrize("executor", ["looped", "stepped"])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_validation_warns_of_them_too(executor, streamed):
    def run():
        val = [(X[:4], Y[:4]), (X[4:], Y[4:])] if streamed else (X, Y)
        jc.fit(
            linen(Fixed(), X[:1]),
            lambda model, batch: square(model, batch),
            (X, Y),
            optimizer=optax.sgd(0.1),
            epochs=2,
            validation_data=val,
            verbose=0,
            execution=jc.Execution(executor=executor),
        )

    assert len(warned(run)) == 1


@pytest.mark.parametrize(
    ("module", "loss_fn"),
    [
        (Variational(), square),
        (Field(train=False), square),
        (Scanned(deterministic=True), square),
        (Argument(), square),
        (Argument(), lambda model, batch: model(batch[0], train=True).mean()),
        (Argument(), lambda model, batch: model(batch[0], True).mean()),
        (Fixed(), lambda model, batch: model.apply(batch[0], rngs={"dropout": jax.random.key(0)}).mean()),
    ],
    ids=["variational", "field off", "scan off", "argument", "by keyword", "by place", "own keys"],
)
def test_draws_that_are_meant_are_not_warned_of(module, loss_fn):
    model = linen(module, X[:1], rngs=("dropout", "noise"))
    assert not warned(lambda: jc.evaluate(model, loss_fn, (X, Y)))


class Modal(nn.Module):
    """A module whose mode is a field, in Dropout and in BatchNorm."""

    train: bool
    width: int = 1

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=not self.train, momentum=0.5)(x)
        return nn.Dense(self.width)(nn.Dropout(0.5, deterministic=not self.train)(x))


class ModalArgument(nn.Module):
    """The same with an argument."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        return nn.Dense(1)(nn.Dropout(0.5, deterministic=not train)(x))


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_a_module_for_evaluation_does_what_an_argument_for_the_mode_does(executor):
    how = {"optimizer": optax.sgd(0.1), "epochs": 2, "verbose": 0, "validation_data": (X, Y)}
    how["execution"] = jc.Execution(executor=executor)
    found = {}
    for name, model in {
        "fields": linen(Modal(True), X[:1], eval_module=Modal(False)),
        "argument": linen(ModalArgument(), X[:1]),
    }.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = jc.fit(model, square, (X, Y), **how)
            found[name] = (
                result.history["loss"], result.history["val_loss"], jc.predict(result.model, X),
                np.float32(jc.evaluate(result.model, square, (X, Y))["loss"]),
            )  # fmt: skip
    assert result.state.model_state["batch_stats"]["BatchNorm_0"]["mean"].any()
    for one, other in zip(found["fields"], found["argument"], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_module_for_evaluation_is_checked():
    words = r"eval_module, a Modal, has other parameters .*Dense_0/bias has the shape \(2,\), expected \(1,\)"
    with pytest.raises(ValueError, match=words):
        linen(Modal(True), X[:1], eval_module=Modal(False, 2))
    with pytest.raises(ValueError, match="expected none"):
        linen(nn.Dense(1, use_bias=False), X[:1], eval_module=nn.Dense(1))
    with pytest.raises(TypeError, match=r"eval_module got the class Modal, expected an instance"):
        linen(Modal(True), X[:1], eval_module=Modal)
    model = linen(Modal(True), X[:1], rngs=("dropout",))
    with pytest.warns(UserWarning, match="eval_module="):
        jc.predict(linen(Fixed(), X[:1]), X, batch_size=5)
    assert model.eval_module is model.module


def test_training_warns_of_nothing():
    def run():
        jc.fit(linen(Fixed(), X[:1]), square, (X, Y), optimizer=optax.sgd(0.1), epochs=1, verbose=0)

    assert not warned(run)


def test_statistics_that_always_move_are_an_error_with_its_cure():
    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(nn.BatchNorm(use_running_average=False)(x))

    with pytest.raises(Exception, match="batch_stats") as caught:
        jc.evaluate(linen(Norm(), X[:1]), square, (X, Y))
    assert any("use_running_average=not train" in note for note in caught.value.__notes__)


def test_errors(nets, batch):
    with pytest.raises(TypeError, match=r"the class LinenNet.*jc\.linen\(MyModule"):
        linen(nets.linen, batch["x"])
    with pytest.raises(TypeError, match="no sample input"):
        linen(nets.linen())
    with pytest.raises(TypeError, match="expected a tuple of names"):
        linen(nets.linen(), batch["x"], rngs="dropout")
    with pytest.raises(ValueError, match="no parameters to train"):
        linen(nn.Dropout(0.5, deterministic=True), batch["x"])
    with pytest.raises(TypeError, match="leaf count of dtype int32"):
        linen(nn.Dense(1), variables={"params": {"count": jnp.zeros((), jnp.int32)}})
