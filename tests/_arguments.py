"""The groups of a run's arguments, for helpers of tests that take them flat."""

import dataclasses
from typing import Any

import jaxcb as jc

GROUPS = {"execution": jc.Execution, "checkpointing": jc.Checkpointing}


def grouped(**flat: Any) -> dict[str, Any]:
    """Returns the arguments of `fit`, `Loop.run` or `sweep` with the fields of `Execution` and `Checkpointing` in them.

    Example: `grouped(epochs=3, executor="looped")` is `{"epochs": 3, "execution": Execution(executor="looped")}`.
    """
    for group, kind in GROUPS.items():
        own = {field.name: flat.pop(field.name) for field in dataclasses.fields(kind) if field.name in flat}
        if own:
            flat[group] = dataclasses.replace(flat.get(group, kind()), **own)
    return flat
