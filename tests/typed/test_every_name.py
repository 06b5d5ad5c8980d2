"""Type checkers accept a script with every public name, refuse what is wrong in it, and the script runs."""

import ast
import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import jaxcb as jc

SCRIPT = Path(__file__).with_name("every_name.py")
ROOT = Path(jc.__file__).parent.parent
WRONG = (  # what a user might write by mistake
    'jc.fit(0, max, 0, verbose="loud")',
    "jc.fit(0, max, 0, epoch=3)",
    'jc.Execution(executor="fast")',
    'jc.Execution(sharding="fdsp")',
    'jc.Checkpointing(on_error="ignore")',
    'jc.EarlyStopping(mode="lowest")',
    'jc.ModelCheckpoint("best", save_freq="batch")',
    "jc.EarlyStopping(patiance=3)",
    "jc.EarlyStoping()",
    "print(jc.callbacks.Chain().on_epoch_ends)",
)


def public_names() -> set[str]:
    """`fit`, `actions.Stop`, ... of all public modules."""
    names: set[str] = set()
    for name in jc.__all__:  # pyright: ignore[reportAttributeAccessIssue]
        value = getattr(jc, name)
        names |= {f"{name}.{inner}" for inner in value.__all__} if inspect.ismodule(value) else {name}
    return names


def used_names(source: str) -> set[str]:
    """What a script reads of `jc`."""
    texts = {ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    return {text.removeprefix("jc.") for text in texts if text.startswith("jc.")}


def test_the_script_has_every_public_name():
    assert len(public_names()) > 150
    assert public_names() - used_names(SCRIPT.read_text()) == set()


@pytest.fixture
def project(tmp_path):
    """A folder of a user, with the script, and a second one with mistakes, each on a line of its own."""
    shutil.copy(SCRIPT, tmp_path / "right.py")
    (tmp_path / "wrong.py").write_text("import jaxcb as jc\n\n" + "\n".join(WRONG) + "\n")
    settings = {"include": ["."], "typeCheckingMode": "strict", "pythonVersion": "3.11", "extraPaths": [str(ROOT)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    return tmp_path


def lines_of_wrong(lines: list[tuple[int, str]]) -> None:
    """Each mistake is found on its line."""
    found = {line for line, _ in lines}
    assert found == set(range(3, 3 + len(WRONG))), lines


@pytest.mark.long
def test_pyright_in_its_strict_mode(project):
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)["generalDiagnostics"]
    assert [item["message"] for item in found if item["file"].endswith("right.py")] == []
    wrong = [item for item in found if item["file"].endswith("wrong.py") and item["severity"] == "error"]
    lines_of_wrong([(item["range"]["start"]["line"] + 1, item["message"]) for item in wrong])


@pytest.mark.long
def test_mypy_in_its_strict_mode(project, monkeypatch):
    monkeypatch.setenv("MYPYPATH", str(ROOT))
    checks = ("--strict", "--follow-untyped-imports", "--allow-untyped-calls")  # optax and Flax have such calls
    command = [sys.executable, "-m", "mypy", *checks, "--follow-imports=silent", "--no-error-summary"]
    right = subprocess.run([*command, "right.py"], cwd=project, capture_output=True, text=True, check=False)
    assert (right.stdout, right.stderr) == ("", "")
    wrong = subprocess.run([*command, "wrong.py"], cwd=project, capture_output=True, text=True, check=False)
    own = [line.split(":", 2) for line in wrong.stdout.splitlines() if line.startswith("wrong.py:")]
    lines_of_wrong([(int(line), text) for _, line, text in own if text.startswith(" error: ")])


@pytest.mark.long
def test_the_script_runs(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"done with {jc.__version__}"
