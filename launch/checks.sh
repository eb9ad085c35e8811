#!/usr/bin/env bash
# Sourced. Check the configuration before anything runs, and the log after a run.
# A failed check ends the script with status 2 and one line on stderr, which includes the fix.

# With CDPATH set, cd could enter another folder and print its path.
unset CDPATH

# die MESSAGE...: print one error line and exit with status 2.
die() {
    echo "error: $*" >&2
    exit 2
}

# require_variables NAME...: fail unless each variable is set. ${X:?} would exit with status 1.
require_variables() {
    local name
    for name in "$@"; do
        [[ -n "${!name:-}" ]] || die "$name: not set. Source a configuration first, e.g. source config_CPU_1x2.sh"
    done
}

# check_choice NAME VALUE...: fail unless the variable has one of the values.
check_choice() {
    local name=$1 value
    shift
    for value in "$@"; do
        [[ "${!name}" != "$value" ]] || return 0
    done
    die "$name: got '${!name}', expected one of: $*"
}

# check_integer NAME MIN MAX: fail unless the variable is a decimal number in range, without leading zeros.
check_integer() {
    # At most 18 digits, so that bash's 64-bit arithmetic cannot overflow.
    if [[ ! "${!1}" =~ ^(0|[1-9][0-9]{0,17})$ ]] || ((${!1} < $2 || ${!1} > $3)); then
        die "$1: got '${!1}', expected an integer from $2 to $3"
    fi
}

check_system() {
    local configs=(config_*_*x*.sh)
    [[ -f "config_$DGXSYSTEM.sh" ]] ||
        die "DGXSYSTEM: got '$DGXSYSTEM', but there is no config_$DGXSYSTEM.sh." \
            "Source one of these, which sets DGXSYSTEM: ${configs[*]}"
}

# Check the folder only: the rules forbid touching the data before the clock starts.
check_data() {
    [[ -d "$DATADIR" ]] ||
        die "DATADIR: folder '$DATADIR' does not exist." \
            "Download the dataset (data_scripts/download_dataset.sh '$DATADIR')" \
            "or make sample data (python -m data_scripts.make_sample_data '$DATADIR')"
}

# resolve_path NAME: replace the variable's folder by its absolute path without symbolic links.
resolve_path() {
    local path
    path=$(cd "${!1}" 2> /dev/null && pwd -P) ||
        die "$1: folder '${!1}' does not exist or cannot be entered. Set $1 to a readable folder"
    printf -v "$1" %s "$path"
}

# Succeed if RESUME is true, in any spelling that pydantic accepts.
resume_requested() {
    local value=${RESUME:-}
    [[ "${value,,}" =~ ^(1|true|t|yes|y|on)$ ]]
}

# Call before a default LOGDIR is made: a new folder would restart training from step 0 at every start.
check_resume() {
    ! resume_requested || [[ -n "${LOGDIR:-}" ]] ||
        die "RESUME: got '$RESUME', but LOGDIR is not set. Set LOGDIR to the folder of the run to resume"
}

# check_mountable NAME...: fail if a path contains a separator of mount options.
check_mountable() {
    local name
    for name in "$@"; do
        [[ "${!name:-}" != *[:,]* ]] ||
            die "$name: got '${!name}', which cannot be mounted into a container. Use a path without ':' and ','"
    done
}

# Check this node's rank and the rendezvous address of a multi-node run.
check_node() {
    [[ "$DGXNNODES" != 1 ]] || return 0
    [[ -n "${NODE_RANK:-}" ]] || die "NODE_RANK: not set. A multi-node run needs this node's rank, from 0"
    [[ -n "${MASTER_ADDR:-}" ]] || die "MASTER_ADDR: not set. A multi-node run needs the address of node 0"
    check_integer NODE_RANK 0 $((DGXNNODES - 1))
}

# Set PYTHON: the user's choice, else the virtual environment of `make run`, else python3.
choose_python() {
    if [[ -z "${PYTHON:-}" ]]; then
        PYTHON=python3
        [[ ! -x .venv/bin/python ]] || PYTHON=.venv/bin/python
    fi
    command -v "$PYTHON" > /dev/null ||
        die "PYTHON: got '$PYTHON', which cannot be executed. Unset it to use .venv/bin/python, which make run creates"
}

# make_folder NAME: create the folder that the variable names, and make sure that it can be written.
make_folder() {
    { mkdir -p "${!1}" && rm "$(mktemp "${!1}/.writable.XXXXXX")"; } 2> /dev/null ||
        die "$1: cannot write to '${!1}'. Use a writable folder with room on its disk"
}

# run_compliance_checker FOLDER PYTHON...: run the official checker on the log in FOLDER.
run_compliance_checker() {
    local folder=$1
    shift
    "$@" -m mlperf_logging.compliance_checker --usage training --ruleset 6.1.0 \
        --log_output "$folder/compliance_checker.log" "$folder/result_0.txt" > /dev/null 2>&1
}

# draw_report FOLDER PYTHON...: draw the log in FOLDER. A failure is only a warning.
draw_report() {
    local folder=$1 output status=0
    shift
    # An environment without these packages draws nothing.
    "$@" -c 'import compliance.render.report_file' 2> /dev/null || return 0
    output=$("$@" -m compliance report --out "$folder/report.html" \
        --curve "$folder/loss_curve.svg" "$folder/result_0.txt" 2>&1) || status=$?
    # Status 1: the log violates a rule, as the report says.
    if ((status > 1)); then
        echo "warning: could not draw '$folder/report.html': $output" >&2
    else
        echo "report: $folder/report.html" >&2
        # A run that ended before its first evaluation has no curve.
        [[ ! -e "$folder/loss_curve.svg" ]] || echo "loss curve: $folder/loss_curve.svg" >&2
    fi
}
