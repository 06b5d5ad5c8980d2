"""The laws hold for every built-in callback, and each law finds the callback that breaks it."""

import random
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcb as jc
import jaxcb.callbacks
from jaxcb import testing
from jaxcb._src.core.actions.base import Action
from jaxcb._src.testing.drive import Subject
from jaxcb._src.testing.form import DECISIONS
from jaxcb._src.testing.registry import builtin_examples
from jaxcb._src.testing.streams import Stream
from jaxcb._src.utils.pytree import Struct

pytestmark = pytest.mark.usefixtures("strict_dtypes")

EXAMPLES = builtin_examples()
IDS = [f"{type(c).__name__}-{i}" for i, c in enumerate(EXAMPLES)]


def everyday():
    """The examples; a second one of a class that remembers nothing is left to the long tests."""
    seen, found = set(), []
    for callback, name in zip(EXAMPLES, IDS, strict=True):
        again = type(callback) in seen and not jax.tree.leaves(callback.init())
        seen.add(type(callback))
        found.append(pytest.param(callback, id=name, marks=[pytest.mark.long] if again else []))
    return found


@pytest.mark.everyday(27)
@pytest.mark.parametrize("callback", everyday())
def test_builtin(callback):
    testing.check_callback(callback, max_examples=4)


@pytest.mark.deep
@pytest.mark.parametrize("callback", EXAMPLES, ids=IDS)
def test_builtin_deep(callback):
    testing.check_callback(callback)


def test_chain_of_several():
    both = jc.chain(jc.EarlyStopping(patience=2, restore_best_weights=True), jc.ReduceLROnPlateau(patience=1))
    testing.check_callback(both, max_examples=5)


def test_every_export_has_an_example():
    exported = {getattr(jaxcb.callbacks, name) for name in jaxcb.callbacks.__all__}
    bases = {jc.callbacks.Chain, jc.callbacks.StoppingCallback}
    callbacks = {c for c in exported if isinstance(c, type) and issubclass(c, jc.Callback)} - bases
    assert callbacks <= {type(example) for example in EXAMPLES}


def actions_of(callback):
    """Returns the actions that a callback returns in any hook, as shapes."""
    subject = Subject(callback)
    row = subject.row_list(Stream(dict.fromkeys(subject.names, (0.5,)), (True,), (1,)))[0]
    seen = jax.eval_shape(lambda s, r: subject.run_row(subject.callback, s, r)[1], subject.init(), row)
    return [x for x in jax.tree.leaves(seen, is_leaf=lambda x: isinstance(x, Action)) if isinstance(x, Action)]


def test_a_class_logs_only_if_none_of_its_actions_is_a_decision():
    """Of classes that return actions; those without are told apart by nothing that they do."""
    decides, logs = set(), set()
    for callback in (c for c in EXAMPLES if not isinstance(c, jc.PopulationCallback)):
        for action in actions_of(callback):
            (decides if isinstance(action, DECISIONS) else logs).add(type(callback))
    assert {kind for kind in decides | logs if kind.logs_only} == logs - decides


def test_a_logger_that_decides_is_found():
    class Liar(jc.Callback):
        logs_only = True

        def on_epoch_end(self, state, metrics):
            return state, jc.actions.Stop(metrics["loss"] > 1)

    with pytest.raises(AssertionError, match="on_epoch_end returns Stop, but the class says logs_only"):
        testing.check_fixed_form(Liar(), max_examples=1)


def test_export_without_example_is_reported(monkeypatch):
    class NeedsPath(jc.Callback):
        path: str = jc.static()

    monkeypatch.setattr(jaxcb.callbacks, "NeedsPath", NeedsPath, raising=False)
    monkeypatch.setattr(jaxcb.callbacks, "__all__", [*jaxcb.callbacks.__all__, "NeedsPath"])
    with pytest.raises(LookupError, match="exports NeedsPath, which cannot be made without arguments"):
        builtin_examples.__wrapped__()


def test_export_without_arguments_is_picked_up(monkeypatch):
    class Quiet(jc.Callback):
        pass

    monkeypatch.setattr(jaxcb.callbacks, "Quiet", Quiet, raising=False)
    monkeypatch.setattr(jaxcb.callbacks, "__all__", [*jaxcb.callbacks.__all__, "Quiet"])
    assert Quiet() in builtin_examples.__wrapped__()


# What the laws find out by themselves


