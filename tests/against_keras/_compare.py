"""One case, decided by both, and what explains a difference."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from against_keras import _ours, _theirs, rules
from against_keras._case import Case

AGREES, UNEXPLAINED = "agrees", "unexplained"


def same(a: Any, b: Any) -> bool:
    """Whether two outcomes are the same; rates to rounding."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and bool(np.allclose(a, b, rtol=2e-6, atol=0.0))
    return type(a) is type(b) and a == b


def with_rules(case: Case, applied: Sequence[rules.Rule]) -> Any:
    """What Keras decides when these rules hold."""
    mixins = tuple(m for rule in applied if (m := rules.amendment(rule, case.kind)) is not None)
    for rule in applied:
        if rule.instead is not None:
            case = rule.instead(case)
    return _theirs.outcome(case, mixins)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came out, and the rules that explain a difference: the fewest that do."""

    ours: Any
    theirs: Any
    explanation: str  # AGREES, UNEXPLAINED, or rules' names


def judge(case: Case) -> Verdict:
    """Compares both on a case.

    Keras with every rule that can bite must decide as jaxcb does, also where Keras as it is does. Where it does not
    decide so as it is, the fewest rules that make it do so are the explanation.
    """
    ours, theirs, biting = _ours.outcome(case), _theirs.outcome(case), list(rules.of(case))
    if biting and not same(ours, with_rules(case, biting)):
        return Verdict(ours, theirs, UNEXPLAINED)
    if same(ours, theirs):
        return Verdict(ours, theirs, AGREES)
    for count in range(1, len(biting) + 1):
        for chosen in itertools.combinations(biting, count):
            if same(ours, with_rules(case, chosen)):
                return Verdict(ours, theirs, " + ".join(rule.name for rule in chosen))
    return Verdict(ours, theirs, UNEXPLAINED)


@dataclasses.dataclass
class Tally:
    """How many cases came out how."""

    streams: int = 0
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    unexplained: list[tuple[Case, Verdict]] = dataclasses.field(default_factory=list)

    def add(self, case: Case) -> Verdict:
        verdict = judge(case)
        self.streams += 1
        self.counts[verdict.explanation] += 1
        if verdict.explanation == UNEXPLAINED:
            self.unexplained.append((case, verdict))
        return verdict

    def explained(self) -> dict[str, int]:
        """The differences on purpose, most frequent first."""
        return {name: n for name, n in self.counts.most_common() if name not in (AGREES, UNEXPLAINED)}

    def rules(self) -> set[str]:
        """The names of the rules that explained some difference."""
        return {name for names in self.explained() for name in names.split(" + ")}
