#!/usr/bin/env bash
# shellcheck disable=SC2154 # variables of trials.sh and supervise.sh
# Sourced by launch/trials.sh. Workers run the same trials as the leader. The leader announces each trial in the file
# `current` in the shared LOGDIR, and publishes all results.

# Longest wait of a worker for the leader's next trial, in seconds.
rendezvous_timeout=600
# Seconds until a worker stops a trial that the leader has left. The nodes do not end a trial at the same moment.
leave_grace=30
# Seconds without the file `current` after which the leader has ended.
leader_gone_after=5

# Run the leader's trials until the leader ends, then exit.
follow_leader() {
    lock_set
    install_signal_traps
    current=
    while wait_for_next_trial; do
        read_seed_base
        run_one_trial "${current%% *}"
        ((terminated == 0 && status != 2)) || break
    done
    # A trial that ended by a signal failed. Only a signal to this script gives a status above 128.
    exit "$((terminated ? terminated : worst > 128 ? 1 : worst))"
}

# Print the leader's trial as "<i> <id>", where the id differs for each start of a trial. Print nothing if there is none.
read_current_trial() {
    local line
    line=$(cat "$LOGDIR/current" 2> /dev/null) || line=
    [[ ! "$line" =~ ^[1-9][0-9]{0,3}\ [0-9_]+$ ]] || echo "$line"
}

# Wait until the leader starts another trial, and set current. Return 1 when the leader has ended.
wait_for_next_trial() {
    local waited line missing=0
    for ((waited = 0; waited < rendezvous_timeout && terminated == 0; waited++)); do
        line=$(read_current_trial)
        if [[ -n "$line" && "$line" != "$current" ]]; then
            current=$line
            return 0
        fi
        # A network file system may hide a file for a moment, so one miss is not the end.
        missing=$((${#line} ? 0 : missing + 1))
        [[ -z "$current" ]] || ((missing < leader_gone_after)) || return 1
        if [[ -z "$current" ]] && ! has_missing_results; then
            log "nothing to do: $LOGDIR has results 1 to $NEXP"
            return 1
        fi
        sleep 1
    done
    ((terminated == 0)) || return 1
    die "LOGDIR: the leader (NODE_RANK=0) started no trial in '$LOGDIR' within $rendezvous_timeout s." \
        "Start it, and give all nodes one shared folder"
}

# stop_without_leader CURRENT PID: terminate the process when the leader has left the trial for leave_grace seconds.
stop_without_leader() {
    local seconds=0
    while kill -0 "$2" && ((seconds < leave_grace)); do
        sleep 1
        if [[ "$(read_current_trial)" == "$1" ]]; then
            seconds=0
        else
            seconds=$((seconds + 1))
        fi
    done
    ((seconds < leave_grace)) || kill -TERM "$2"
}

has_missing_results() {
    local i
    for ((i = 1; i <= NEXP; i++)); do
        [[ -e "$LOGDIR/result_$i.txt" ]] || return 0
    done
    return 1
}
