#!/bin/sh
# Resolves the newest versions that pyproject.toml allows and writes them, exactly, to requirements/:
#   py311.txt     Python 3.11, the last one that jax 0.10 serves
#   newest.txt    later Pythons, resolved on the newest one here
# Only what resolves is written, never where it came from.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

lock() { # interpreter, file
    "$1" -m venv "$work/env"
    "$work/env/bin/python" -m pip install --quiet --upgrade 'pip>=25.1' # the first one that reads dependency groups
    "$work/env/bin/python" -m pip install --quiet --group dev '.[testing,plot]'
    {
        echo "# Made by \`make lock\` on Python $("$work/env/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); not edited by hand."
        "$work/env/bin/python" -m pip freeze --exclude jaxcb --exclude pip | grep '=='
    } >"$work/$2"
    rm -rf "$work/env"
    mv "$work/$2" "requirements/$2"
    echo "requirements/$2: $(grep -c == "requirements/$2") packages"
}

oldest=$(command -v python3.11)
lock "$oldest" py311.txt
lock "$(sh tools/find_python.sh newest)" newest.txt
