"""What pyproject.toml says: the oldest versions are those locked, and each optional thing names its extra."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax.numpy as jnp
import optax
import pytest
import yaml

import jaxcb as jc

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def numbers(version: str) -> tuple[int, ...]:
    """`(2, 0)` for "2.0.0"."""
    found = [int(part) for part in version.split(".")]
    while found and not found[-1]:
        found.pop()
    return tuple(found)


@pytest.mark.parametrize("lock", ["oldest.txt", "py311.txt", "newest.txt"])
def test_the_locks_have_what_is_allowed(lock):
    """The oldest one has exactly the oldest versions."""
    locked = dict(re.findall(r"^([\w.-]+)==([\d.]+)$", (ROOT / "requirements" / lock).read_text(), re.MULTILINE))
    allowed = [re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", text) for text in PROJECT["dependencies"]]
    assert all(allowed)
    for package, version in (match.groups() for match in allowed if match):
        assert numbers(locked[package]) >= numbers(version), package
        assert lock != "oldest.txt" or numbers(locked[package]) == numbers(version), package


def run(*callbacks, **options):
    return jc.fit(
        {"w": jnp.zeros(2)},
        lambda params, batch: jnp.mean((batch @ params["w"] - 1.0) ** 2),
        jnp.ones((4, 2)),
        optimizer=optax.sgd,
        learning_rate=0.1,
        epochs=1,
        verbose=0,
        callbacks=callbacks,
        **options,
    )


def test_the_conda_recipe_needs_what_the_package_needs():
    recipe = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text())
    needed = {re.sub(r"\[\w+\]", "", text).lower() for text in PROJECT["dependencies"]}
    assert {text.replace(" ", "") for text in recipe["requirements"]["run"][1:]} == needed
    assert recipe["context"]["version"] == jc.__version__
    assert PROJECT["requires-python"] == f">={recipe['context']['python_min']}"
    assert [f"jaxcb = {PROJECT['scripts']['jaxcb']}"] == recipe["build"]["python"]["entry_points"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (jc.__version__, PROJECT["license"])


class Draws(jc.Callback):
    def on_epoch_end(self, state, metrics):
        return state, jc.actions.Image("noise", jnp.zeros((2, 2)))


def of_testing():
    for name in [name for name in sys.modules if name.startswith("jaxcb.testing")]:
        del sys.modules[name]
    import jaxcb.testing  # noqa: F401


NEEDS = {
    "bucket": ("obstore", lambda: run(run_dir="s3://bucket/run")),
    "hub": ("huggingface_hub", lambda: run(jc.ModelCheckpoint("best"), jc.callbacks.HubUpload("me/digits"))),
    "images": ("PIL", lambda: run(jc.TensorBoard("logs"), Draws())),
    "mlflow": ("mlflow", lambda: run(jc.callbacks.MLflowLogger("name"))),
    "plot": ("matplotlib", lambda: run().plot()),
    "testing": ("hypothesis", of_testing),
    "trackio": ("trackio", lambda: run(jc.callbacks.TrackioLogger("name"))),
    "wandb": ("wandb", lambda: run(jc.callbacks.WandbLogger("name"))),
}


def test_each_extra_is_needed_by_something():
    assert set(NEEDS) == set(PROJECT["optional-dependencies"])


def test_the_page_for_beginners_lists_each_extra():
    (listed,) = re.findall(r"Extras are (.*?), as\s+in", (ROOT / "docs/getting_started.md").read_text(), re.DOTALL)
    assert set(re.findall(r"`(\w+)`", listed)) == set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("extra", NEEDS)
def test_what_is_missing_is_named_with_the_extra_that_brings_it(extra, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    package, use = NEEDS[extra]
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.startswith("jaxcb.testing")]:
        monkeypatch.setitem(sys.modules, name, sys.modules[name])  # put back afterwards
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install jaxcb\[{extra}\]"):
        use()


# Callbacks alone: a loop by hand on a machine that has jax and numpy. Whatever jax itself needs is allowed.
CALLBACKS_ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in {*sys.stdlib_module_names, *ALLOWED} and not top.startswith("_"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

ALLOWED = ("jax", "jaxlib", "numpy", "scipy", "ml_dtypes", "opt_einsum", "jaxcb")
import jax  # which looks for other packages, and does without them

before = {*sys.modules}
sys.meta_path.insert(0, Refuse())
import jaxcb as jc

callbacks = jc.chain(jc.EarlyStopping(patience=2), jc.ReduceLROnPlateau(factor=0.5, patience=1), jc.TerminateOnNaN())
state = callbacks.init()
on_epoch_end = jax.jit(callbacks.on_epoch_end)
for epoch, loss in enumerate([0.9, 0.5, 0.6, 0.7, 0.8]):
    state, actions = on_epoch_end(state, jc.Metrics({"val_loss": loss}, epoch=epoch))
    if jc.stop_requested(actions):
        break
loaded = {name.partition(".")[0] for name in {*sys.modules} - before} - set(sys.stdlib_module_names) - set(ALLOWED)
print(epoch, jc.stop_reasons(actions), sorted(n for n in loaded if not n.startswith("_")))
"""


def test_callbacks_need_jax_and_numpy_alone():
    told = subprocess.run([sys.executable, "-c", CALLBACKS_ALONE], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    epoch, _, rest = told.stdout.partition(" ")
    assert int(epoch) == 3
    assert "val_loss has not improved for 2 reports" in rest
    assert rest.endswith("[]\n")
