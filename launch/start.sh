#!/usr/bin/env bash
# Sourced by run_and_time.sh and the launchers of trials: start `python -m launch` with these arguments.
# PYTHON is the user's choice, else the virtual environment of `make run`, else python3.

# With CDPATH set, cd could enter another folder and print its path.
unset CDPATH
caller=$PWD
# A caller that has closed a stream must not end a run.
{ : >&1; } 2> /dev/null || exec > /dev/null
{ : >&2; } 2> /dev/null || exec 2> /dev/null
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=python3
    [[ ! -x .venv/bin/python ]] || PYTHON=.venv/bin/python
fi
if ! command -v "$PYTHON" > /dev/null; then
    echo "error: PYTHON: got '$PYTHON', which cannot be executed." \
        "Unset it to use .venv/bin/python, which make run creates" >&2
    exit 2
fi
export PYTHON
exec "$PYTHON" -m launch --from "$caller" "$@"
