"""Compiles the cases of one platform, and prints a row for each as a line of JSON."""

import json
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import targets
from checks import Figures, Row
from hlo import step_facts
from targets import Target


def run(platform: str, only: Sequence[str], text: str) -> None:
    """Compiles the cases whose names contain any of some texts.

    Args:
        platform: "tpu" or "cuda".
        only: the texts.
        text: a directory to write the compiled programs to; empty for none.
    """
    targets.prepare(platform)
    import cases
    import hand
    import models

    chosen = [c for c in cases.cases() if c.target.platform == platform and any(part in c.key for part in only)]
    made = {name: models.MODELS[name]() for name in {case.model for case in chosen}}
    by_hand: dict[Any, Figures] = {}
    for case in chosen:
        model, target = made[case.model], case.target
        weights = {shape for shape in target.shapes(model.variables[0]) if math.prod(shape) >= targets.LARGE}
        weights |= {(hand.MEMBERS, *shape) for shape in weights}  # of a sweep
        row: dict[str, Any] = {"target": target.name, "platform": platform, "model": case.model, "case": case.name}
        try:
            key = target, case.model, case.by_hand
            if key not in by_hand:
                file = _file(text, f"{target.name} {case.model} {case.by_hand.__name__} by hand")
                by_hand[key] = _figures(case.trace_by_hand, model, target, weights, file)
            ours = _figures(case.trace, model, target, weights, _file(text, case.key))
            done = Row(**row, ours=ours, hand=by_hand[key])
        except Exception as error:  # of a compiler: the other cases are compiled anyway
            done = Row(**row, error=f"{type(error).__name__}: {str(error).splitlines()[0][:300]}")
        print(json.dumps(asdict(done)), flush=True)


def _figures(
    trace: Callable[[Any], Any], model: Any, target: Target, weights: set[tuple[int, ...]], file: Path | None
) -> Figures:
    """Compiles a program, and reads its figures.

    Args:
        trace: returns the traced program of a model.
        model: the model.
        target: the devices.
        weights: shapes of the arrays whose copies count.
        file: where the text of the program is written to; None for nowhere.
    """
    import models

    began = time.perf_counter()
    lowered = trace(model).lower(lowering_platforms=(target.platform,))
    traced = time.perf_counter()
    program = lowered.compile()
    compiled = time.perf_counter()
    text = program.as_text()
    if file is not None:
        file.write_text(text)
    facts = step_facts(text, models.MARK, weights, scalar_core=target.platform == "tpu")
    temporaries = program.memory_analysis().temp_size_in_bytes
    return Figures(facts, temporaries, round(traced - began, 2), round(compiled - traced, 2))


def _file(directory: str, name: str) -> Path | None:
    if not directory:
        return None
    Path(directory).mkdir(parents=True, exist_ok=True)
    return Path(directory) / f"{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')}.txt"
