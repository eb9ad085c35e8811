#!/usr/bin/env bash
# Sourced. What is refused before anything runs, each with exit status 2 and one line that says how to fix it; and the check
# of the log at the end.
# With it, cd would look elsewhere, and say where it went.
unset CDPATH

refuse() {
    echo "error: $1" >&2
    exit 2
}

# require NAME...: variables that a configuration sets. Not by ${X:?}, whose exit status is 1.
require() {
    local name
    for name in "$@"; do
        [[ -n "${!name:-}" ]] || refuse "$name: not set. Source a configuration first, e.g. source config_CPU_1x2.sh"
    done
}

# one_of NAME VALUE...: the variable has one of the values.
one_of() {
    local name=$1 value
    shift
    for value in "$@"; do
        [[ "${!name}" != "$value" ]] || return 0
    done
    refuse "$name: got '${!name}', expected one of: $*"
}

# whole_number NAME FROM TO: digits only, no leading zero, within the bounds.
whole_number() {
    if [[ ! "${!1}" =~ ^(0|[1-9][0-9]{0,17})$ ]] || ((${!1} < $2 || ${!1} > $3)); then
        refuse "$1: got '${!1}', expected a whole number from $2 to $3"
    fi
}

check_system() {
    local configs=(config_*_*x*.sh)
    [[ -f "config_$DGXSYSTEM.sh" ]] ||
        refuse "DGXSYSTEM: '$DGXSYSTEM' has no config_$DGXSYSTEM.sh here; there are ${configs[*]}. Source one of them; it sets DGXSYSTEM"
}

# The folder only: the data itself must not be touched before the clock starts.
check_data() {
    [[ -d "$DATADIR" ]] ||
        refuse "DATADIR: no folder '$DATADIR'. Fetch the set with data_scripts/download_dataset.sh '$DATADIR', or make sample data: python -m data_scripts.make_sample_data '$DATADIR'"
}

# resolve NAME: the folder's real path, without links.
resolve() {
    local path
    path=$(cd "${!1}" 2> /dev/null && pwd -P) || refuse "$1: no folder '${!1}' that can be entered. Name one"
    printf -v "$1" %s "$path"
}

# Whether RESUME asks a run to go on, in any spelling that the run itself takes for that.
resumes() {
    local asked=${RESUME:-}
    [[ "${asked,,}" =~ ^(1|true|t|yes|y|on)$ ]]
}

# Before a LOGDIR is made up: a new one would begin the run again, and again at each further start.
check_resume() {
    ! resumes || [[ -n "${LOGDIR:-}" ]] ||
        refuse "RESUME: there is nothing to go on from without the LOGDIR of the run. Name it"
}

# mountable NAME...: lists of mounts are written with these characters between the paths.
mountable() {
    local name
    for name in "$@"; do
        [[ "${!name:-}" != *[:,]* ]] || refuse "$name: '${!name}' cannot be mounted into a container. Name a path without ':' and ','"
    done
}

# A run on several nodes: which one this is, and where they meet.
check_node() {
    [[ "$DGXNNODES" != 1 ]] || return 0
    [[ -n "${NODE_RANK:-}" ]] || refuse "NODE_RANK: not set. A run on several nodes needs the number of this one, from 0"
    [[ -n "${MASTER_ADDR:-}" ]] || refuse "MASTER_ADDR: not set. A run on several nodes needs the address of the first"
    whole_number NODE_RANK 0 $((DGXNNODES - 1))
}

# PYTHON: the interpreter with the packages; .venv's, where `make run` made one.
choose_python() {
    [[ -z "${PYTHON:-}" ]] || return 0
    PYTHON=python3
    [[ ! -x .venv/bin/python ]] || PYTHON=.venv/bin/python
}

# check_log FOLDER PYTHON...: the official checker's verdict on the log in the folder.
check_log() {
    local folder=$1
    shift
    "$@" -m mlperf_logging.compliance_checker --usage training --ruleset 6.1.0 \
        --log_output "$folder/compliance_checker.log" "$folder/result_0.txt" > /dev/null 2>&1
}
