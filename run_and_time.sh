#!/usr/bin/env bash
# One timed run of the sourced configuration: check, clear caches, time, run, report, pass the exit status on.
# Exit status: 0 converged, 1 failed, 2 bad configuration, 3 target not reached, 130 interrupted, 143 terminated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

refuse() {
    echo "error: $1" >&2
    exit 2
}

# Not by ${X:?}, whose exit status is 1.
for name in DGXSYSTEM DGXNGPU DATADIR; do
    [[ -n "${!name:-}" ]] || refuse "$name: not set. Source a configuration first, e.g. source config_CPU_1x2.sh"
done
: "${DGXNNODES:=1}" "${CLEAR_CACHES:=0}" "${CHECK_COMPLIANCE:=1}"
if [[ "$DGXNNODES" != 1 ]]; then
    [[ -n "${NODE_RANK:-}" ]] || refuse "NODE_RANK: not set. A run on several nodes needs the number of this one, from 0"
    [[ -n "${MASTER_ADDR:-}" ]] || refuse "MASTER_ADDR: not set. A run on several nodes needs the address of the first"
fi
if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=python3
    [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi

# The whole configuration is checked once here, before any rank starts.
"$PYTHON" -m gptoss20b train --dry-run > /dev/null || exit 2
# The folder only: the data itself must not be touched before the clock starts.
[[ -d "$DATADIR" ]] || refuse "DATADIR: no folder '$DATADIR'. Fetch the set with data_scripts/download_dataset.sh '$DATADIR', or make sample data: $PYTHON -m data_scripts.make_sample_data '$DATADIR'"
export LOGDIR="${LOGDIR:-results/${DGXSYSTEM}_$(date +%Y%m%d_%H%M%S)_$$}"
[[ ! -e "$LOGDIR/result_0.txt" ]] || refuse "LOGDIR: '$LOGDIR/result_0.txt' exists, and results are never overwritten. Name another folder."

# What the log says about the caches is what happened to them.
export CACHE_CLEARED=0
if [[ "$CLEAR_CACHES" == 1 ]]; then
    if sync && echo 3 2> /dev/null > /proc/sys/vm/drop_caches; then
        CACHE_CLEARED=1
    else
        echo "warning: the page cache could not be dropped (needs root on the host); cache_clear is logged as false" >&2
    fi
fi

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

# A signal to this script is the run's: it is passed on, and the run gets the time to end its log.
terminated=0
child=
# shellcheck disable=SC2329 # the traps call it
pass_on() {
    terminated=$1
    [[ -z "$child" ]] || kill -TERM "$child" 2> /dev/null || true
}
trap 'pass_on 143' TERM
trap 'pass_on 130' INT

begin=$(date +%s)
echo "run of $DGXSYSTEM started at $(date -u +%Y-%m-%dT%H:%M:%SZ)" >&2
"${launch[@]}" -m gptoss20b train &
child=$!
# One that came before there was a child to pass it on to.
((terminated == 0)) || kill -TERM "$child" 2> /dev/null || true
status=0
wait "$child" || status=$?
# wait returns at once when a signal is passed on; the run itself ends a little later.
while kill -0 "$child" 2> /dev/null; do
    status=0
    wait "$child" || status=$?
done
trap - TERM INT
echo "run of $DGXSYSTEM ended after $(($(date +%s) - begin)) s" >&2

# Only the first node has the log.
[[ "$DGXNNODES" == 1 || "$NODE_RANK" == 0 ]] || exit "$((terminated ? terminated : status))"
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
    if "$PYTHON" -m mlperf_logging.compliance_checker --usage training --ruleset 6.1.0 \
        --log_output "$LOGDIR/compliance_checker.log" "$LOGDIR/result_0.txt" > /dev/null 2>&1; then
        echo "compliance checker (6.1.0): passed" >&2
    else
        echo "compliance checker (6.1.0): FAILED, see $LOGDIR/compliance_checker.log" >&2
        outcome=1
    fi
fi
echo "$report" >&2
exit "$outcome"
