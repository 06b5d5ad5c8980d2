"""Builds the packages, checks them, and tries them in empty environments, outside of the checkout.

    python tools/check_package.py            # as `make package`

The wheel is installed with the oldest versions that pyproject.toml allows, and with the locked ones of this Python; the
source package with the newest versions on the newest Python here. In each environment, the README's code, a script with
every public name and the command line run from an empty directory, so that nothing of the checkout can be imported.
The files for public hosts (workflows, forms, citation, recipe) are checked, too, as they cannot run here.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOOLS = ("build", "check-jsonschema", "check-wheel-contents", "py-rattler-build", "twine", "zizmor")
SCHEMAS = {  # of check-jsonschema -> the files that it has the schema of
    "vendor.citation-file-format": ["CITATION.cff"],
    "vendor.dependabot": [".github/dependabot.yml"],
    "vendor.github-issue-config": [".github/ISSUE_TEMPLATE/config.yml"],
    "vendor.github-issue-forms": [".github/ISSUE_TEMPLATE/bug.yml", ".github/ISSUE_TEMPLATE/feature.yml"],
    "vendor.github-workflows": [f".github/workflows/{name}.yml" for name in ("nightly", "release", "tests")],
}
RECIPE = """
import rattler_build as conda

recipe = conda.Stage0Recipe.from_file("conda/recipe.yaml")
assert recipe.render(conda.VariantConfig(), conda.RenderConfig())
"""
EXPECTED = {"jaxcb/__init__.py", "jaxcb/__init__.pyi", "jaxcb/py.typed"}


def run(*command: str | Path, cwd: Path) -> str:
    """Runs a command, and returns what it printed.

    Raises:
        SystemExit: with the output, if the command fails.
    """
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def environment(directory: Path, python: str | Path, *arguments: str | Path) -> Path:
    """Makes an environment with some packages. Returns its directory of programs."""
    run(python, "-m", "venv", directory, cwd=ROOT)
    programs = directory / "bin"
    run(programs / "python", "-m", "pip", "install", "-qq", "--disable-pip-version-check", *arguments, cwd=ROOT)
    return programs


def lock_of(python: str | Path) -> Path:
    """Returns the lock for an interpreter."""
    is_old = run(python, "-c", "import sys; print(sys.version_info < (3, 12))", cwd=ROOT).strip() == "True"
    return ROOT / "requirements" / ("py311.txt" if is_old else "newest.txt")


def try_out(work: Path, python: str | Path, lock: Path, package: Path) -> None:
    """Installs a package with the versions of a lock into an empty environment, and uses it."""
    programs = environment(work / "environment", python, "-c", lock, f"{package}[testing]")
    empty = work / "empty"
    empty.mkdir()
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S))
    (empty / "readme.py").write_text(code)
    (empty / "every_name.py").write_text((ROOT / "tests" / "typed" / "every_name.py").read_text())
    told = run(programs / "python", "readme.py", cwd=empty).splitlines()[-1]
    run(programs / "python", "every_name.py", empty, cwd=empty)
    facts = "import sys, jax, jaxcb; print(jaxcb.__file__, sys.version.split()[0], jax.__version__, jaxcb.__version__)"
    place, *versions = run(programs / "python", "-c", facts, cwd=empty).split()
    if str(work) not in place:
        raise SystemExit(f"imported from {place} instead of the environment.")
    run(programs / "jaxcb", "ls", empty, cwd=empty)
    print(f"{package.name} with {lock.name} (Python {versions[0]}, jax {versions[1]}, jaxcb {versions[2]}): {told}")


def check_files(tools: Path) -> None:
    """Checks the files that public hosts read."""
    for schema, files in SCHEMAS.items():
        run(tools / "check-jsonschema", "--builtin-schema", schema, *files, cwd=ROOT)
    run(tools / "zizmor", "--offline", ".github", cwd=ROOT)  # security of workflows
    run(tools / "python", "-c", RECIPE, cwd=ROOT)
    print(f"{sum(map(len, SCHEMAS.values()))} files for public hosts and the conda recipe: valid")


def main() -> None:
    """Builds, checks and tries the packages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="a folder to copy the packages to, once they are checked")
    options = parser.parse_args()
    newest = run("sh", ROOT / "tools" / "find_python.sh", "newest", cwd=ROOT).strip()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        tools = environment(work / "tools", sys.executable, *TOOLS)
        check_files(tools)
        run(tools / "python", "-m", "build", "--outdir", work / "dist", ROOT, cwd=work)  # the wheel from the sdist
        packages = sorted((work / "dist").iterdir())
        wheel = next(path for path in packages if path.suffix == ".whl")
        source = next(path for path in packages if path.suffix == ".gz")
        print(run(tools / "twine", "check", "--strict", *packages, cwd=work), end="")
        print(run(tools / "check-wheel-contents", wheel, cwd=work), end="")
        listed = run(tools / "python", "-m", "zipfile", "-l", wheel, cwd=work)
        missing = {file for file in EXPECTED if file not in listed}
        if missing:
            raise SystemExit(f"{wheel.name} lacks {', '.join(sorted(missing))}.")
        trials = [(sys.executable, lock_of(sys.executable), wheel), (newest, lock_of(newest), source)]
        if sys.version_info < (3, 12):  # which the oldest versions are locked for
            trials.insert(0, (sys.executable, ROOT / "requirements" / "oldest.txt", wheel))
        for number, trial in enumerate(trials):
            (work / str(number)).mkdir()
            try_out(work / str(number), *trial)
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            for package in packages:
                shutil.copy(package, options.keep)


if __name__ == "__main__":
    main()
