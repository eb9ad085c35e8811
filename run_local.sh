#!/usr/bin/env bash
# Run NEXP trials of the sourced configuration with this machine's Python. For several nodes, start it on each node with
# its NODE_RANK, node 0's MASTER_ADDR, and one shared LOGDIR. Output files and exit status: see launch/trials.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source launch/checks.sh
source launch/supervise.sh
source launch/trials.sh

prepare_trials
check_node
choose_python
export PYTHON
trial_datadir=$DATADIR
trial_logdir=$LOGDIR

# shellcheck disable=SC2329 # called by run_trials
exec_trial() {
    exec_die_with_parent ./run_and_time.sh
}

run_python() {
    "$PYTHON" "$@"
}

run_trials