def test_metrics_are_found_by_tracing():
    assert Subject(jc.EarlyStopping("val_loss")).names == ("val_loss",)
    assert Subject(jc.ReduceLROnPlateau("val_loss", min_lr=1e-3)).names == ("learning_rate", "val_loss")
    assert "loss" in Subject(jc.History()).names
    gap = jc.EarlyStopping(lambda m: m["b"] - m["a"], mode="min")
    assert Subject(gap).names == ("a", "b")


class Smooth(jc.Callback):
    """A callback of a user: multiplies, keeps a key, and counts."""

    decay: float = 0.9

    def init(self):
        return {"mean": 0.0, "key": jax.random.key(0), "count": 0}

    def on_batch_end(self, state, metrics):
        mean = self.decay * state["mean"] + (1 - self.decay) * metrics["loss"]
        key, _ = jax.random.split(state["key"])
        return {"mean": mean, "key": key, "count": state["count"] + 1}, jc.actions.Stop(
            mean > 0.5, "mean is {loss:.2f}"
        )


def test_a_users_callback_that_multiplies():
    testing.check_callback(Smooth(), max_examples=5)


# A broken callback for each law

CALLS: list[Any] = []
SEEN: dict[int, float] = {}


def on_epoch_end(function):
    return jc.make_callback(on_epoch_end=function, name="broken")


def clock(state, metrics):
    return state, jc.actions.Stop(metrics["loss"] > jnp.float32(time.time()))


def dice(state, metrics):
    return state, jc.actions.Stop(metrics["loss"] > random.random())


def numpy_dice(state, metrics):
    return state, jc.actions.Stop(metrics["loss"] > float(np.random.rand()))


def reads_file(state, metrics):
    return state, jc.actions.Stop(metrics["loss"] > len(Path(__file__).read_text()))


def looks_at_file(state, metrics):
    return state, jc.actions.Stop(Path("STOP").exists() & (metrics["loss"] > 0))


def keeps_tracer(state, metrics):
    CALLS.append(metrics["loss"])
    return state, jc.actions.Stop(metrics["loss"] > 0)


def changes_input(state, metrics):
    metrics.values["loss"] = metrics["loss"] + 1
    return state, jc.actions.Stop(metrics["loss"] > 0)


@pytest.mark.parametrize(
    ("hook", "says"),
    [
        (clock, "another program"),
        (dice, "another program"),
        (numpy_dice, "another program"),
        (reads_file, "reads the file '.*testing/test_laws.py'"),
        (looks_at_file, "reads the file 'STOP'"),
        (keeps_tracer, "keeps a traced value"),
        (changes_input, "changes its input at row 0: on_epoch_end"),
    ],
)
def test_purity_is_found_broken(hook, says):
    with pytest.raises(AssertionError, match=rf"Law 1 \(purity\) is broken by broken: .*{says}"):
        testing.check_purity(on_epoch_end(hook), max_examples=5)
    CALLS.clear()


def python_if(state, metrics):
    return state, jc.actions.Stop(bool(metrics["loss"] > 0))


def asks_whether_traced(state, metrics):
    traced = isinstance(metrics["loss"], jax.core.Tracer)  # pyright: ignore[reportAttributeAccessIssue]
    return state, jc.actions.Stop(metrics["loss"] > (0.0 if traced else 1.0))


@pytest.mark.parametrize(
    ("hook", "says"),
    [
        (python_if, "on_epoch_end.*traced"),
        (asks_whether_traced, r"on_epoch_end, actions\[0\].when at row \d is .* \(eager\), .* \(jit\)"),
    ],
)
def test_one_meaning_is_found_broken(hook, says):
    with pytest.raises(AssertionError, match=rf"Law 2 \(one meaning\) is broken by broken: (?s:.*){says}"):
        testing.check_one_meaning(on_epoch_end(hook), max_examples=10)


class ForgotStatic(jc.Callback):
    monitor: str = "loss"

    def on_epoch_end(self, state, metrics):
        return state, jc.actions.Stop(metrics[self.monitor] > 0)


def test_a_field_that_is_no_array_must_be_static():
    with pytest.raises(AssertionError, match=r"Law 2 \(one meaning\) is broken by ForgotStatic: .*jc.static"):
        testing.check_one_meaning(ForgotStatic(), max_examples=2)


def grows(state, metrics):
    return {**state, f"n{len(state)}": metrics["loss"]}, None


def to_float(state, metrics):
    return {"n": state["n"] + metrics["loss"]}, None


def sometimes_silent(state, metrics):
    CALLS.append(None)
    return state, jc.actions.Stop(metrics["loss"] > 0) if len(CALLS) < 4 else None


