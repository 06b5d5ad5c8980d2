"""When a rule can make a difference for a case, and the cases that stand in the place of others."""

import dataclasses
import math

import numpy as np
from against_keras._case import Case


def rounds(case: Case) -> bool:
    """Whether some value or delta is no short binary fraction."""
    used = [v for v in case.reports() if v is not None]
    used += [v for losses in case.batches for v in losses]
    used += [case.arguments.get(n) or 0.0 for n in ("min_delta", "baseline", "initial_value_threshold")]
    return any(math.isfinite(v) and (abs(v) > 2**12 or v * 2**10 != round(v * 2**10)) for v in used)


def has_nan(case: Case) -> bool:
    values = [v for v in case.reports() if v is not None] + [v for losses in case.batches for v in losses]
    return any(math.isnan(v) for v in values)


def is_missing(case: Case) -> bool:
    monitor = case.arguments.get("monitor", "val_loss")
    return monitor not in case.names and case.arguments.get("save_best_only", True)


def skips_reports(case: Case) -> bool:
    return case.arguments["save_best_only"] and case.arguments["save_freq"] == "epoch" and None in case.reports()


def asks_for_the_past(case: Case) -> bool:
    return "{val_loss" in case.arguments["filepath"] and any("val_loss" not in logs for logs in case.epochs)


def best_by_step(case: Case) -> bool:
    return case.arguments["save_best_only"] and case.arguments["save_freq"] != "epoch"


def means_overflow(case: Case) -> bool:
    """Whether a running mean is no number before a step's own value is."""
    for losses in case.batches:
        with np.errstate(over="ignore", invalid="ignore"):
            sums = np.cumsum(np.asarray(losses, np.float32), dtype=np.float32)
        if (np.isfinite(losses) & ~np.isfinite(sums)).any():
            return True
    return False


def more_cooldown(case: Case) -> Case:
    return case.replace(arguments={**case.arguments, "cooldown": case.arguments["cooldown"] + 1})


def as_float(case: Case) -> Case:
    schedule = case.arguments["schedule"]
    as_float = dataclasses.replace(schedule, fn=lambda epoch: float(schedule.fn(epoch)))
    return case.replace(arguments={**case.arguments, "schedule": as_float})


def prints_otherwise(case: Case) -> bool:
    values = [v for logs in case.epochs for v in logs.values()]
    return any(str(np.float32(v)) != str(v) for v in values)


def returns_no_float(case: Case) -> bool:
    """Whether its schedule returns what is a number and no Python float."""
    return case.arguments["schedule"].text in ("whole number", "JAX array")
