"""Small runs that the tests of the loop share."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _arguments import grouped

import jaxcb as jc
from jaxcb._src.data.inputs import ValidationConfig
from jaxcb._src.data.resident import ResidentPlan
from jaxcb._src.data.validation import validation_sets
from jaxcb._src.loop.build import RunData, build_driver
from jaxcb._src.loop.compiled.traced_functions import RunFunctions
from jaxcb._src.loop.config import RunConfig
from jaxcb._src.loop.host.driver import Driver
from jaxcb._src.loop.host.population import Population
from jaxcb._src.sharding.placement import ONE_DEVICE
from jaxcb._src.writers.run_handle import Run
from jaxcb.writers import Context

ROWS, FEATURES = 70, 3


def make_data(rows: int = ROWS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, FEATURES)).astype(np.float32)
    y = x @ np.array([[1.0], [-2.0], [0.5]], np.float32) + 0.1 * rng.normal(size=(rows, 1)).astype(np.float32)
    return x, y


def loss_fn(params: Any, batch: Any) -> Any:
    x, y = batch
    error = x @ params["w"] + params["b"] - y
    return jnp.mean(error**2), {"mae": jnp.mean(jnp.abs(error))}


def make_params(seed: int = 0) -> dict[str, jax.Array]:
    return {"w": 0.1 * jax.random.normal(jax.random.key(seed), (FEATURES, 1)), "b": jnp.zeros(())}


TX = jc.adjustable_lr(optax.adam, learning_rate=0.05)


def make_state(seed: int = 0) -> jc.TrainState:
    return jc.TrainState.create(params=make_params(seed), tx=TX, seed=seed)


def control() -> list[jc.Callback]:
    """Callbacks that stop, cut the rate, keep the best weights and watch each step."""
    return [
        jc.EarlyStopping(patience=2, min_delta=0.02, restore_best_weights=True),
        jc.ReduceLROnPlateau(patience=1, factor=0.5, min_delta=0.05),
        jc.TerminateOnNaN(),
    ]


def fit(executor: str = "looped", **changes: Any) -> jc.Result:
    given: dict[str, Any] = {
        "optimizer": optax.adam,
        "learning_rate": 0.05,
        "epochs": 20,
        "batch_size": 16,
        "validation_data": make_data(20, seed=1),
        "callbacks": control(),
        "verbose": 0,
    }
    given |= changes
    data = given.pop("data", make_data())
    model = given.pop("model", None) or make_params()
    return jc.fit(model, given.pop("loss_fn", loss_fn), data, **grouped(executor=executor, **given))


def config_of(**arguments: Any) -> RunConfig:
    """The configuration of a run with the defaults of `Loop.run`."""
    signature = inspect.signature(jc.Loop.run).parameters.values()
    defaults = {p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY}
    return RunConfig.of("Loop.run", **(defaults | arguments))


def make_driver(  # noqa: PLR0913
    callbacks: Any,
    state: jc.TrainState,
    *,
    executor: str = "looped",
    members: int | None = None,
    axes: Any = None,
    strategy: str = "vmap",
    repack: bool | str = False,
    keys: Any = None,
    epochs: int = 40,
    steps_per_execution: int | None = None,
    step: Any = None,
    data: Any = None,
    metrics: Any = None,
    block: int = 0,
) -> Driver:
    """A driver as `Loop` makes one; with `members` over a population."""
    data = make_data() if data is None else data
    rows = ResidentPlan.of(
        data,
        batch_size=16,
        shuffle=True,
        key=jax.random.key(7) if keys is None else keys,
        epoch_len=-(-len(data[0]) // 16),
        train_remainder=True,
        placement=ONE_DEVICE,
    )
    run = Run(None)
    all_callbacks = jc.chain(*callbacks, jc.History())
    if axes is None:
        axes = [0 if jnp.ndim(x) else None for x in jax.tree.leaves(all_callbacks)]
    driver, _ = build_driver(
        RunFunctions(step or jc.Step(loss_fn), jc.EvalStep(loss_fn), all_callbacks),
        state,
        config_of(
            epochs=epochs,
            metrics=metrics,
            execution=jc.Execution(
                executor=executor,
                steps_per_execution=steps_per_execution,
                block=block if executor == "looped" else None,
            ),
        ),
        data=RunData(rows, validation_sets(ValidationConfig(data=make_data(20, seed=1), batch_size=16))),
        context=Context(None, run, 0, epochs),
        population=None if members is None else Population(members, tuple(axes), (0,) * members, strategy, repack),
    )
    return driver
