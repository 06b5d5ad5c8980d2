"""`HostCallback`: classes written for Keras, ported by their base class."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from loop._runs import fit, make_data

import jaxcb as jc
from jaxcb import testing


@pytest.fixture(autouse=True)
def _strict():
    """The losses here promote dtypes, as users' losses do."""


EXECUTORS = ("looped", "stepped")
each_executor = pytest.mark.parametrize("executor", EXECUTORS)


# As they stand in Keras's own guide, but for the base class


class LossAndErrorPrintingCallback(jc.HostCallback):
    def on_train_batch_end(self, batch, logs=None):
        print("Up to batch {}, the average loss is {:7.2f}.".format(batch, logs["loss"]))

    def on_test_end(self, logs=None):
        print("The validation's loss is {:7.2f}.".format(logs["val_loss"]))

    def on_epoch_end(self, epoch, logs=None):
        print(
            "The average loss for epoch {} is {:7.2f} and mean absolute error is {:7.2f}.".format(
                epoch, logs["loss"], logs["mae"]
            )
        )


class EarlyStoppingAtMinLoss(jc.HostCallback):
    """Keras's guide, with `self.stop()` in the place of `self.model.stop_training = True`."""

    def __init__(self, patience=0):
        super().__init__()
        self.patience = patience
        self.best_weights = None

    def on_train_begin(self, logs=None):
        self.wait = 0
        self.stopped_epoch = 0
        self.best = np.inf

    def on_epoch_end(self, epoch, logs=None):
        current = logs.get("val_loss")
        if np.less(current, self.best):
            self.best = current
            self.wait = 0
            self.best_weights = {name: np.asarray(w) for name, w in self.model.items()}
        else:
            self.wait += 1
            if self.wait >= self.patience:
                self.stopped_epoch = epoch
                self.stop("the loss rises")

    def on_train_end(self, logs=None):
        if self.stopped_epoch > 0:
            print(f"Epoch {self.stopped_epoch + 1}: early stopping")


@each_executor
def test_a_printing_class_ports_by_its_base_class(executor, capsys):
    result = fit(executor, epochs=2, callbacks=[LossAndErrorPrintingCallback()])
    printed = [line for line in capsys.readouterr().out.splitlines() if "loss" in line]
    epochs = [line for line in printed if "for epoch" in line]
    history = result.history
    assert epochs == [
        f"The average loss for epoch {e} is {history['loss'][e]:7.2f} and mean absolute error is "
        f"{history['mae'][e]:7.2f}."
        for e in range(2)
    ]
    one = [f"Up to batch {batch}" for batch in range(5)] + ["The validation's loss", "The average loss for epoch"]
    assert len(printed) == 2 * len(one)
    assert all(line.startswith(start) for line, start in zip(printed, 2 * one, strict=True))


@pytest.mark.everyday(1)
@each_executor
@pytest.mark.parametrize("patience", [1, 3])
def test_a_stopping_class_decides_as_the_built_in_one(executor, patience, capsys):
    ported = EarlyStoppingAtMinLoss(patience=patience)
    given = {"learning_rate": 0.8, "epochs": 30}
    result = fit(executor, callbacks=[ported], **given)
    pure = fit(executor, callbacks=[jc.EarlyStopping(patience=patience, restore_best_weights=True)], **given)
    assert result.stopped_epoch == pure.stopped_epoch == ported.stopped_epoch
    assert result.stop_reason == "EarlyStoppingAtMinLoss: the loss rises"
    assert ported.best == pytest.approx(float(pure.history["val_loss"].min()), rel=1e-5)
    np.testing.assert_allclose(ported.best_weights["w"], pure.params["w"], rtol=1e-5)
    assert f"Epoch {ported.stopped_epoch + 1}: early stopping" in capsys.readouterr().out


class Everything(jc.HostCallback):
    """Notes each moment; its own `__init__` calls no other."""

    def __init__(self):
        self.seen = []

    def note(self, *what):
        self.seen.append(what)

    def on_train_begin(self, logs=None):
        self.note("train begin")

    def on_train_end(self, logs=None):
        self.note("train end")

    def on_epoch_begin(self, epoch, logs=None):
        self.note("epoch begin", epoch)

    def on_epoch_end(self, epoch, logs=None):
        self.note("epoch end", epoch, sorted({"loss", "val_loss"} & set(logs)))

    def on_batch_begin(self, batch, logs=None):
        self.note("batch begin", batch)

    def on_train_batch_end(self, batch, logs=None):
        self.note("batch end", batch)

    def on_batch_end(self, batch, logs=None):
        raise AssertionError("as in Keras, the new name covers the old one")

    def on_test_begin(self, logs=None):
        self.note("test begin", "val_loss" in logs)

    def on_test_end(self, logs=None):
        self.note("test end", "val_loss" in logs)

    def on_predict_end(self, logs=None):
        raise AssertionError("fit does not predict")


@each_executor
def test_methods_are_called_as_keras_calls_them(executor):
    callback = Everything()
    data = tuple(x[:40] for x in make_data())
    fit(executor, epochs=4, callbacks=[callback], data=data, validation_freq=2)
    steps = [("batch begin", 0), ("batch end", 0), ("batch begin", 1), ("batch end", 1), ("batch begin", 2)]
    expected = [("train begin",)]
    for epoch in range(4):
        expected += [("epoch begin", epoch), *steps, ("batch end", 2)]
        if epoch % 2:
            expected += [("test begin", False), ("test end", True)]
        # in an epoch without a validation, `logs` holds no old one
        expected.append(("epoch end", epoch, ["loss", "val_loss"] if epoch % 2 else ["loss"]))
    assert callback.seen == [*expected, ("train end",)]


