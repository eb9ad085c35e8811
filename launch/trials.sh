#!/usr/bin/env bash
# Sourced by run_local.sh, run_with_docker.sh and run.sub: NEXP trials of the sourced configuration, the same way everywhere.
#
# A launcher sets      data, logdir      DATADIR and LOGDIR as the trials see them
#         and defines  run_trial         one run of run_and_time.sh, in place of the shell that calls it
#                      in_python ARG...  python, where the harness is installed
#                      after_trial       makes sure that nothing of the trial is left (may be left out)
#         and may set  drop_caches       command that clears the caches of the host in place of the trial, which cannot
#                      one_launcher      1: the only one, also on several nodes
# and calls check_trials, then run_trials. LOGDIR is the folder of the set:
#   settings.txt       what the trials were configured with       seed_base     seed of the first
#   trials.tsv         a line per trial that ended                summary.txt   the table at the end
#   result_<i>.txt     log of trial i, if it says how training ended    compliance.txt   the verdict on the set
#   trial_<i>/         its log, config.json, compliance_checker.log and output.log, the whole output
#   current            the running trial, for the launchers of other nodes    node_<r>/    output of node r's part
# Exit status: 0 all converged, 1 a trial failed, 2 bad configuration, 3 a trial did not reach the target or diverged,
# 5 converged but not compliant, 130 interrupted, 143 terminated.

: "${data:=}" "${logdir:=}" "${terminated:=0}" "${one_launcher:=0}"
drop_caches=()

# Longest wait of another node for the first's next trial, in seconds.
meeting_seconds=600
# How long it goes on with a trial that the first has left, in seconds: ends of one trial are not at the same moment.
leaving_seconds=30
# How long it must be gone to have ended, in seconds.
ending_seconds=5

# Everything that can be refused before a trial; creates LOGDIR.
check_trials() {
    require DGXSYSTEM DGXNGPU DATADIR
    : "${DGXNNODES:=1}" "${CLEAR_CACHES:=0}" "${CHECK_COMPLIANCE:=1}" "${STOP_ON_FAILURE:=0}" "${NEXP:=10}"
    : "${MASTER_PORT:=29500}"
    whole_number NEXP 1 1000
    whole_number MASTER_PORT 1 $((65536 - NEXP))
    one_of CLEAR_CACHES 0 1
    one_of CHECK_COMPLIANCE 0 1
    one_of STOP_ON_FAILURE 0 1
    check_system
    check_data
    check_seed
    check_resume
    [[ -z "${SAVE_DIR:-}" ]] ||
        refuse "SAVE_DIR: '$SAVE_DIR' would mix the checkpoints of all trials. Unset it: trials keep their checkpoints in LOGDIR/trial_<i>/checkpoints"
    whole_number DGXNNODES 1 100000
    # A batch job has one launcher, which may choose; several launchers must be told.
    if [[ "$DGXNNODES" != 1 && -z "${LOGDIR:-}" ]] && ((one_launcher == 0)); then
        refuse "LOGDIR: not set. Trials on several nodes need one folder that all of them see"
    fi
    LOGDIR="${LOGDIR:-results/${DGXSYSTEM}_$(date +%Y%m%d_%H%M%S)_$$}"
    { mkdir -p "$LOGDIR" && : >> "$LOGDIR/trials.tsv"; } 2> /dev/null ||
        refuse "LOGDIR: cannot write to '$LOGDIR'. Name a folder that can be written"
    # Where they really are: results/latest, named here, is about to point elsewhere.
    resolve LOGDIR
    resolve DATADIR
    [[ -z "${MODELDIR:-}" ]] || resolve MODELDIR
    export DGXNNODES CHECK_COMPLIANCE
}

# One seed for all trials would make them copies of each other.
check_seed() {
    if [[ -n "${SEED:-}" ]]; then
        [[ "$NEXP" == 1 && "${SEED_BASE:-$SEED}" == "$SEED" ]] ||
            refuse "SEED: $SEED is exported, and would be the seed of all $NEXP trials. Unset it; SEED_BASE=$SEED makes it the first trial's"
        SEED_BASE=$SEED
    fi
    [[ -z "${SEED_BASE:-}" ]] || whole_number SEED_BASE 0 $((10 ** 18 - 1 - NEXP))
    unset SEED
}

