#!/usr/bin/env bash
# shellcheck disable=SC2154 # variables of trials.sh and supervise.sh
# Sourced by launch/trials.sh. Runs one trial, and publishes its result.

# Remove what a trial may leave running. Launchers override this function.
cleanup_trial() {
    :
}

# run_one_trial I: run the trial, record it, publish its result, and set status.
run_one_trial() {
    local i=$1 folder="$LOGDIR/trial_$1" output started begin seconds pipe tee_pid caches=$CLEAR_CACHES
    export SEED=$((SEED_BASE + i - 1))
    output="$folder/output.log"
    ((is_leader)) || output="$LOGDIR/node_$NODE_RANK/trial_$i.log"
    started=$(date -u +%Y-%m-%dT%H:%M:%SZ)
    { prepare_trial_folder && echo "trial $i of $NEXP: seed $SEED, started at $started" >> "$output"; } 2> /dev/null || {
        log "error: LOGDIR: cannot write '$output'. Free some disk space and start again: finished trials are kept"
        worst=1
        status=2
        return
    }
    log "trial $i of $NEXP: seed $SEED, output in $output"

    # Show the output and save it. tee -p survives a full disk and a closed stdout, so neither ends the trial.
    exec {pipe}> >(trap '' INT TERM HUP && exec tee -p -a -- "$output")
    tee_pid=$!
    begin=$SECONDS
    clear_host_caches
    # A signal during the clearing of caches is meant for the trial.
    if ((terminated == 0)); then
        supervise run_with_output exec_in_trial_environment "$i"
    else
        status=$terminated
    fi
    seconds=$((SECONDS - begin))
    local trial_status=$status
    cleanup_trial
    # tee ends when the last process of the trial closes its output. The next trial then finds idle accelerators.
    exec {pipe}>&-
    wait_for_exit "$tee_pid"
    status=$trial_status
    ((status == 0 || worst == 1)) || worst=$status
    ((is_leader)) || return 0
    # Row first: if the launcher is killed in between, the next start recovers the result from the trial's log.
    append_trial_row "$i" "$SEED" "$started" "$seconds" "$status" ||
        log "warning: could not write trials.tsv; trial $i ended with status $status"
    publish_result "$i" "$folder"
}

# Make the trial's folder, and announce the trial to the workers.
prepare_trial_folder() {
    if ((is_leader)); then
        { is_resumable "$folder" || keep_previous_attempt "$folder"; } && mkdir -p "$folder" &&
            { [[ -z "${NODE_RANK:-}" ]] || write_atomic "$LOGDIR/current" "$i $$_$SECONDS$RANDOM"; }
    else
        mkdir -p "${output%/*}"
    fi
}

# Clear the hosts' caches if the launcher does this for the trial, and set caches to what the trial shall log.
clear_host_caches() {
    [[ "$CLEAR_CACHES" == 1 && ${#clear_caches_command[@]} -gt 0 ]] || return 0
    supervise run_with_output "${clear_caches_command[@]}"
    caches='done'
    ((status == 0 || terminated)) || {
        caches=0
        echo "warning: could not drop the page cache (needs root on the host); cache_clear is logged as false" >&"$pipe"
    }
}

# run_detached COMMAND...: run in the background without the inherited pipe and lock.
# Otherwise tee would wait for the command, and the lock on the set would outlive this script.
run_detached() {
    {
        [[ -z "${pipe:-}" ]] || exec {pipe}>&-
        [[ -z "${lock:-}" ]] || exec {lock}>&-
        "$@"
    } > /dev/null 2>&1 &
}

# run_with_output COMMAND...: send stdout and stderr to the trial's output. Call it in a subshell.
run_with_output() {
    trap - PIPE
    exec >&"$pipe" 2>&1
    "$@"
}

# exec_in_trial_environment I: set the variables of one trial and exec it.
exec_in_trial_environment() {
    ((is_leader)) || run_detached stop_without_leader "$current" "$BASHPID"
    export LOGDIR="$trial_logdir/trial_$1" DATADIR="$trial_datadir" MASTER_PORT=$((MASTER_PORT + $1 - 1))
    export CLEAR_CACHES=$caches
    ((on_terminal == 0)) || export MLLOG_STDOUT="${MLLOG_STDOUT:-0}"
    exec_trial
}

# is_resumable FOLDER: succeed if RESUME is set and the interrupted trial has a checkpoint. recover_finished_trial has set
# training_ended: the run refuses to resume after the end of training.
is_resumable() {
    resume_requested && [[ "$training_ended" == 0 && -e "$1/result_0.txt" ]] &&
        compgen -G "$1/checkpoints/step_????????" > /dev/null
}

# keep_previous_attempt FOLDER: rename the folder of an earlier attempt to FOLDER_attempt_<k>.
keep_previous_attempt() {
    local k=1
    [[ -e "$1" ]] || return 0
    while [[ -e "$1_attempt_$k" ]]; do k=$((k + 1)); done
    mv "$1" "$1_attempt_$k"
}

# recover_finished_trial I: publish the result of a trial whose launcher was killed after the training ended.
# Sets status, and training_ended: 1 if the log records the end of training, even if the trial failed afterwards.
recover_finished_trial() {
    local folder="$LOGDIR/trial_$1" recorded_status
    training_ended=0
    [[ -e "$folder/result_0.txt" ]] || return 1
    status=0
    run_python -m gptoss20b result "$trial_logdir/trial_$1" > /dev/null 2>&1 || status=$?
    ((terminated == 0)) || return 1
    case "$status" in
        0 | 3 | 4) training_ended=1 ;;
        # The container or Python itself failed: the log may be a valid result, which must not be trained again.
        125 | 126 | 127 | 137)
            die "LOGDIR: cannot read '$folder/result_0.txt': python exited with status $status. Start again"
            ;;
        *) return 1 ;;
    esac
    # The trial failed after its log was complete, so the log is no result.
    recorded_status=$(awk -F '\t' -v trial="$1" '$1 == trial { last = $5 } END { print last }' "$LOGDIR/trials.tsv")
    [[ "$recorded_status" != 1 ]] || return 1
    [[ "$status$CHECK_COMPLIANCE" != 01 ]] || run_compliance_checker "$trial_logdir/trial_$1" run_python || status=5
    log "trial $1 of $NEXP: training had ended, result recovered from the log in $folder"
    append_trial_row "$1" "$((SEED_BASE + $1 - 1))" - - "$status" || true
    publish_result "$1" "$folder"
}

# append_trial_row FIELD...: append a row to trials.tsv.
append_trial_row() {
    local IFS=$'\t' file="$LOGDIR/trials.tsv" row
    row="$*"
    # A full disk may have truncated the last row: start on a new line.
    [[ -z "$(tail -c 1 "$file" 2> /dev/null)" ]] || row=$'\n'$row
    echo "$row" 2> /dev/null >> "$file"
}

# publish_result I FOLDER: make the log result_<i>.txt if its training ended. Otherwise the next start repeats the trial.
publish_result() {
    local source="$2/result_0.txt" result="$LOGDIR/result_$1.txt"
    case "$status" in
        0 | 3 | 4 | 5)
            # Copy where the file system has no hard links.
            ln "$source" "$result" 2> /dev/null || { cp "$source" "$result.new" && mv "$result.new" "$result"; } ||
                log "warning: could not publish '$source' as '$result'"
            ;;
    esac
}
