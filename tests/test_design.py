"""docs/design.md tells the truth: its walks are those of real runs, and nothing is written to what was built."""

import inspect
import re
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcb as jc
import jaxcb._src.fit

HERE = Path(__file__).parent
ROOT = Path(inspect.getfile(jaxcb._src.fit)).parent
ROWS = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
LIMITS = {"A batch of arrays": 10, "A batch of a stream": 12, "A metric": 10}


def walks():
    """Returns each walk of the page: its begin -> file and function of each step."""
    text = (HERE.parent / "docs" / "design.md").read_text().split("### Walks")[1].split("\n### ")[0]
    found = {}
    for part in text.split("\n**")[1:]:
        found[part.split("**")[0]] = re.findall(r"^\d+\. `([\w/]+\.py)` `([\w.]+)`", part, re.MULTILINE)
    return found


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] - y) ** 2)


def train(directory, streamed=False, **arguments):
    data = [(ROWS[i : i + 8], ROWS[i : i + 8, :1]) for i in range(0, 40, 8)] if streamed else (ROWS, ROWS[:, :1])
    arguments = {"callbacks": [jc.CSVLogger(directory / "log.csv"), jc.EarlyStopping("loss")]} | arguments
    return jc.fit(
        {"w": jnp.zeros((3, 1))},
        loss_fn,
        data,
        optimizer=optax.adam,
        learning_rate=0.1,
        epochs=3,
        verbose=0,
        batch_size=None if streamed else 8,
        **arguments,
    )


def calls_of(run):
    """Returns the functions of jaxcb that begin and end in a run, in order."""
    calls = []

    def note(frame, event, _):
        if event in ("call", "return") and frame.f_code.co_filename.startswith(f"{ROOT}/"):
            calls.append((frame.f_code.co_filename[len(f"{ROOT}/") :], frame.f_code.co_qualname))

    before = sys.getprofile()
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
        threading.setprofile(None)
    return calls


@pytest.mark.long
@pytest.mark.skipif(not hasattr(inspect.currentframe().f_code, "co_qualname"), reason="frames have no qualified names")
@pytest.mark.parametrize("begin", LIMITS)
def test_a_walk_is_that_of_a_run(begin, tmp_path):
    name, steps = next((name, steps) for name, steps in walks().items() if name.startswith(begin))
    assert len({file for file, _ in steps}) <= LIMITS[begin], name
    # without compilation, in the order in which a compiled program computes
    with jax.disable_jit():
        execution = jc.Execution(executor="looped")
        calls = iter(calls_of(lambda: train(tmp_path, streamed="stream" in begin, execution=execution)))
    for step in steps:
        assert step in calls, f"{step} is not called at this place of the walk {name!r}"


def test_the_page_has_every_walk():
    assert [next((b for b in LIMITS if name.startswith(b)), None) for name in walks()] == list(LIMITS)


def machinery():
    """Returns the classes of the machine room whose objects could be written to."""
    for name, module in list(sys.modules.items()):
        if name.startswith(tuple(f"jaxcb._src.{part}" for part in ("loop", "data", "checkpointing", "writers"))):
            for cls in vars(module).values():
                own = isinstance(cls, type) and cls.__module__ == name
                if own and "__setattr__" not in vars(cls) and not issubclass(cls, BaseException | tuple):
                    yield cls


@pytest.mark.everyday(2)
@pytest.mark.parametrize("how", ["arrays", "stream", "stepped", "resumed", "sweep"])
def test_nothing_writes_to_an_object_that_it_did_not_build(how, tmp_path, monkeypatch):
    train(tmp_path / "first")  # imports what a run imports when it needs it
    wrong = []

    def guarded(self, attribute, value):
        frame = sys._getframe(1)
        names = frame.f_code.co_varnames
        owner = frame.f_locals.get(names[0]) if names else None
        while owner is not self and frame.f_back is not None and frame.f_code.co_name.startswith("<"):
            frame = frame.f_back  # a comprehension
            owner = frame.f_locals.get(frame.f_code.co_varnames[0]) if frame.f_code.co_varnames else None
        if owner is not self:
            wrong.append(f"{type(self).__name__}.{attribute} in {frame.f_code.co_qualname}")
        object.__setattr__(self, attribute, value)

    for cls in set(machinery()):
        if cls.__setattr__ is object.__setattr__:
            monkeypatch.setattr(cls, "__setattr__", guarded)
    jc.clear_caches()
    if how == "sweep":
        jc.sweep(
            {"w": jnp.zeros((3, 1))},
            loss_fn,
            (ROWS, ROWS[:, :1]),
            over={"optimizer.learning_rate": [0.1, 0.2]},
            optimizer=optax.adam,
            epochs=2,
            batch_size=8,
            strategy="vmap",
            verbose=0,
        )
    else:
        executor = "stepped" if how == "stepped" else None
        more = {"run_dir": tmp_path / "run"} if how == "resumed" else {}
        train(tmp_path, streamed=how == "stream", execution=jc.Execution(executor=executor), **more)
        if how == "resumed":
            train(tmp_path, execution=jc.Execution(), resume=True, **more)
    assert not wrong, sorted(set(wrong))


def test_no_constructor_of_the_machinery_takes_more_than_eight_arguments():
    many = {}
    for cls in set(machinery()):
        if "__init__" in vars(cls):
            count = len(inspect.signature(cls.__init__).parameters) - 1
            fields = getattr(cls, "__dataclass_fields__", None)
            if count > 8 and not (fields and cls.__dataclass_params__.frozen):
                many[cls.__qualname__] = count
    assert not many