run_trials() {
    first_node=1
    [[ "$DGXNNODES" == 1 || "${NODE_RANK:-0}" == 0 ]] || first_node=0
    ((first_node)) || follow_first_node
    lock_set
    check_settings
    agree_on_seeds
    [[ -s "$LOGDIR/trials.tsv" ]] || row trial seed started seconds status ||
        refuse "LOGDIR: cannot write '$LOGDIR/trials.tsv'. Make room, or name another folder"
    point_latest
    listen
    trap '' PIPE
    local i
    for ((i = 1; i <= NEXP; i++)); do
        [[ ! -e "$LOGDIR/result_$i.txt" ]] || continue
        if ! adopt "$i" && ((terminated == 0)); then
            one_trial "$i"
        fi
        # What refuses one trial refuses all.
        ((terminated == 0 && status != 2)) || break
        ((status == 0 || STOP_ON_FAILURE == 0)) || break
    done
    rm -f "$LOGDIR/current"
    trap - TERM INT HUP
    finish
}

# For as long as this script and its trials live: two sets in one folder would mix, and so would two launchers of a node.
lock_set() {
    local file="$LOGDIR/.lock"
    ((first_node)) || file+="_$NODE_RANK"
    { exec {lock}>> "$file"; } 2> /dev/null || refuse "LOGDIR: cannot write '$file'. Name a folder that can be written"
    flock --nonblock --conflict-exit-code 75 "$lock" && return
    (($? == 75)) || refuse "LOGDIR: '$LOGDIR' cannot be locked. Name a folder on a file system with locks"
    refuse "LOGDIR: trials are running in '$LOGDIR'. Wait for their end, or name another folder"
}

# Another node does the trials that the first one does, until there is no more of them; results are the first's.
follow_first_node() {
    lock_set
    listen
    current=
    while next_of_first_node; do
        take_seeds
        one_trial "${current%% *}"
        ((terminated == 0 && status != 2)) || break
    done
    # A signal to the trial was not one to this script.
    exit "$((terminated ? terminated : worst > 128 ? 1 : worst))"
}

# What the first node does: number of the trial, and a mark of this start of it; nothing if it has ended.
read_current() {
    local line
    line=$(cat "$LOGDIR/current" 2> /dev/null) || line=
    [[ ! "$line" =~ ^[1-9][0-9]{0,3}\ [0-9_]+$ ]] || echo "$line"
}

