#!/bin/sh
# Prints the path of a Python that can make a virtual environment, 3.11 to 3.14.
#   find_python.sh default    python3 where it will do, else any other
#   find_python.sh newest     the newest one that the machine has
# A name on PATH proves nothing (pyenv puts shims there for versions that are not active), so each is run.
set -u

probe() { # prints "minor path" of an interpreter that will do
    "$@" -c '
import sys
import ensurepip, venv  # Debian ships them apart from Python
if (3, 11) <= sys.version_info[:2] <= (3, 14):
    print(sys.version_info[1], getattr(sys, "_base_executable", sys.executable) or sys.executable)
' 2>/dev/null
}

candidates() {
    for name in python3 python3.14 python3.13 python3.12 python3.11 python; do
        probe "$name"
    done
    if command -v pyenv >/dev/null 2>&1; then
        for version in $(pyenv versions --bare 2>/dev/null); do
            path=$(PYENV_VERSION=$version pyenv which python 2>/dev/null) && probe "$path"
        done
    fi
    :
}

case "${1:-default}" in
    newest) found=$(candidates | sort -k1,1nr -s | head -n 1) ;;
    *) found=$(candidates | head -n 1) ;;
esac
if [ -z "$found" ]; then
    echo "jaxcb needs Python 3.11 or newer with the venv module; found none on PATH." >&2
    echo "Install one (on Debian: python3 and python3-venv), or name it: make PYTHON=/path/to/python3 ..." >&2
    exit 1
fi
echo "${found#* }"
