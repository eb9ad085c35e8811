#!/usr/bin/env bash
# Sourced by run_local.sh, run_with_docker.sh and run.sub. Runs NEXP trials of the sourced configuration, as one set.
#
# A launcher sets      trial_datadir, trial_logdir   DATADIR and LOGDIR as the trials see them
#         and defines  exec_trial                    exec run_and_time.sh for one trial
#                      run_python ARG...             run Python where the harness is installed
#                      cleanup_trial                 optional: remove what a trial may leave running
#         may set      clear_caches_command          clears the hosts' caches where a trial cannot
#                      single_launcher               1: one launcher starts all nodes
# and calls prepare_trials, then run_trials. On several nodes, node 0 is the leader and the others are workers.
#
# Files in LOGDIR, the folder of the set:
#   settings.txt       resolved configuration of the trials        seed_base        seed of trial 1
#   trials.tsv         one row per trial that ended                summary.txt      final table
#   result_<i>.txt     log of trial i, if its training ended       compliance.txt   verdict on the set
#   trial_<i>/         log, config.json, compliance_checker.log, and output.log with the whole output
#   current            running trial, read by the workers          node_<r>/        output of worker r
# Exit status: 0 all converged, 1 a trial failed, 2 bad configuration, 3 a trial diverged or did not reach the target,
# 5 converged but not compliant, 130 interrupted, 143 terminated.

: "${trial_datadir:=}" "${trial_logdir:=}" "${terminated:=0}" "${single_launcher:=0}" "${on_terminal:=0}"
clear_caches_command=()
# Status of the worst trial so far: 1 if any failed.
worst=0

source launch/one_trial.sh
source launch/worker_node.sh

# Print to stderr. A closed stderr must not end the set.
log() {
    echo "$@" >&2 || true
}

# Check everything that can be checked before a trial, and create LOGDIR.
prepare_trials() {
    require_variables DGXSYSTEM DGXNGPU DATADIR
    : "${DGXNNODES:=1}" "${CLEAR_CACHES:=0}" "${CHECK_COMPLIANCE:=1}" "${STOP_ON_FAILURE:=0}" "${NEXP:=10}"
    : "${MASTER_PORT:=29500}"
    # A trial writes to a pipe. On a terminal behind that pipe, the log's records would hide the progress.
    [[ ! -t 1 ]] || on_terminal=1
    check_integer NEXP 1 1000
    # Trial i uses port MASTER_PORT + i - 1: the port of the trial before may still be in use.
    check_integer MASTER_PORT 1 $((65536 - NEXP))
    check_choice CLEAR_CACHES 0 1
    check_choice CHECK_COMPLIANCE 0 1
    check_choice STOP_ON_FAILURE 0 1
    check_system
    check_data
    check_seed
    check_resume
    [[ -z "${SAVE_DIR:-}" ]] ||
        die "SAVE_DIR: '$SAVE_DIR' would mix the checkpoints of all trials." \
            "Unset it: each trial saves its checkpoints in LOGDIR/trial_<i>/checkpoints"
    check_integer DGXNNODES 1 100000
    # One launcher can choose a folder for all nodes. Several launchers would choose different ones.
    if [[ "$DGXNNODES" != 1 && -z "${LOGDIR:-}" ]] && ((single_launcher == 0)); then
        die "LOGDIR: not set. Trials on several nodes need one folder that all nodes share"
    fi
    LOGDIR="${LOGDIR:-results/${DGXSYSTEM}_$(date +%Y%m%d_%H%M%S)_$$}"
    make_folder LOGDIR
    : >> "$LOGDIR/trials.tsv"
    # Resolve links now: LOGDIR may be results/latest, which is about to change.
    resolve_path LOGDIR
    resolve_path DATADIR
    [[ -z "${MODELDIR:-}" ]] || resolve_path MODELDIR
    export DGXNNODES CHECK_COMPLIANCE
}

# Move SEED, which would make all trials identical, to SEED_BASE.
check_seed() {
    if [[ -n "${SEED:-}" ]]; then
        [[ "$NEXP" == 1 && "${SEED_BASE:-$SEED}" == "$SEED" ]] ||
            die "SEED: got $SEED, which all $NEXP trials would use." \
                "Unset it; SEED_BASE=$SEED gives this seed to the first trial only"
        SEED_BASE=$SEED
    fi
    [[ -z "${SEED_BASE:-}" ]] || check_integer SEED_BASE 0 $((10 ** 18 - 1 - NEXP))
    unset SEED
}

run_trials() {
    is_leader=1
    [[ "$DGXNNODES" == 1 || "${NODE_RANK:-0}" == 0 ]] || is_leader=0
    ((is_leader)) || follow_leader
    lock_set
    check_settings
    init_seed_base
    [[ -s "$LOGDIR/trials.tsv" ]] || append_trial_row trial seed started seconds status ||
        die "LOGDIR: cannot write '$LOGDIR/trials.tsv'. Free some disk space, or use another folder"
    update_latest_link
    install_signal_traps
    # A reader of stdout that goes away must not end the set.
    trap '' PIPE
    local i
    for ((i = 1; i <= NEXP; i++)); do
        [[ ! -e "$LOGDIR/result_$i.txt" ]] || continue
        if ! recover_finished_trial "$i" && ((terminated == 0)); then
            run_one_trial "$i"
        fi
        # A bad configuration (status 2) would fail every other trial too.
        ((terminated == 0 && status != 2)) || break
        ((status == 0 || STOP_ON_FAILURE == 0)) || break
    done
    rm -f "$LOGDIR/current"
    trap - TERM INT HUP
    report_set
}

