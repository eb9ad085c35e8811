#!/usr/bin/env bash
# Verify a data set: verify_dataset.sh [DIR] [OPTIONS], or --help.
set -euo pipefail
repository=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=python3
    [[ -x "$repository/.venv/bin/python" ]] && PYTHON=$repository/.venv/bin/python
fi
# Not from the repository's folder: paths in the arguments are the caller's.
export PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m data_scripts verify "$@"
