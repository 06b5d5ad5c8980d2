"""What `import jaxcb` gives: every name of the stub, each imported when it is first used."""

import ast
import dataclasses
import importlib.metadata
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxcb as jc

STUB = Path(jc.__file__).with_suffix(".pyi").read_text()
TOP_LEVEL = 60  # names at most; the others are in namespaces
NAMESPACES = [
    "actions",
    "callbacks",
    "distributed",
    "errors",
    "logs",
    "models",
    "probes",
    "search",
    "testing",
    "writers",
]


def test_the_stub_lists_each_name_once_in_the_form_that_type_checkers_take_as_public():
    *lines, blank, version = STUB.splitlines()[2:]
    assert (blank, version) == ("", "__version__: str")
    assert all(re.fullmatch(r"from (\S+) import (\w+) as \2", line) for line in lines)
    assert sorted(line.split()[-1] for line in lines) == sorted(jc.__all__)  # pyright: ignore[reportAttributeAccessIssue]
    assert len(jc.__all__) == len(set(jc.__all__)) <= TOP_LEVEL  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", jc.__all__)  # pyright: ignore[reportAttributeAccessIssue]
def test_each_name_is_what_its_module_has(name):
    module = re.search(rf"^from (\S+) import {name} as", STUB, re.MULTILINE)
    assert module is not None
    expected = importlib.import_module(module[1])
    assert getattr(jc, name) is (getattr(expected, name) if expected is not jc else sys.modules[f"jaxcb.{name}"])


def test_the_version_is_that_of_the_package():
    assert jc.__version__ == importlib.metadata.version("jaxcb")


def test_only_public_names_are_listed():
    assert dir(jc) == sorted(jc.__all__)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_namespace_lists_what_it_has(namespace):
    module = getattr(jc, namespace)
    assert module.__doc__
    assert all(hasattr(module, name) for name in module.__all__)
    public = {name for name, value in vars(module).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public == set(module.__all__)


def test_every_callback_of_the_top_level_is_among_the_callbacks():
    top = [getattr(jc, name) for name in jc.__all__]  # pyright: ignore[reportAttributeAccessIssue]
    kinds = [v for v in top if isinstance(v, type) and issubclass(v, jc.Callback) and v.__init__ is not object.__init__]
    bases = {jc.Callback, jc.PopulationCallback}
    assert {kind.__name__ for kind in kinds if kind not in bases} <= set(jc.callbacks.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="jaxcb has no 'EarlyStoping'") as caught:
        jc.EarlyStoping  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
    assert (caught.value.name, caught.value.obj) == ("EarlyStoping", jc)  # what Python suggests another name by


def test_to_import_it_imports_nothing_else():
    code = (
        "import sys, jaxcb\n"
        "heavy = ('jax', 'numpy', 'optax', 'flax', 'orbax', 'tensorboardX', 'rich')\n"
        "print([m for m in heavy if m in sys.modules])\n"
        "from jaxcb import *\n"
        "print([m for m in heavy[3:] if m in sys.modules], fit.__name__)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == ["[]", "[] fit"]


def test_every_field_of_a_callback_or_an_action_is_read():
    """An argument that is checked and read nowhere else does nothing, whatever its documentation says."""
    read = set()
    for path in Path(jc.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        checks = {n for f in ast.walk(tree) if getattr(f, "name", "") == "__post_init__" for n in ast.walk(f)}
        nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n not in checks]
        read |= {n.attr for n in nodes if isinstance(n.ctx, ast.Load)}
    values = [getattr(module, name) for module in (jc, jc.callbacks, jc.actions) for name in module.__all__]
    classes = [value for value in values if inspect.isclass(value) and dataclasses.is_dataclass(value)]
    assert len(classes) > 60
    assert [f"{c.__name__}.{f.name}" for c in classes for f in dataclasses.fields(c) if f.name not in read] == []
