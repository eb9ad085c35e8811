#!/usr/bin/env bash
# One timed run of the sourced configuration: check, clear caches, time, run, report, pass the exit status on.
# Exit status: 0 converged, 1 failed, 2 bad configuration, 3 target not reached, 4 diverged, 5 converged but not compliant,
# 130 interrupted, 143 terminated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source launch/checks.sh
source launch/supervise.sh

require DGXSYSTEM DGXNGPU DATADIR
: "${DGXNNODES:=1}" "${CLEAR_CACHES:=0}" "${CHECK_COMPLIANCE:=1}"
check_system
# "done": a launcher dropped them on every node just now, where this script (in a container, say) may not.
one_of CLEAR_CACHES 0 1 'done'
one_of CHECK_COMPLIANCE 0 1
NODE_RANK="${NODE_RANK:-${SLURM_NODEID:-}}"
check_node
check_resume
choose_python
first_node=1
[[ "$DGXNNODES" == 1 || "$NODE_RANK" == 0 ]] || first_node=0

# The whole configuration is checked once here, before any rank starts.
"$PYTHON" -m gptoss20b train --dry-run > /dev/null || exit 2
check_data
export LOGDIR="${LOGDIR:-results/${DGXSYSTEM}_$(date +%Y%m%d_%H%M%S)_$$}"
# Only on the first node: its ranks may have begun the log by the time another node comes to this line. A run that goes on
# has a log; whether it may is checked where it is read.
((first_node == 0)) || resumes || [[ ! -e "$LOGDIR/result_0.txt" ]] ||
    refuse "LOGDIR: '$LOGDIR/result_0.txt' exists, and results are never overwritten. Name another folder."

# What the log says about the caches is what happened to them.
export CACHE_CLEARED=0
case "$CLEAR_CACHES" in
    done) CACHE_CLEARED=1 ;;
    1)
        if launch/clear_caches.sh; then
            CACHE_CLEARED=1
        else
            echo "warning: the page cache could not be dropped (needs root on the host); cache_clear is logged as false" >&2
        fi
        ;;
esac

launch=("$PYTHON" -m torch.distributed.run --nproc_per_node="$DGXNGPU")
if [[ "$DGXNNODES" == 1 ]]; then
    launch+=(--standalone)
else
    launch+=(
        --nnodes="$DGXNNODES"
        --node_rank="$NODE_RANK"
        --master_addr="$MASTER_ADDR"
        --master_port="${MASTER_PORT:-29500}"
    )
fi

begin=$(date +%s)
echo "run of $DGXSYSTEM started at $(date -u +%Y-%m-%dT%H:%M:%SZ)" >&2
supervise exec_with_us "${launch[@]}" -m gptoss20b train
trap - TERM INT HUP
echo "run of $DGXSYSTEM ended after $(($(date +%s) - begin)) s" >&2

# Only the first node has the log.
((first_node)) || exit "$((terminated ? terminated : status))"
if [[ ! -e "$LOGDIR/result_0.txt" ]]; then
    echo "error: the run ended with status $status before it wrote a log" >&2
    exit "$((terminated ? terminated : status ? status : 1))"
fi
outcome=0
report=$("$PYTHON" -m gptoss20b result "$LOGDIR") || outcome=$?
# The launcher knows only 0 and 1; the log knows how the run ended. A failure the log did not see stays a failure.
((outcome != 0 || status == 0)) || outcome=1
# A rank that lost a peer is ended by the launcher's signal: that is a failure, unless this script was told to end.
[[ "$outcome" != 143 ]] || outcome=1
((terminated == 0)) || outcome=$terminated

if [[ "$outcome" == 0 && "$CHECK_COMPLIANCE" == 1 ]]; then
    if check_log "$LOGDIR" "$PYTHON"; then
        echo "compliance checker (6.1.0): passed" >&2
    else
        echo "compliance checker (6.1.0): FAILED, see $LOGDIR/compliance_checker.log" >&2
        outcome=5
    fi
fi
echo "$report" >&2
exit "$outcome"