@pytest.mark.parametrize(
    ("hook", "says"),
    [
        (grows, r"broken.on_epoch_end changed the structure: leaf \['n1'\] is new"),
        (to_float, r"broken.on_epoch_end\['n'\] has dtype float32, expected int32"),
        (sometimes_silent, "on_epoch_end at row .: the structure of its actions"),
    ],
)
def test_fixed_form_is_found_broken(hook, says):
    CALLS.clear()
    with jax.numpy_dtype_promotion("standard"):
        callback = jc.make_callback(init=lambda: {"n": 0}, on_epoch_end=hook, name="broken")
        with pytest.raises(AssertionError, match=rf"Law 3 \(fixed form\) is broken by broken: {says}"):
            testing.check_fixed_form(callback, max_examples=5)


def test_a_retrace_is_found():
    class Counting(Struct):
        """A static value that is never the same."""

        salt: Any = jc.static(default_factory=object)

    callback = jc.make_callback(
        init=Counting, on_epoch_end=lambda s, m: (s, jc.actions.Stop(m["loss"] > 0)), name="broken"
    )
    with pytest.raises(AssertionError, match=r"Law 3 \(fixed form\).* on_epoch_end was traced 2 times"):
        testing.check_fixed_form(callback, max_examples=5)


def foresees(state, metrics):
    """Knows from an earlier run what comes at the next step."""
    if isinstance(metrics["loss"], jax.core.Tracer):  # pyright: ignore[reportAttributeAccessIssue]
        return state, jc.actions.Stop(metrics["loss"] > 0)
    SEEN[int(metrics.step)] = float(metrics["loss"])
    return state, jc.actions.Stop(SEEN.get(int(metrics.step) + 1, 0.0) > 0)


def test_causality_is_found_broken():
    SEEN.clear()
    with pytest.raises(
        AssertionError, match=r"Law 4 \(causality\) is broken by broken: on_epoch_end, actions\[0\].when"
    ):
        testing.check_causality(on_epoch_end(foresees), max_examples=200)


def counts_on_the_side(state, metrics):
    """Keeps what it knows outside of its state."""
    if isinstance(metrics["loss"], jax.core.Tracer):  # pyright: ignore[reportAttributeAccessIssue]
        return state, jc.actions.Stop(metrics["loss"] > 0)
    CALLS.append(None)
    return state, jc.actions.Stop(len(CALLS) % 7 == 0)


def test_resume_is_found_broken():
    CALLS.clear()
    with pytest.raises(AssertionError, match=r"Law 5 \(resume\) is broken by broken: on_epoch_end, actions\[0\].when"):
        testing.check_resume(on_epoch_end(counts_on_the_side), max_examples=50)


def test_chain_is_found_broken():
    with pytest.raises(
        AssertionError,
        match=r"Law 6 \(chain\) is broken by broken: .*the metrics that other callbacks see: on_epoch_end",
    ):
        testing.check_chain(on_epoch_end(changes_input), max_examples=10)


class NoticesCompany(jc.Callback):
    """Looks at what is none of its business: the names of the others."""

    def on_epoch_end(self, state, metrics):
        states = sys._getframe(2).f_locals.get("states", {})
        return state, jc.actions.Stop((metrics["loss"] > 0) | (len(states) > 1))


def test_a_callback_that_notices_company_is_found():
    with pytest.raises(AssertionError, match=r"Law 6 \(chain\) is broken by NoticesCompany: on_epoch_end, .*\(alone\)"):
        testing.check_chain(NoticesCompany(), max_examples=10)


class FeelsTheCut(jc.Callback):
    """Looks beyond its hook for where the call began: what only an impure effect can do."""

    def on_epoch_end(self, state, metrics):
        def host(loss):
            CALLS.append(None)
            return np.bool_(len(CALLS) % 5 == 0)

        return state, jc.actions.Stop(jax.pure_callback(host, jax.ShapeDtypeStruct((), bool), metrics["loss"]))


def test_chunk_invariance_is_found_broken():
    CALLS.clear()
    with pytest.raises(
        AssertionError, match=r"Law 7 \(chunk invariance\) is broken by FeelsTheCut: on_epoch_end, actions"
    ):
        testing.check_chunks(FeelsTheCut(), max_examples=20)


def test_hypothesis_is_asked_for(monkeypatch):
    for name in [n for n in sys.modules if n.startswith("jaxcb.testing")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ImportError, match=r"pip install jaxcb\[testing\]"):
        import jaxcb.testing  # noqa: F401
