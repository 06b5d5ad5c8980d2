"""Optimizers that ask for more than gradients, or keep more than moments: they resume, and train in a population."""

import numpy as np
import pytest
from _arguments import grouped
from _cut import Cut, CutAfter
from training._optax_all import SPECIAL, X, Y, build, loss_fn, start
from training._two_parts import bits

import jaxcb as jc

KINDS = {
    "lbfgs": {"batch_size": 8},
    "contrib.sophia": {},
    "contrib.sam": {},
    "contrib.sam, opaque": {},
    "lookahead": {},
    "contrib.schedule_free": {},
}
EVERY_DAY = ("contrib.sam", "contrib.schedule_free", "lookahead")
SOME = [kind if kind in EVERY_DAY else pytest.param(kind, marks=pytest.mark.long) for kind in KINDS]
EXECUTORS = ("looped", "stepped")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Specifying a key:UserWarning"),
    pytest.mark.usefixtures("as_optax_promotes"),
]


def fit(kind, **changes):
    given = {"optimizer": build(SPECIAL[kind]), "epochs": 4, "batch_size": 4, "verbose": 0, "validation_data": (X, Y)}
    given["callbacks"] = [CutAfter()] if "run_dir" in changes else []
    return jc.fit(start(kind), loss_fn, (X, Y), **grouped(**(given | KINDS[kind] | changes)))


@pytest.mark.everyday(1)
@pytest.mark.parametrize("executor", [EXECUTORS[0], pytest.param(EXECUTORS[1], marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", SOME)
def test_it_resumes_bit_for_bit(kind, executor, tmp_path):
    at = 1 if kind == "lbfgs" else 3  # in the middle of an accumulation, of a pair of steps, of an epoch
    whole = fit(kind, executor=executor, run_dir=tmp_path / "whole")
    with pytest.raises(Cut):
        fit(kind, executor=executor, run_dir=tmp_path / "cut", callbacks=[CutAfter(at=at)])
    found = fit(kind, executor=executor, run_dir=tmp_path / "cut", resume=True)
    assert bits((found.params, found.state.opt_state)) == bits((whole.params, whole.state.opt_state))
    assert bits(found.model) == bits(whole.model)
    assert (tmp_path / "cut" / "history.csv").read_text() == (tmp_path / "whole" / "history.csv").read_text()


@pytest.mark.everyday(1)
@pytest.mark.parametrize("kind", SOME)
def test_members_of_a_population_are_as_runs_alone(kind):
    given = {"optimizer": build(SPECIAL[kind]), "epochs": 2, "batch_size": 4, "verbose": 0, "validation_data": (X, Y)}
    given |= KINDS[kind]
    members = jc.sweep(start(kind), loss_fn, (X, Y), over={"seed": [0, 3]}, **given)
    for seed, member in zip((0, 3), members, strict=True):
        alone = fit(kind, epochs=2, seed=seed)
        for name in ("loss", "val_loss"):
            np.testing.assert_allclose(member.history[name], alone.history[name], rtol=1e-3, err_msg=name)