# Lock LOGDIR until this script and its trials end: two sets in one folder, or two launchers of one node, would mix.
lock_set() {
    local file="$LOGDIR/.lock"
    ((is_leader)) || file+="_$NODE_RANK"
    { exec {lock}>> "$file"; } 2> /dev/null || die "LOGDIR: cannot write '$file'. Use a writable folder"
    flock --nonblock --conflict-exit-code 75 "$lock" && return
    (($? == 75)) || die "LOGDIR: cannot lock '$LOGDIR'. Use a folder on a file system that supports locks"
    die "LOGDIR: trials are already running in '$LOGDIR'. Wait until they end, or use another folder"
}

# Check the configuration, and that it is the one the set was started with. A single trial may be resumed with other
# settings (layout, timeouts) until it has a result: the run itself rejects changes that would alter the training.
check_settings() {
    local file="$LOGDIR/settings.txt" settings
    local changed="LOGDIR: '$LOGDIR' was started with other settings (<) than now (>)"
    # Without RESUME: the settings of the set stay the same when a later start resumes a trial.
    settings=$(LOGDIR="" RESUME="" run_python -m gptoss20b train --dry-run) || exit 2
    if [[ -s "$file" ]]; then
        [[ "$settings" != "$(< "$file")" ]] || return 0
        diff "$file" - <<< "$settings" | grep '^[<>]' >&2 || true
        if [[ "$NEXP" != 1 ]] || ! resume_requested || compgen -G "$LOGDIR/result_*.txt" > /dev/null; then
            die "$changed. Restore the old settings, or use another folder"
        fi
        log "warning: $changed"
    fi
    write_atomic "$file" "$settings" || die "LOGDIR: cannot write '$file'. Free some disk space, or use another folder"
}

# Fix the seeds of the set at its first start: trial i has seed SEED_BASE + i - 1.
init_seed_base() {
    local file="$LOGDIR/seed_base"
    if [[ -s "$file" ]]; then
        read_seed_base
    else
        : "${SEED_BASE:=$(($(od --address-radix=n --format=u4 --read-bytes=4 /dev/urandom)))}"
        write_atomic "$file" "$SEED_BASE" ||
            die "LOGDIR: cannot write '$file'. Free some disk space, or use another folder"
    fi
}

read_seed_base() {
    local seed
    seed=$(< "$LOGDIR/seed_base")
    [[ "$seed" =~ ^[0-9]{1,18}$ ]] ||
        die "LOGDIR: '$LOGDIR/seed_base' contains '$seed', expected the seed of the first trial." \
            "Restore the file, or use another folder"
    [[ "${SEED_BASE:-$seed}" == "$seed" ]] ||
        die "SEED_BASE: got $SEED_BASE, but this set was started with $seed." \
            "Unset it to continue the set, or use another LOGDIR"
    SEED_BASE=$seed
}

# write_atomic FILE TEXT: replace the file, so that readers see the old or the new content and nothing in between.
write_atomic() {
    { echo "$2" > "$1.new" && mv "$1.new" "$1"; } 2> /dev/null
}

# Point results/latest to this set, atomically, if the set is in results/. Failures are only warnings.
update_latest_link() {
    local parent=${LOGDIR%/*}
    [[ "$parent" == "$(cd results 2> /dev/null && pwd -P)" ]] || return 0
    { ln -sfn "${LOGDIR##*/}" "$parent/.latest-$$" && mv --no-target-directory "$parent/.latest-$$" "$parent/latest"; } 2> /dev/null ||
        { rm -f "$parent/.latest-$$"; log "warning: could not point results/latest to $LOGDIR"; }
}

# Print the table of trials, check the set, and exit with the status of the set.
report_set() {
    local outcome=0 runs=$((NEXP > 10 ? 10 : NEXP))
    run_python -m gptoss20b result --trials "$NEXP" "$trial_logdir" > >(tee -p "$LOGDIR/summary.txt" >&2) || outcome=$?
    # Wait for tee: the files must be complete when this script ends.
    wait $! || true
    ((terminated == 0)) || {
        log "to run the missing trials: LOGDIR=$LOGDIR $0, with the same settings"
        exit "$terminated"
    }
    if [[ "$CHECK_COMPLIANCE" == 1 ]]; then
        if [[ ! "$outcome" =~ ^[035]$ ]]; then
            log "set not checked: a trial failed. Start again with the same LOGDIR to repeat it"
        elif ((NEXP < 3)); then
            log "set not checked: an olympic mean needs at least 3 runs, a result needs 10"
        else
            run_python -m compliance check-set --runs "$runs" "$trial_logdir" > >(tee -p "$LOGDIR/compliance.txt" >&2) ||
                outcome=$((outcome ? outcome : 5))
            wait $! || true
        fi
    fi
    exit "$outcome"
}
