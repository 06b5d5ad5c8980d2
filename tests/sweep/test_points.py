"""Points: grids, draws, and what is refused."""

import dataclasses
import math

import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loop._runs import loss_fn, make_data, make_params

import jaxcb as jc
from jaxcb._src.core.chain import as_chain
from jaxcb._src.sweep.overrides import with_overrides
from jaxcb._src.sweep.space import as_points
from jaxcb._src.training.training_config import TrainingConfig
from jaxcb.testing import builtin_examples

VALUES = st.lists(st.integers(0, 9) | st.floats(-1, 1), min_size=1, max_size=4)


@given(st.dictionaries(st.sampled_from(["seed", "optimizer.learning_rate", "controls.beta"]), VALUES, min_size=1))
def test_a_grid_holds_each_combination_once(over):
    points = jc.search.grid(over)
    assert len(points) == math.prod(map(len, over.values()))
    assert all(list(point) == list(over) for point in points)
    assert points == as_points(over)
    for path, values in over.items():
        assert {p[path] for p in points} == set(values)


@given(st.integers(1, 20), st.integers(0, 5))
def test_draws_depend_on_the_seed_and_the_path_alone(n, seed):
    how = {"optimizer.learning_rate": jc.search.log_uniform(1e-4, 1.0), "seed": jc.search.integers(0, 9)}
    points = jc.search.draws(n, how, seed=seed)
    assert points == jc.search.draws(n, dict(reversed(how.items())), seed=seed)
    more = jc.search.draws(n + 3, {**how, "controls.beta": jc.search.uniform(-1, 1)}, seed=seed)
    assert [{k: p[k] for k in how} for p in more][:n] == points
    assert all(1e-4 <= p["optimizer.learning_rate"] <= 1 and 0 <= p["seed"] <= 9 for p in points)


def configuration(**changes):
    given = {"seed": 0, "optimizer": optax.adamw, "learning_rate": 0.1, "controls": {"beta": 0.0}}
    return TrainingConfig(callbacks=as_chain([jc.EarlyStopping(), jc.ReduceLROnPlateau()]), **(given | changes))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("sead", 1, "Did you mean 'seed'"),
        ("optimizer.weight_decy", 0.1, "Did you mean 'weight_decay'"),
        ("controls.gamma", 0.1, "controls: beta"),
        ("callbacks.EarlyStoping.patience", 1, "Did you mean 'EarlyStopping'"),
        ("callbacks.EarlyStopping.patienc", 1, "Did you mean 'patience'"),
        ("callbacks.EarlyStopping.patience", -1, "at least 0"),
        ("callbacks.EarlyStopping.patience", 0.5, "whole number"),
        ("callbacks.EarlyStopping.monitor", 1, "not a number"),
        ("callbacks.ReduceLROnPlateau.factor", 2.0, "between 0.0 and 1.0"),
        ("optimizer.learning_rate", math.nan, "finite"),
        ("learning_rate", -math.inf, "finite"),
        ("learning_rte", 0.1, "Did you mean 'learning_rate'"),
        ("patience", 1, "Did you mean 'callbacks.EarlyStopping.patience'"),
        ("weigth_decay", 0.1, "Did you mean 'optimizer.weight_decay'"),
        ("weight_decay", 0.1, "Did you mean 'optimizer.weight_decay'"),
        ("EarlyStopping.patience", 1, "Did you mean 'callbacks.EarlyStopping.patience'"),
        ("calbacks.EarlyStopping.patience", 1, "Did you mean 'callbacks.EarlyStopping.patience'"),
        ("beta", 1.0, "Did you mean 'controls.beta'"),
        ("batch_size", 16, "all members share 'batch_size'"),
        ("epochs", 3, "all members share 'epochs'"),
    ],
)
def test_a_bad_path_or_value_names_itself(path, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        with_overrides(configuration(), {path: value})
    assert path in str(caught.value)


def test_numbers_of_a_ready_made_optimizer_and_of_a_schedule():
    with pytest.raises(ValueError, match="factory"):
        with_overrides(configuration(optimizer=optax.adam(0.1), learning_rate=None), {"optimizer.learning_rate": 0.1})
    with pytest.raises(ValueError, match="schedule"):
        with_overrides(
            configuration(learning_rate=optax.cosine_decay_schedule(0.1, 9)), {"optimizer.learning_rate": 0.1}
        )


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"callbacks.EarlyStopping.monitor": ["loss"]}, "'loss', a str, not a number"),
        ({"callbacks.EarlyStopping.restore_best_weights": [True]}, "not a number"),
        ({"seed": 3}, "list of values"),
        (3, "a dict of paths to values"),
    ],
)
def test_what_is_no_number_names_itself(over, message):
    with pytest.raises(TypeError, match=message):
        as_points(over)


@pytest.mark.parametrize(("over", "message"), [([], "no point"), ([{"seed": 0}, {"controls.b": 1}], "differ")])
def test_points_that_do_not_fit_together(over, message):
    with pytest.raises(ValueError, match=message):
        as_points(over)


def test_each_builtin_callback_can_be_made_anew_with_a_number_changed():
    """What `__post_init__` has made of the arguments, it makes again of itself."""
    for callback in builtin_examples():
        chain = as_chain([callback])
        name = chain.names[0]
        for field in dataclasses.fields(callback):
            value = getattr(callback, field.name)
            if not field.metadata.get("static") and isinstance(value, int | float):
                path = f"callbacks.{name}.{field.name}"
                own = with_overrides(dataclasses.replace(configuration(), callbacks=chain), {path: value})
                assert vars(own.callbacks.callbacks[0]) == vars(callback), path


def test_a_value_that_changes_shapes_names_itself():
    def model_fn(seed, width=3):
        return {"w": np.zeros((3, width), np.float32), "b": make_params(seed)["b"]}

    with pytest.raises(ValueError, match=r"'model\.width' = 2 changes the shape of the model at \[0\]\['w'\]"):
        jc.sweep(
            model_fn,
            loss_fn,
            make_data(),
            over={"model.width": [1, 2]},
            optimizer=optax.sgd(0.1),
            epochs=1,
            verbose=0,
        )


def test_the_rate_has_the_name_that_fit_gives_it():
    how = {"optimizer": optax.sgd, "epochs": 2, "verbose": 0}
    model = lambda seed: make_params(0)  # noqa: E731
    short = jc.sweep(model, loss_fn, make_data(), over={"learning_rate": [0.1, 0.2]}, **how)
    full = jc.sweep(model, loss_fn, make_data(), over={"optimizer.learning_rate": [0.1, 0.2]}, **how)
    np.testing.assert_array_equal(short.history["loss"], full.history["loss"])
    assert short.member(1).point == {"learning_rate": 0.2}
    assert short.table()["learning_rate"] == [0.1, 0.2]
    for paths in (short, full):
        assert paths.best("loss").history["learning_rate"][-1] > 0
    with pytest.raises(ValueError, match="two names of one number"):
        with_overrides(configuration(), {"learning_rate": 0.1, "optimizer.learning_rate": 0.2})
