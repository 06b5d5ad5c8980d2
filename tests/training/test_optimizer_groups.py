"""Several optimizers: each trains its group as it would alone, and its rate has a name everywhere."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _compilations import counting
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from training._two_parts import DATA, apply_pytree, bits, close, pytree

import jaxcb as jc
from jaxcb._src.training.optimizer_groups import group_name, labels_of, named_groups
from jaxcb._src.utils.names import leaf_name, matches

GROUPS = {"body/**": optax.sgd, "head/**": optax.adamw}
RATES = {"body/**": 0.02, "head/**": 0.05}
pytestmark = pytest.mark.usefixtures("as_optax_promotes")


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean((apply_pytree(params, x) - y) ** 2)


def fit(**kwargs):
    given = {"optimizer": GROUPS, "learning_rate": RATES, "epochs": 3, "batch_size": 6, "verbose": 0}
    return jc.fit(pytree(), loss_fn, DATA, **{**given, **kwargs})


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_they_are_optax_partition_by_hand(executor):
    execution = jc.Execution(executor=executor)
    by_hand = optax.partition({"a": optax.sgd(0.02), "b": optax.adamw(0.05)}, {"body": "a", "head": "b"})
    ours, reference = fit(execution=execution), fit(optimizer=by_hand, learning_rate=None, execution=execution)
    close(ours.params, reference.params)
    close(ours.history["loss"], reference.history["loss"])
    # ready-made ones, and a schedule
    ready = {"body/**": optax.sgd(0.02), "head/**": optax.adamw}
    mixed = fit(optimizer=ready, learning_rate={"head": optax.constant_schedule(0.05)}, execution=execution)
    close(mixed.params, reference.params)
    assert {"lr_scale/body", "learning_rate/head"} <= set(mixed.history)


def test_each_rate_has_its_name_in_metrics_logs_and_callbacks(tmp_path, capsys):
    result = fit(
        epochs=4,
        run_dir=tmp_path,
        callbacks=[
            jc.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9, min_lr=0.01, of="head", verbose=1),
            jc.LearningRateScheduler(lambda epoch, lr: lr * 0.5, of="body"),
            jc.callbacks.LearningRateMonitor(),
            jc.CSVLogger("log.csv"),
        ],
    )
    np.testing.assert_allclose(result.history["learning_rate/body"], [0.01, 0.005, 0.0025, 0.00125], rtol=1e-6)
    np.testing.assert_allclose(result.history["learning_rate/head"], [0.05, 0.05, 0.025, 0.0125], rtol=1e-6)
    np.testing.assert_allclose(result.history["base_learning_rate/head"], [0.05] * 4, rtol=1e-6)
    assert "learning_rate" not in result.history
    rates = result.state.learning_rates
    assert set(rates) == {"body", "head"}
    np.testing.assert_allclose(rates["head"].effective(), 0.01, rtol=1e-6)  # the floor
    assert "the learning rate of head by 0.5, from 0.05 to 0.025" in capsys.readouterr().out
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = np.asarray([row["learning_rate/head"] for row in rows], np.float32)
    assert logged.tolist() == result.history["learning_rate/head"].tolist()
    with pytest.raises(ValueError, match=r"the learning rates (head, body|body, head); read one of them"):
        _ = result.state.learning_rate
    assert result.plot() is not None


def test_a_callback_without_a_name_acts_on_all_rates():
    plateau = jc.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9, min_lr=0.015)
    result = fit(epochs=3, callbacks=[plateau])
    np.testing.assert_allclose(result.history["learning_rate/body"], [0.02, 0.02, 0.015], rtol=1e-6)
    np.testing.assert_allclose(result.history["learning_rate/head"], [0.05, 0.05, 0.025], rtol=1e-6)
    one = fit(epochs=2, callbacks=[jc.LearningRateScheduler(lambda epoch: 0.3)])
    np.testing.assert_allclose([one.history[f"learning_rate/{n}"][-1] for n in ("body", "head")], 0.3, rtol=1e-6)


def test_they_resume_bit_for_bit_with_their_rates(tmp_path):
    callbacks = [jc.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9, of="head")]
    whole = fit(epochs=4, callbacks=callbacks)
    fit(epochs=2, callbacks=callbacks, run_dir=tmp_path)
    resumed = fit(epochs=4, callbacks=callbacks, run_dir=tmp_path, resume=True)
    assert bits(whole.state.opt_state) == bits(resumed.state.opt_state)
    with pytest.warns(RuntimeWarning, match="learning_rate .*'head': 0.05.* -> .*'head': 0.5"):
        new = fit(
            epochs=5, learning_rate={"body": 0.02, "head": 0.5}, run_dir=tmp_path, resume=True, callbacks=callbacks
        )
    np.testing.assert_allclose(new.history["base_learning_rate/head"][-1], 0.5)  # configuration comes from the code


def test_other_constant_rates_need_no_other_program():
    fit()
    with counting() as counts:
        fit(learning_rate={"body/**": 0.1, "head/**": 0.2})
    assert not counts


@pytest.mark.everyday(1)
@pytest.mark.parametrize("strategy", ["vmap", "map"])
def test_members_of_a_sweep_have_their_own_rates(strategy):
    heads = [0.01, 0.2]
    sweep = jc.sweep(
        pytree(),
        loss_fn,
        DATA,
        over={"optimizer.head.learning_rate": heads},
        optimizer=GROUPS,
        learning_rate={"body/**": 0.02},
        epochs=3,
        batch_size=6,
        strategy=strategy,
        callbacks=[jc.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9, of="head")],
        verbose=0,
    )
    for i, head in enumerate(heads):
        alone = fit(
            learning_rate={"body": 0.02, "head": head},
            callbacks=[jc.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9, of="head")],
        )
        close(sweep.member(i).params, alone.params)
        close(sweep.member(i).history["learning_rate/head"], alone.history["learning_rate/head"])
    with pytest.raises(ValueError, match=r"can be swept: optimizer.body.learning_rate.*Did you mean"):
        jc.sweep(
            pytree(), loss_fn, DATA, over={"optimizer.haed.learning_rate": heads}, optimizer=GROUPS, learning_rate=0.1,
            epochs=1, verbose=0,
        )  # fmt: skip


def test_a_sweep_takes_no_negative_rate_of_a_group():
    with pytest.raises(ValueError, match="must be a finite number of at least 0"):
        jc.sweep(
            pytree(), loss_fn, DATA, over={"optimizer.head.learning_rate": [0.1, -0.1]}, optimizer=GROUPS,
            learning_rate=0.1, epochs=1, batch_size=8,
        )  # fmt: skip


def test_groups_and_trainable_go_together():
    result = fit(optimizer={"head/kernel": optax.adam, "head/bias": optax.sgd}, learning_rate=0.05, trainable="head/**")
    close(result.params["body"], pytree()["body"])
    assert set(result.state.learning_rates) == {"head/kernel", "head/bias"}
    with pytest.raises(ValueError, match=r"the group of optimizer='body/\*\*' matches no parameter"):
        fit(trainable="head/**")


def test_a_run_with_groups_continues_with_another_part():
    first = fit(optimizer={"head/**": optax.adam}, learning_rate=0.05, trainable="head/**")
    second = jc.fit(first, loss_fn, DATA, optimizer=GROUPS, learning_rate=RATES, trainable="**", epochs=1, verbose=0)
    assert set(second.state.learning_rates) == {"body", "head"}
    np.testing.assert_allclose(second.history["learning_rate/body"], 0.02, rtol=1e-6)


def test_a_group_may_be_a_type_of_variables():
    class Net(nnx.Module):
        def __init__(self):
            self.body, self.lora = nnx.Linear(3, 1, rngs=nnx.Rngs(0)), nnx.LoRA(3, 1, 1, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return self.body(x) + self.lora(x)

    groups = {nnx.LoRAParam: optax.adam, jc.models.AllBut(nnx.LoRAParam): optax.sgd}
    result = jc.fit(
        Net(),
        lambda m, b: jnp.mean((m(b[0]) - b[1]) ** 2),
        DATA,
        optimizer=groups,
        learning_rate=0.01,
        epochs=1,
        verbose=0,
    )
    assert set(result.state.learning_rates) == {"LoRAParam", "AllBut(LoRAParam)"}


@given(st.permutations(["body/**", "head/kernel", "**/nothing", "head/bias", "**/kernel"]), st.integers(1, 5))
def test_each_parameter_is_in_exactly_one_group_or_that_is_an_error(patterns, count):
    chosen = dict.fromkeys(patterns[:count], optax.sgd)
    shapes = pytree()
    names = [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    hits = [[matches(p, n) for p in chosen] for n in names]
    good = all(sum(row) == 1 for row in hits) and all(any(column) for column in zip(*hits, strict=True))
    groups = named_groups(chosen, "fit")
    if good:
        labels = labels_of(groups, shapes, None, "fit")
        assert [matches(groups[label], name) for label, name in zip(labels, names, strict=True)] == [True] * len(names)
    else:
        with pytest.raises(ValueError, match="group"):
            labels_of(groups, shapes, None, "fit")


SGD, ADAM = optax.sgd, optax.adam
BAD_GROUPS = [
    ({"body/**": SGD, "haed/**": ADAM}, r"'haed/\*\*' matches no parameter.*Did you mean 'head/\*\*'"),
    ({"body/**": SGD, "**": ADAM}, "body/bias is in two groups of optimizer"),
    ({"body/**": SGD}, "no group of optimizer has the parameters head/bias, head/kernel"),
    ({}, "optimizer is an empty dict"),
    ({"head/**": SGD, "**/head/*": SGD}, "have the same name, 'head'"),
]
BAD_NAMES = [
    ({"learning_rate": {"body": 0.1, "haed": 0.1}}, ValueError, "a rate for 'haed', which is no group.*Did you mean"),
    ({"learning_rate": {"body": 0.1}}, ValueError, "is a factory, so it needs a learning rate"),
    ({"optimizer": ADAM, "learning_rate": {"body": 0.1}}, TypeError, "a dict, but optimizer is none"),
    ({"callbacks": [jc.ReduceLROnPlateau("loss", of="haed")]}, ValueError, "'haed', which does not exist.*'head'"),
    (
        {"callbacks": [jc.ReduceLROnPlateau("loss", of="head")], "optimizer": ADAM, "learning_rate": 0.1},
        ValueError,
        "the optimizer has one rate for all parameters",
    ),
]


@pytest.mark.parametrize(("groups", "words"), BAD_GROUPS)
def test_bad_groups_are_refused_before_the_first_step(groups, words):
    with pytest.raises(ValueError, match=words):
        fit(optimizer=groups, learning_rate=0.1)


@pytest.mark.parametrize(("changes", "error", "words"), BAD_NAMES)
def test_a_rate_that_does_not_exist_is_refused_before_the_first_step(changes, error, words):
    with pytest.raises(error, match=words):
        fit(**changes)


def test_an_of_that_is_no_name_is_refused():
    for make in (lambda: jc.ReduceLROnPlateau(of=3), lambda: jc.LearningRateScheduler(lambda epoch: 0.1, of="")):
        with pytest.raises(TypeError, match="of must be the name of a learning rate"):
            make()


def test_a_metric_may_not_have_the_name_of_a_rate():
    with pytest.raises(ValueError, match="the metric name 'learning_rate/mine' is reserved"):
        jc.fit(pytree(), lambda p, b: (loss_fn(p, b), {"learning_rate": {"mine": 1.0}}), DATA, optimizer=optax.sgd(0.1),
               epochs=1, verbose=0)  # fmt: skip


def test_population_based_training_perturbs_the_rate_of_a_group():
    pbt = jc.callbacks.PopulationBasedTraining("loss", every=1, fraction=0.5, numbers=("optimizer.head.learning_rate",))
    metrics = jc.Metrics({"loss": jnp.array([0.3, 0.1])}, alive=jnp.ones(2, bool), member=jnp.arange(2))
    _, (_, scale) = pbt.on_epoch_end((), metrics)
    assert isinstance(scale, jc.actions.ScaleLearningRate)
    assert scale.of == "head"


def test_names_of_groups():
    assert [group_name(p) for p in ("a/**", "**/a", "a/*/b", "*", ("a/**", "b"))] == ["a", "a", "a/*/b", "all", "a+b"]


def test_by_hand_a_name_is_given_to_adjustable_lr():
    tx = optax.partition(
        {n: jc.adjustable_lr(optax.sgd, learning_rate=r, name=n) for n, r in {"a": 0.1, "b": 0.2}.items()},
        {"a": "a", "b": "b"},
    )
    state = jc.TrainState.create(params={"a": jnp.ones(()), "b": jnp.ones(())}, tx=tx)
    state = jc.apply((jc.actions.ScaleLearningRate(0.5, of="a"), jc.actions.SetLearningRate(1.0, of="b")), state)
    found = {name: float(rate.effective()) for name, rate in state.learning_rates.items()}
    assert found == pytest.approx({"a": 0.05, "b": 1.0})
