#!/usr/bin/env bash
# One timed run of the sourced configuration: check, clear caches, time, train, report.
# Exit status: 0 converged, 1 failed, 2 bad configuration, 3 target not reached, 4 diverged, 5 converged but not compliant,
# 130 interrupted, 143 terminated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source launch/checks.sh
source launch/supervise.sh

require_variables DGXSYSTEM DGXNGPU DATADIR
: "${DGXNNODES:=1}" "${CLEAR_CACHES:=0}" "${CHECK_COMPLIANCE:=1}"
check_system
# "done": the launcher has just dropped the caches of all hosts, which this script may be unable to do in a container.
check_choice CLEAR_CACHES 0 1 'done'
check_choice CHECK_COMPLIANCE 0 1
NODE_RANK="${NODE_RANK:-${SLURM_NODEID:-}}"
check_node
check_resume
choose_python
# Node 0 is the leader: its rank 0 writes the log.
is_leader=1
[[ "$DGXNNODES" == 1 || "$NODE_RANK" == 0 ]] || is_leader=0

# Check the whole configuration once, before any rank starts.
"$PYTHON" -m gptoss20b train --dry-run > /dev/null || exit 2
check_data
given_logdir=${LOGDIR:+1} show_result=0
export LOGDIR="${LOGDIR:-results/${DGXSYSTEM}_$(date +%Y%m%d_%H%M%S)_$$}"
# Only on the leader: its ranks may have created the log before a worker reaches this line. When resuming, a log exists,
# and the run itself checks whether it can be continued.
((is_leader == 0)) || resume_requested || [[ ! -e "$LOGDIR/result_0.txt" ]] ||
    die "LOGDIR: '$LOGDIR/result_0.txt' exists, and results are never overwritten. Use another folder"
((is_leader == 0)) || make_folder LOGDIR

# The log records whether the caches were in fact dropped, so a value from the environment is ignored.
export CACHE_CLEARED=0
case "$CLEAR_CACHES" in
    done) CACHE_CLEARED=1 ;;
    1)
        if launch/clear_caches.sh; then
            CACHE_CLEARED=1
        else
            echo "warning: could not drop the page cache (needs root on the host); cache_clear is logged as false" >&2
        fi
        ;;
esac

torchrun=("$PYTHON" -m gptoss20b.launch --nproc_per_node="$DGXNGPU")
if [[ "$DGXNNODES" == 1 ]]; then
    torchrun+=(--standalone)
else
    torchrun+=(
        --nnodes="$DGXNNODES"
        --node_rank="$NODE_RANK"
        --master_addr="$MASTER_ADDR"
        --master_port="${MASTER_PORT:-29500}"
    )
fi

begin=$(date +%s)
echo "run of $DGXSYSTEM started at $(date -u +%Y-%m-%dT%H:%M:%SZ)" >&2
supervise exec_die_with_parent "${torchrun[@]}" -m gptoss20b train
trap - TERM INT HUP
echo "run of $DGXSYSTEM ended after $(($(date +%s) - begin)) s" >&2

# Only the leader has the log.
((is_leader)) || exit "$((terminated ? terminated : status))"
if [[ ! -e "$LOGDIR/result_0.txt" ]]; then
    echo "error: the run ended with status $status before it wrote a log" >&2
    exit "$((terminated ? terminated : status ? status : 1))"
fi
outcome=0
report=$("$PYTHON" -m gptoss20b result "$LOGDIR") || outcome=$?
# On a terminal the run has just shown its end, if it could.
[[ -t 2 && "$outcome" =~ ^(0|3|4|130|143)$ ]] || show_result=1
# torchrun returns only 0 or 1, so the status comes from the log. A failure that is not in the log is still a failure.
((outcome != 0 || status == 0)) || outcome=1
# torchrun sends TERM to the other ranks when one fails: that is a failure, not a request to terminate.
[[ "$outcome" != 143 ]] || outcome=1
((terminated == 0)) || outcome=$terminated

if [[ "$outcome" == 0 && "$CHECK_COMPLIANCE" == 1 ]]; then
    if run_compliance_checker "$LOGDIR" "$PYTHON"; then
        echo "compliance checker (6.1.0): passed" >&2
    else
        echo "compliance checker (6.1.0): FAILED, see $LOGDIR/compliance_checker.log" >&2
        outcome=5
    fi
fi
[[ ! "$outcome" =~ ^[0345]$ ]] || draw_report "$LOGDIR" "$PYTHON"
# A trial of a set has a LOGDIR and no terminal.
[[ "$outcome" != 0 || (! -t 2 && "$given_logdir" == 1) ]] ||
    echo "next, the ten runs of a result: source config_$DGXSYSTEM.sh && NEXP=10 ./run_local.sh" >&2
((show_result == 0)) || echo "$report" >&2
exit "$outcome"
