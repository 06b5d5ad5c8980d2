"""Builds the packages, checks them, and tries the wheel in an empty environment, outside of the checkout.

    python tools/check_package.py            # as `make package`

The wheel is installed with the locked versions of this Python. Then the README's code and the command line run, from an
empty directory, so that nothing of the checkout can be imported.
"""

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOOLS = ("build", "check-wheel-contents", "twine")
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


def environment(directory: Path, *arguments: str | Path) -> Path:
    """Makes an environment with some packages. Returns its directory of programs."""
    venv.create(directory, with_pip=True)
    programs = directory / "bin"
    run(programs / "python", "-m", "pip", "install", "-qq", "--disable-pip-version-check", *arguments, cwd=ROOT)
    return programs


def main() -> None:
    """Builds, checks and tries the packages."""
    lock = ROOT / "requirements" / ("py311.txt" if sys.version_info < (3, 12) else "newest.txt")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        tools = environment(work / "tools", *TOOLS)
        run(tools / "python", "-m", "build", "--outdir", work / "dist", ROOT, cwd=work)  # the wheel from the sdist
        packages = sorted((work / "dist").iterdir())
        wheel = next(path for path in packages if path.suffix == ".whl")
        print(run(tools / "twine", "check", "--strict", *packages, cwd=work), end="")
        print(run(tools / "check-wheel-contents", wheel, cwd=work), end="")
        programs = environment(work / "try", "-c", lock, wheel)
        listed = run(programs / "python", "-m", "zipfile", "-l", wheel, cwd=work)
        missing = {file for file in EXPECTED if file not in listed}
        if missing:
            raise SystemExit(f"{wheel.name} lacks {', '.join(sorted(missing))}.")
        empty = work / "empty"
        empty.mkdir()
        code = "\n".join(re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S))
        (empty / "readme.py").write_text(code)
        print(run(programs / "python", "readme.py", cwd=empty).splitlines()[-1])
        version = run(programs / "python", "-c", "import jaxcb; print(jaxcb.__version__, jaxcb.__file__)", cwd=empty)
        if str(work) not in version:
            raise SystemExit(f"imported from the checkout instead of the environment: {version}")
        run(programs / "jaxcb", "--help", cwd=empty)
        print(f"{', '.join(path.name for path in packages)}: built, checked, installed, and the README's code ran.")


if __name__ == "__main__":
    main()
