#!/usr/bin/env bash
# Verify a data set: verify_dataset.sh [DIR] [OPTIONS], or --help.
# A relative DIR or report is the caller's; without DIR it is data/c4 of this repository.
# Exit status: 0 pass, 1 findings, 2 usage, 130 interrupted, 143 terminated.
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=python3
    if [[ -x .venv/bin/python ]]; then
        PYTHON=.venv/bin/python
    fi
fi

arguments=()
takes=
for argument in "$@"; do
    # The word that is neither an option nor an option's value is DIR.
    if [[ "$takes" == path || (-z "$takes" && "$argument" != -*) ]] && [[ "$argument" != /* ]]; then
        argument=$caller/$argument
    fi
    takes=
    case $argument in
        --report) takes=path ;;
        --report=/*) ;;
        --report=*) argument=--report=$caller/${argument#--report=} ;;
        --vocab-size | --validation-documents | --sequences | --sequence-length | --threads) takes=number ;;
    esac
    arguments+=("$argument")
done
exec "$PYTHON" -m data_scripts verify "${arguments[@]}"
