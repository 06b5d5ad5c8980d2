#!/bin/sh
# Resolves the newest versions that pyproject.toml allows and writes them, exactly, to requirements/:
#   py311.txt     Python 3.11, the last one that jax 0.10 serves
#   oldest.txt    Python 3.11 with the oldest versions that pyproject.toml allows, for the tests without their linters
#   newest.txt    later Pythons, resolved on the newest one here
#   bench.txt     what the benchmarks compare with, beside py311.txt
#   site.txt      what builds the site, beside py311.txt
#   loaders.txt   the loaders that the tests train with, beside py311.txt
#   trackers.txt  tracking services, an environment of its own: MLflow's server needs an older dateutil
#   bench-gpu.txt and accelerators.txt     CUDA for the benchmarks; compilers for devices that are not here
# Only what resolves is written, never where it came from.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

lock() { # interpreter, file, further groups
    "$1" -m venv "$work/env"
    "$work/env/bin/python" -m pip install --quiet --upgrade 'pip>=25.1' # the first one that reads dependency groups
    "$work/env/bin/python" -m pip install --quiet --group dev ${3:+--group "$3"} '.[testing,plot]'
    {
        echo "# Made by \`make lock\` on Python $("$work/env/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); not edited by hand."
        "$work/env/bin/python" -m pip freeze --exclude jaxcb --exclude pip | grep '=='
    } >"$work/$2"
    rm -rf "$work/env"
    mv "$work/$2" "requirements/$2"
    echo "requirements/$2: $(grep -c == "requirements/$2") packages"
}

lock_oldest() { # interpreter; of what pyproject.toml names, the first version that it allows
    "$1" -m venv "$work/env"
    "$work/env/bin/python" -m pip install --quiet --upgrade 'pip>=25.1'
    "$1" -c 'import re, tomllib
for line in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]:
    print(re.sub(r"\[.*\]", "", line).replace(">=", "=="))' >"$work/floors"
    "$work/env/bin/python" -m pip install --quiet --group build --group test -c "$work/floors" '.[testing,plot]'
    {
        echo "# Made by \`make lock\` on Python 3.11, of the oldest versions that pyproject.toml allows; not edited by hand."
        "$work/env/bin/python" -m pip freeze --exclude jaxcb --exclude pip | grep '=='
    } >"$work/oldest.txt"
    rm -rf "$work/env"
    mv "$work/oldest.txt" requirements/
    echo "requirements/oldest.txt: $(grep -c == requirements/oldest.txt) packages"
}

lock_group() { # interpreter, dependency group; its file has what py311.txt has not
    "$1" -m venv "$work/env"
    "$work/env/bin/python" -m pip install --quiet --upgrade 'pip>=25.1'
    "$work/env/bin/python" -m pip install --quiet -r requirements/py311.txt
    "$work/env/bin/python" -m pip install --quiet -c requirements/py311.txt --group "$2"
    {
        echo "# Made by \`make lock\` on Python 3.11, beside py311.txt; not edited by hand."
        echo "-c py311.txt"
        # a build's own mark (+cpu) depends on where it came from
        "$work/env/bin/python" -m pip freeze --exclude pip | grep '==' | sed 's/+.*//' | grep -vxFf requirements/py311.txt
    } >"$work/$2.txt"
    rm -rf "$work/env"
    mv "$work/$2.txt" "requirements/$2.txt"
    echo "requirements/$2.txt: $(grep -c == "requirements/$2.txt") packages"
}

lock_devices() { # interpreter; the versions that belong to the locked jax
    "$1" -m venv "$work/env"
    "$work/env/bin/python" -m pip install --quiet -c requirements/py311.txt jax
    jax=$(sed -n 's/^jaxlib==//p' requirements/py311.txt)
    libtpu=$("$work/env/bin/python" -c 'from importlib.metadata import requires
print(next(r.split(";")[0] for r in requires("jax") if r.startswith("libtpu")))')
    "$work/env/bin/python" -m pip install --quiet -c requirements/py311.txt "$libtpu" "jax-cuda12-pjrt==$jax"
    {
        echo "# Made by \`make lock\` on Python 3.11, beside py311.txt; not edited by hand."
        echo "-c py311.txt"
        "$work/env/bin/python" -m pip freeze --exclude pip | grep -E '^(libtpu|jax-cuda12-pjrt)=='
    } >"$work/accelerators.txt"
    {
        echo "# Made by \`make lock\` on Python 3.11, beside py311.txt and bench.txt; not edited by hand."
        echo "-c py311.txt"
        echo "jax-cuda12-pjrt==$jax"
        echo "jax-cuda12-plugin[with-cuda]==$jax" # NVIDIA's own libraries, in versions that fit the card's driver
    } >"$work/bench-gpu.txt"
    rm -rf "$work/env"
    mv "$work/accelerators.txt" "$work/bench-gpu.txt" requirements/
    echo "requirements/accelerators.txt, requirements/bench-gpu.txt: those of jax $jax"
}

oldest=$(command -v python3.11)
lock "$oldest" py311.txt
lock_oldest "$oldest"
lock "$(sh tools/find_python.sh newest)" newest.txt
lock_group "$oldest" bench
lock_group "$oldest" loaders
lock_group "$oldest" site
lock "$oldest" trackers.txt trackers
lock_devices "$oldest"
