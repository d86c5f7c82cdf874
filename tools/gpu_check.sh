#!/usr/bin/env bash
# What only a CUDA machine can say of densevl: tools/gpu_check.sh [--dry-run] [--out FOLDER] [--stages NAME,NAME]
# (see tools/kernels/gpu_check.py). It makes an environment of its own, beside what python3 has:
#   PYTHON=/path/to/python   takes that one as it is and installs nothing (an absolute path)
#   WHEELS=folder            installs the wheels of a folder, where no package index can be reached
#   VENV=folder              where the environment is made: .venv-gpu
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${PYTHON:-}" ]; then
  venv=${VENV:-.venv-gpu} given=$(command -v python3)
  PYTHON=$venv/bin/python
  if [ ! -e "$venv/.made" ]; then
    "$given" -m venv "$venv"
    # What the machine's own python3 has, its torch above all, stays in use; what is installed here goes first.
    "$given" -c "import sys; print(*(path for path in sys.path if path.endswith('-packages')), sep='\n')" \
      > "$("$PYTHON" -c "import sysconfig; print(sysconfig.get_path('purelib'))")/given.pth"
    pip=("$PYTHON" -m pip install --disable-pip-version-check -q)
    if [ -n "${WHEELS:-}" ]; then
      "${pip[@]}" --no-index --no-deps "$WHEELS"/*.whl
    else
      "${pip[@]}" -e ".[photo,sam,dev]"
    fi
    touch "$venv/.made"
  fi
fi
PYTHONPATH=$PWD exec "$PYTHON" -m tools.kernels.gpu_check "$@"
