#!/usr/bin/env bash
# Fetch the published data set, or take an interrupted download up again: download_dataset.sh [DIR] [OPTIONS], or --help.
# A relative DIR is the caller's; without DIR it is data/c4 of this repository.
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=python3
    [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi

arguments=()
takes_value=
for argument in "$@"; do
    # The word that is neither an option nor an option's value is DIR.
    if [[ -z "$takes_value" && "$argument" != [-/]* ]]; then
        argument=$caller/$argument
    fi
    takes_value=
    case $argument in
        --source | --streams | --retries | --retry-wait | --timeout) takes_value=yes ;;
    esac
    arguments+=("$argument")
done
exec "$PYTHON" -m data_scripts download "${arguments[@]}"