def test_only_what_is_defined_becomes_a_hook():
    class Ends(jc.HostCallback):
        def on_epoch_end(self, epoch, logs=None):
            pass

    class Old(Ends):
        def on_batch_end(self, batch, logs=None):
            pass

    class OnInstance(jc.HostCallback):
        def __init__(self):
            self.on_train_end = lambda logs=None: None

    assert Ends().as_callback().hooks() == {"on_epoch_end"}
    assert Old().as_callback().hooks() == {"on_epoch_end", "on_batch_end"}
    assert OnInstance().as_callback().hooks() == {"on_train_end"}
    assert type("Empty", (jc.HostCallback,), {})().as_callback().hooks() == set()


def test_it_is_known_by_its_class_and_numbered():
    assert jc.chain(Everything(), jc.EarlyStopping(), Everything()).names == (
        "Everything",
        "EarlyStopping",
        "Everything_2",
    )


def test_the_laws_hold_for_what_it_becomes():
    testing.check_callback(Everything().as_callback(), max_examples=3)


def test_what_stands_for_a_callback_is_taken_by_chain():
    class Mine:
        def as_callback(self):
            return jc.EarlyStopping(name="mine")

    assert jc.chain(Mine()).names == ("mine",)


@pytest.mark.parametrize(
    ("what", "says"),
    [(Everything, "got the class Everything. Call it"), (3, "got a int. To port a Keras callback, inherit from")],
)
def test_what_is_no_callback_is_refused_with_a_cure(what, says):
    with pytest.raises(TypeError, match=says):
        jc.chain(what)


# The live run


class Net(nnx.Module):
    def __init__(self, rngs):
        self.out = nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(x)


def net_loss(model, batch):
    x, y = batch
    return jnp.mean((model(x) - y) ** 2)


class LooksAtModel(jc.HostCallback):
    def __init__(self):
        self.kernels, self.models, self.steps, self.facts = [], [], [], None

    def on_epoch_end(self, epoch, logs=None):
        self.models.append(self.model)
        self.kernels.append(np.asarray(self.model.out.kernel[...]))
        self.steps.append(self.run.step)
        self.facts = self.params


@each_executor
@pytest.mark.parametrize("copy", [False, True])
def test_the_model_is_the_callers_own_module_brought_up_to_date(executor, copy):
    net, watch = Net(nnx.Rngs(0)), LooksAtModel()
    result = jc.fit(
        net,
        net_loss,
        make_data(),
        optimizer=optax.sgd,
        learning_rate=0.1,
        epochs=3,
        batch_size=16,
        verbose=0,
        callbacks=watch,
        execution=jc.Execution(executor=executor, copy=copy),
    )
    assert all((m is net) is not copy for m in watch.models)
    assert watch.steps == [5, 10, 15]
    assert not np.array_equal(watch.kernels[0], watch.kernels[1])
    np.testing.assert_array_equal(watch.kernels[-1], np.asarray(result.model.out.kernel[...]))
    assert watch.facts == {"epochs": 3, "steps": 5, "verbose": 0}


def test_kerass_way_to_stop_is_an_error_that_names_ours():
    class Stops(jc.HostCallback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    with pytest.raises(
        jc.errors.CallbackError, match=r"Stops.on_epoch_end set self.model.stop_training.*self.stop\(\)"
    ):
        jc.fit(
            Net(nnx.Rngs(0)),
            net_loss,
            make_data(),
            optimizer=optax.sgd,
            learning_rate=0.1,
            epochs=2,
            verbose=0,
            callbacks=[Stops()],
        )


def test_outside_of_a_run_it_has_none():
    with pytest.raises(RuntimeError, match="Everything is not part of a run yet"):
        _ = Everything().model


def test_what_a_method_raises_names_it():
    class Fails(jc.HostCallback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyError("oh")

    with pytest.raises(KeyError) as caught:
        fit(epochs=1, callbacks=[Fails()])
    assert any("Fails.on_epoch_end, in epoch 1 at step 5" in note for note in caught.value.__notes__)


# What is refused when the class is made


@pytest.mark.parametrize(
    ("name", "method", "says"),
    [
        ("on_epoch_ends", lambda self, epoch, logs=None: None, "not a hook. Did you mean 'on_epoch_end'"),
        ("on_test_batch_end", lambda self, batch, logs=None: None, "not called. A validation is a single event here"),
        ("on_eval_end", lambda self, logs=None: None, "Keras's name for it is on_test_end"),
        ("on_before_update", lambda self, logs=None: None, "a hook of pure callbacks"),
        ("set_model", lambda self, model: None, "The model is self.model"),
        ("on_epoch_end", lambda self, logs=None: None, r"takes \(self, logs=None\), expected \(self, epoch, logs\)"),
        ("on_train_begin", lambda self: None, r"takes \(self\), expected \(self, logs\)"),
        ("on_batch_end", lambda self: None, r"expected \(self, batch, logs\)"),
        ("on_epoch_end", lambda self, state, metrics: None, "Pure hooks belong in a subclass of jc.Callback"),
        ("on_train_end", lambda self, state, metrics: None, "Pure hooks belong in a subclass of jc.Callback"),
    ],
)
def test_what_would_not_be_called_is_refused(name, method, says):
    with pytest.raises(jc.errors.CallbackError, match=says):
        type("Ported", (jc.HostCallback,), {name: method})


def test_signatures_may_differ_where_the_call_fits():
    made = type("Ported", (jc.HostCallback,), {"on_epoch_end": lambda self, *args: None, "on_train_end": print})
    assert made().as_callback().hooks() == {"on_epoch_end", "on_train_end"}
