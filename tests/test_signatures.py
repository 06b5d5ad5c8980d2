"""The public signatures: how many arguments, that those of `fit`, `Loop.run` and `sweep` agree, and their types."""

import dataclasses
import inspect
import re
import types
import typing
from typing import Any, Literal

import pytest
from loop._runs import config_of

import jaxcb as jc
from jaxcb._src.loop.config import RunConfig

MOST = 27  # parameters of `fit`
RUNS = {"fit": jc.fit, "Loop.run": jc.Loop.run, "sweep": jc.sweep}
# What a run does not take of `fit`, and has of its own.
WITHOUT = {
    "Loop.run": {
        "model", "loss_fn", "optimizer", "learning_rate", "validation_split", "callbacks", "class_weight", "controls",
        "sample_weight", "trainable",
    },
    "sweep": {"model"},
}  # fmt: skip
OWN = {
    "Loop.run": {"self", "train_state"},
    "sweep": {"model_fn", "over", "strategy", "repack", "at_once"},
}
OPTIONAL = {"Loop.run": {"train_data"}, "sweep": set()}  # with a default, where `fit` has none
DIFFERS = "as for `fit`"  # how the text of an argument begins that is not that of `fit`


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def arguments_text(function: Any) -> dict[str, str]:
    """The text of each argument in a docstring, its white space made one."""
    lines = inspect.getdoc(function).partition("Args:\n")[2].partition("\n\n")[0].splitlines()
    texts: dict[str, str] = {}
    name = ""
    for line in lines:
        start = re.match(r" {4}(\w+): (.*)", line)
        name = start[1] if start else name
        texts[name] = start[2] if start else f"{texts[name]} {line.strip()}"
    return texts


def test_fit_has_few_parameters():
    assert len(parameters(jc.fit)) <= MOST


@pytest.mark.parametrize("name", RUNS)
def test_every_parameter_of_a_run_is_described(name):
    assert list(arguments_text(RUNS[name])) == [p for p in parameters(RUNS[name]) if p != "self"]


def test_the_configuration_of_a_run_takes_what_all_runs_take():
    everywhere = set.intersection(*(set(parameters(function)) for function in RUNS.values()))
    found = parameters(RunConfig.of)
    assert found.keys() - {"owner", "unsupported"} == everywhere - {"train_data"}
    expected = parameters(jc.fit)
    for name in found.keys() & {"epochs", "seed", "run_dir", "resume", "verbose", "execution", "checkpointing"}:
        assert found[name].annotation == expected[name].annotation, name


def test_a_configuration_cannot_be_changed():
    config = config_of(epochs=2, batch_size=3)
    assert (config.data.epochs, config.data.batch_size, config.validation.batch_size) == (2, 3, 3)
    for part in (config, config.data, config.validation, config.execution, config.checkpointing):
        for field in dataclasses.fields(part):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(part, field.name, None)


@pytest.mark.parametrize("name", ["Loop.run", "sweep"])
def test_runs_take_what_fit_takes(name):
    expected, found = parameters(jc.fit), parameters(RUNS[name])
    assert [p for p in found if p not in OWN[name]] == [p for p in expected if p not in WITHOUT[name]]
    for parameter in found.keys() & expected.keys():
        # `fit` may continue with the optimizer of an earlier run, and train more from an epoch on
        if (name, parameter) in (("sweep", "optimizer"), ("sweep", "trainable")):
            continue
        same = found[parameter]
        if parameter in OPTIONAL[name]:
            same = same.replace(default=inspect.Parameter.empty)
        assert same == expected[parameter], parameter  # kind, default and annotation


@pytest.mark.parametrize("name", ["Loop.run", "sweep"])
def test_runs_describe_what_they_take_as_fit_does(name):
    expected, found = arguments_text(jc.fit), arguments_text(RUNS[name])
    for parameter in found.keys() & expected.keys():
        text = found[parameter]
        assert text == expected[parameter] or text.startswith(DIFFERS), parameter


# Types


def public_signatures() -> dict[str, inspect.Signature]:
    """Those of all functions and classes of the public faces, and of the methods of these classes."""
    found: dict[str, Any] = {}
    faces = [jc, *(getattr(jc, name) for name in jc.__all__ if inspect.ismodule(getattr(jc, name)))]  # pyright: ignore[reportAttributeAccessIssue]
    for face in faces:
        for name in face.__all__:
            value = getattr(face, name)
            if not callable(value) or not value.__module__.startswith("jaxcb"):
                continue
            if not (isinstance(value, type) and issubclass(value, Exception)):  # of which some have no signature
                found[f"{face.__name__}.{name}"] = value
            if isinstance(value, type):
                own = {n: m for n, m in vars(value).items() if inspect.isfunction(m) and not n.startswith("_")}
                found |= {f"{face.__name__}.{name}.{n}": m for n, m in own.items()}
    return {name: inspect.signature(value) for name, value in found.items()}


PUBLIC = {
    (name, parameter.name): parameter
    for name, signature in public_signatures().items()
    for parameter in signature.parameters.values()
}


def kinds(annotation: Any) -> set[Any]:
    """The members of a union; a choice is the type of its words."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return {kind for part in typing.get_args(annotation) for kind in kinds(part)}
    if typing.get_origin(annotation) is Literal:
        return {type(word) for word in typing.get_args(annotation)}
    return {annotation}


def test_many_signatures_are_looked_at():
    """Those of callbacks, actions and functions."""
    assert len(PUBLIC) > 500
    assert {("jaxcb.sweep", "repack"), ("jaxcb.callbacks.EarlyStopping", "mode"), ("jaxcb.Execution", "resident")} <= (
        PUBLIC.keys()
    )
    texts = {p.annotation for p in PUBLIC.values() if isinstance(p.annotation, str)}  # of types that are imported late
    assert not [text for text in texts if "bool" in text or "str" in text]
    assert kinds(bool | Literal["auto"] | None) == {bool, str, types.NoneType}


def test_no_argument_is_a_boolean_or_a_word():
    assert not [key for key, parameter in PUBLIC.items() if {bool, str} <= kinds(parameter.annotation)]


def test_none_and_not_a_word_lets_jaxcb_decide():
    """But for `mode`, whose "auto" is Keras's."""
    found = {key: p.default for key, p in PUBLIC.items() if isinstance(p.default, str) and p.default == "auto"}
    assert {name for _, name in found} == {"mode"}
    assert {p.annotation for key, p in PUBLIC.items() if key in found} == {Literal["auto", "min", "max"]}


CHOICES = (
    "executor",
    "sharding",
    "on_error",
    "verbose",
    "strategy",
    "threshold_mode",
    "patience_in",
    "save_freq",
    "update_freq",
    "every",
)


def test_a_choice_is_a_literal():
    found = {key: p.annotation for key, p in PUBLIC.items() if key[1] in CHOICES and key[0] != "jaxcb.Result"}
    loose = {key for key, annotation in found.items() if annotation is str or str in typing.get_args(annotation)}
    assert not loose