# Wait until the first node is at another trial than the current one; 1 when it has ended.
next_of_first_node() {
    local waited line absent=0
    for ((waited = 0; waited < meeting_seconds && terminated == 0; waited++)); do
        line=$(read_current)
        if [[ -n "$line" && "$line" != "$current" ]]; then
            current=$line
            return 0
        fi
        # Not at the first look: a shared folder may miss a file for a moment.
        absent=$((${#line} ? 0 : absent + 1))
        [[ -z "$current" ]] || ((absent < ending_seconds)) || return 1
        if [[ -z "$current" ]] && ! missing_trial; then
            say "nothing to do: results 1 to $NEXP are in $LOGDIR"
            return 1
        fi
        sleep 1
    done
    ((terminated == 0)) || return 1
    refuse "LOGDIR: the first node begins no trial in '$LOGDIR' within $meeting_seconds s. All nodes need one shared folder, and the first must be running"
}

# leave_with_first_node CURRENT PID: end that trial when the first node is at another one, or has ended.
leave_with_first_node() {
    local alone=0
    while kill -0 "$2" && ((alone < leaving_seconds)); do
        sleep 1
        if [[ "$(read_current)" == "$1" ]]; then
            alone=0
        else
            alone=$((alone + 1))
        fi
    done
    ((alone < leaving_seconds)) || kill -TERM "$2"
}

missing_trial() {
    local i
    for ((i = 1; i <= NEXP; i++)); do
        [[ -e "$LOGDIR/result_$i.txt" ]] || return 0
    done
    return 1
}

# The configuration is checked, and is the one that this set was begun with. Only a single trial that goes on may have
# another (layout, time-outs), until it has its result: the run itself refuses what must not change.
check_settings() {
    local settings="$LOGDIR/settings.txt" now other="LOGDIR: '$LOGDIR' was begun with other settings (<) than now (>)"
    # RESUME may be asked for when there is something to go on with.
    now=$(LOGDIR="" RESUME="" in_python -m gptoss20b train --dry-run) || exit 2
    if [[ -s "$settings" ]]; then
        [[ "$now" != "$(< "$settings")" ]] || return 0
        diff "$settings" - <<< "$now" | grep '^[<>]' >&2 || true
        if [[ "$NEXP" != 1 ]] || ! resumes || compgen -G "$LOGDIR/result_*.txt" > /dev/null; then
            refuse "$other. Restore them, or name another folder"
        fi
        say "warning: $other"
    fi
    in_one_step "$settings" "$now" || refuse "LOGDIR: cannot write '$settings'. Make room, or name another folder"
}

# Seed of trial i = SEED_BASE + i - 1, for as long as the set lives.
agree_on_seeds() {
    local kept="$LOGDIR/seed_base"
    if [[ -s "$kept" ]]; then
        take_seeds
    else
        : "${SEED_BASE:=$(($(od --address-radix=n --format=u4 --read-bytes=4 /dev/urandom)))}"
        in_one_step "$kept" "$SEED_BASE" ||
            refuse "LOGDIR: cannot write '$kept'. Make room, or name another folder"
    fi
}

# in_one_step FILE TEXT: whoever reads the file sees all of it or none.
in_one_step() {
    { echo "$2" > "$1.new" && mv "$1.new" "$1"; } 2> /dev/null
}

take_seeds() {
    local base
    base=$(< "$LOGDIR/seed_base")
    [[ "$base" =~ ^[0-9]{1,18}$ ]] || refuse "LOGDIR: '$LOGDIR/seed_base' holds '$base', expected the seed of the first trial. Restore it, or name another folder"
    [[ "${SEED_BASE:-$base}" == "$base" ]] ||
        refuse "SEED_BASE: got $SEED_BASE, but this set was begun with $base. Leave it out to go on, or name another LOGDIR"
    SEED_BASE=$base
}

# results/latest is the newest set under results/, replaced in one step. It is a convenience: nothing fails for it.
point_latest() {
    local parent=${LOGDIR%/*}
    [[ "$parent" == "$(cd results 2> /dev/null && pwd -P)" ]] || return 0
    { ln -sfn "${LOGDIR##*/}" "$parent/.latest-$$" && mv --no-target-directory "$parent/.latest-$$" "$parent/latest"; } 2> /dev/null ||
        { rm -f "$parent/.latest-$$"; say "warning: results/latest could not be pointed to $LOGDIR"; }
}

after_trial() {
    :
}

# A reader of this script's words that goes away ends nothing.
say() {
    echo "$@" >&2 || true
}

worst=0

# one_trial I: run it, keep what it left, and set status.
one_trial() {
    local i=$1 folder="$LOGDIR/trial_$1" output started begin seconds pipe reader caches=$CLEAR_CACHES
    export SEED=$((SEED_BASE + i - 1))
    output="$folder/output.log"
    ((first_node)) || output="$LOGDIR/node_$NODE_RANK/trial_$i.log"
    started=$(date -u +%Y-%m-%dT%H:%M:%SZ)
    { begin_trial && echo "trial $i of $NEXP: seed $SEED, started at $started" >> "$output"; } 2> /dev/null || {
        say "error: LOGDIR: cannot write '$output'. Make room and start again: finished trials are kept"
        worst=1
        status=2
        return
    }
    say "trial $i of $NEXP: seed $SEED, output in $output"

    # The trial's output is shown and kept; a full disk or a reader that went away ends neither.
    exec {pipe}> >(trap '' INT TERM HUP && exec tee -p -a -- "$output")
    reader=$!
    begin=$SECONDS
    clear_before_trial
    # A signal that came meanwhile was for the trial.
    if ((terminated == 0)); then
        supervise in_output in_trial "$i"
    else
        status=$terminated
    fi
    seconds=$((SECONDS - begin))
    local ended=$status
    after_trial
    # The output ends with the last process of the trial: the next one begins on idle accelerators.
    exec {pipe}>&-
    await "$reader"
    status=$ended
    ((status == 0 || worst == 1)) || worst=$status
    ((first_node)) || return 0
    # The line first: a launcher that is killed in between leaves a log, which the next start adopts.
    row "$i" "$SEED" "$started" "$seconds" "$status" ||
        say "warning: trials.tsv could not be written; trial $i ended with status $status"
    keep "$i" "$folder"
}

# Room for what the trial leaves; other launchers may come.
begin_trial() {
    if ((first_node)); then
        { goes_on "$folder" || set_aside "$folder"; } && mkdir -p "$folder" && { [[ -z "${NODE_RANK:-}" ]] || in_one_step "$LOGDIR/current" "$i $$_$SECONDS$RANDOM"; }
    else
        mkdir -p "${output%/*}"
    fi
}

# Where the launcher clears the caches of the hosts, the trial is told what came of it.
clear_before_trial() {
    [[ "$CLEAR_CACHES" == 1 && ${#drop_caches[@]} -gt 0 ]] || return 0
    supervise in_output "${drop_caches[@]}"
    caches='done'
    ((status == 0 || terminated)) || {
        caches=0
        echo "warning: the page cache could not be dropped (needs root on the host); cache_clear is logged as false" >&"$pipe"
    }
}

# in_background COMMAND...: without what the trial's reader and the next launcher wait for.
in_background() {
    {
        [[ -z "${pipe:-}" ]] || exec {pipe}>&-
        [[ -z "${lock:-}" ]] || exec {lock}>&-
        "$@"
    } > /dev/null 2>&1 &
}

# In a subshell of its own, with the trial's output as its own.
in_output() {
    trap - PIPE
    exec >&"$pipe" 2>&1
    "$@"
}

# The environment of one trial, then the launcher's command in place of the shell.
in_trial() {
    ((first_node)) || in_background leave_with_first_node "$current" "$BASHPID"
    export LOGDIR="$logdir/trial_$1" DATADIR="$data" MASTER_PORT=$((MASTER_PORT + $1 - 1)) CLEAR_CACHES=$caches
    run_trial
}

# goes_on FOLDER: a trial that was cut short after a checkpoint goes on from it, where RESUME asks for that. The run refuses
# to go on with a log that says how training ended.
goes_on() {
    resumes && [[ "$training_ended" == 0 && -e "$1/result_0.txt" ]] &&
        compgen -G "$1/checkpoints/step_????????" > /dev/null
}

# What an earlier attempt left stays, under another name.
set_aside() {
    local k=1
    [[ -e "$1" ]] || return 0
    while [[ -e "$1_attempt_$k" ]]; do k=$((k + 1)); done
    mv "$1" "$1_attempt_$k"
}

# adopt I: a launcher that was killed may have left a log that says how training ended. It is the trial's result; set
# status, and training_ended: 1 if the log says so, whether it is a result or not.
adopt() {
    local folder="$LOGDIR/trial_$1" last
    training_ended=0
    [[ -e "$folder/result_0.txt" ]] || return 1
    status=0
    in_python -m gptoss20b result "$logdir/trial_$1" > /dev/null 2>&1 || status=$?
    ((terminated == 0)) || return 1
    case "$status" in
        0 | 3 | 4) training_ended=1 ;;
        125 | 126 | 127 | 137) refuse "LOGDIR: '$folder/result_0.txt' could not be read: python ended with status $status. Start again" ;;
        *) return 1 ;;
    esac
    # A failure that the log did not see stays one.
    last=$(awk -F '\t' -v trial="$1" '$1 == trial { last = $5 } END { print last }' "$LOGDIR/trials.tsv")
    [[ "$last" != 1 ]] || return 1
    [[ "$status$CHECK_COMPLIANCE" != 01 ]] || check_log "$logdir/trial_$1" in_python || status=5
    say "trial $1 of $NEXP: its log in $folder says how training ended, and is its result"
    row "$1" "$((SEED_BASE + $1 - 1))" - - "$status" || true
    keep "$1" "$folder"
}

# row FIELD...: a line of trials.tsv.
row() {
    local IFS=$'\t' rows="$LOGDIR/trials.tsv" line
    line="$*"
    # A full disk may have cut the last line short.
    [[ -z "$(tail -c 1 "$rows" 2> /dev/null)" ]] || line=$'\n'$line
    echo "$line" 2> /dev/null >> "$rows"
}

# A log that says how training ended is a result. One that was cut short is not, and a second start repeats the trial.
keep() {
    local log="$2/result_0.txt" result="$LOGDIR/result_$1.txt"
    case "$status" in
        0 | 3 | 4 | 5)
            ln "$log" "$result" 2> /dev/null || { cp "$log" "$result.new" && mv "$result.new" "$result"; } ||
                say "warning: '$result' could not be made of '$log'"
            ;;
    esac
}

# The table, the verdict on the set, and the exit status.
finish() {
    local outcome=0 runs=$((NEXP > 10 ? 10 : NEXP))
    in_python -m gptoss20b result --trials "$NEXP" "$logdir" > >(tee -p "$LOGDIR/summary.txt" >&2) || outcome=$?
    wait $! || true
    ((terminated == 0)) || exit "$terminated"
    if [[ "$CHECK_COMPLIANCE" == 1 ]]; then
        if [[ ! "$outcome" =~ ^[035]$ ]]; then
            say "the set is not judged: a trial failed. Start again with the same LOGDIR"
        elif ((NEXP < 3)); then
            say "the set is not judged: an olympic mean needs 3 runs, a result 10"
        else
            in_python -m compliance check-set --runs "$runs" "$logdir" > >(tee -p "$LOGDIR/compliance.txt" >&2) ||
                outcome=$((outcome ? outcome : 5))
            wait $! || true
        fi
    fi
    exit "$outcome"
}
