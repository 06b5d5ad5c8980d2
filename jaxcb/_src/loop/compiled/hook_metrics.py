"""The metrics that a hook sees, as far as they do not depend on the program: traced values and static facts."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxcb._src.core.metrics import Metrics
from jaxcb._src.loop.compiled.position import EvalSchedule
from jaxcb._src.training.learning_rate import accumulations, learning_rates
from jaxcb._src.training.train_state import TrainState


def metrics_of(
    values: Mapping[str, Any],
    train: TrainState,
    host: Mapping[str, Any],
    *,
    last: bool,
    reported: Mapping[str, Any] | None = None,
    closes: Any = False,
    **place: Any,
) -> Metrics:
    """Returns metrics with the values, the controls, the learning rate and the host metrics.

    Args:
        values: name -> value.
        train: the train state.
        host: name -> host metric, float32 ().
        last: whether the learning rate is that of the last update; otherwise of the next one.
        reported: name -> step of the last report, where that is not the current step.
        closes: whether the hook call ends an epoch, bool ().
        **place: `step`, `epoch` and `total_steps` of `Metrics`.
    """
    rates: dict[str, Any] = {}
    for rate in learning_rates(train.opt_state)[:1]:
        if rate.schedule is None:
            rates["lr_scale"] = rate.scale
        else:
            rates["learning_rate"] = rate.applied if last else rate.effective()
            rates["base_learning_rate"] = rate.base(last=last)
    for several in accumulations(train.opt_state)[:1]:
        rates["updates"] = several.gradient_step
    shown = {**train.controls, **values, **rates}
    return Metrics._make(
        values=shown,
        reported=dict.fromkeys(shown, place["step"]) | dict(reported or {}),
        closes_epoch=jnp.asarray(closes),
        host=dict(host),
        **place,
    )


def closes_epoch_in(hook: str, schedule: EvalSchedule) -> bool | None:
    """Returns `closes_epoch` of a hook's metrics, if it is the same in every call; otherwise None."""
    if hook in ("on_eval_begin", "on_eval_end"):
        return True if schedule.closes_epochs else None
    return hook in ("on_epoch_end", "on_train_end")
