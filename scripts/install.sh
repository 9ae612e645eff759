#!/usr/bin/env bash
# Make .venv and install the project with one extra, at the exact versions of constraints.txt.
# Usage: scripts/install.sh EXTRA
set -euo pipefail
cd "$(dirname "$0")/.."
extra=$1

usable() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

if [ ! -x .venv/bin/pip ]; then
    python=
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
        if [ -n "$candidate" ] && usable "$candidate"; then python=$candidate; break; fi
    done
    if [ -z "$python" ]; then
        echo "install: Python 3.11, 3.12 or 3.13 is needed and none is on the PATH" >&2
        exit 2
    fi
    # Debian ships venv apart from Python.
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            apt-get update -qq && apt-get install -y -qq --no-install-recommends "$package" >/dev/null
        else
            echo "install: Debian's package $package is missing; run: sudo apt-get install $package" >&2
            exit 2
        fi
    fi
    "$python" -m venv .venv
fi

echo "Installing steadfeast[$extra] into .venv (some minutes the first time)..."
.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$extra]"
touch ".venv/.$extra"
