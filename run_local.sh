#!/usr/bin/env bash
# NEXP trials of the sourced configuration with the Python of this machine; on several nodes, started on each of them with
# its NODE_RANK, the first node's MASTER_ADDR and one LOGDIR that all see. What it makes and its exit status: launch/trials.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source launch/checks.sh
source launch/supervise.sh
source launch/trials.sh

check_trials
check_node
choose_python
export PYTHON
data=$DATADIR
logdir=$LOGDIR

# shellcheck disable=SC2329 # run_trials calls it
run_trial() {
    exec_with_us ./run_and_time.sh
}

in_python() {
    "$PYTHON" "$@"
}

run_trials
