#!/usr/bin/env bash
# Download the published dataset, or resume an interrupted download: download_dataset.sh [DIR] [OPTIONS], or --help.
set -euo pipefail
repository=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=python3
    [[ -x "$repository/.venv/bin/python" ]] && PYTHON=$repository/.venv/bin/python
fi
# Set PYTHONPATH instead of changing the folder: relative paths in the arguments refer to the caller's folder.
export PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m data_scripts download "$@"
