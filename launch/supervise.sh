#!/usr/bin/env bash
# Sourced. `supervise COMMAND...` runs one child, forwards TERM, INT and HUP to it as TERM, and waits for its exit.
# It sets two variables:
#   status      exit status of the child
#   terminated  143 after TERM or HUP, 130 after INT, 0 without a signal
terminated=0
# shellcheck disable=SC2034 # read by the scripts that source this file
status=0
child_pid=

# Stop the child. Launchers override this function.
stop_child() {
    kill -TERM "$child_pid" 2> /dev/null || true
}

# forward_signal STATUS: record the signal, and stop the child if there is one.
# shellcheck disable=SC2329 # called by the traps
forward_signal() {
    # Forward only the first: Slurm sends two at a time limit, and the second would interrupt the child's shutdown.
    ((terminated == 0)) || return 0
    terminated=$1
    [[ -z "$child_pid" ]] || stop_child
}

# exec_die_with_parent COMMAND...: exec a command that gets TERM when this script dies, even by KILL.
# An orphan would keep the accelerators busy.
exec_die_with_parent() {
    exec setpriv --pdeathsig TERM "$@"
}

# HUP counts as TERM: a closed terminal ends the run in an orderly way.
install_signal_traps() {
    trap 'forward_signal 143' TERM HUP
    trap 'forward_signal 130' INT
}

supervise() {
    install_signal_traps
    "$@" &
    child_pid=$!
    # The signal may have arrived before there was a child.
    ((terminated == 0)) || stop_child
    wait_for_exit "$child_pid"
    child_pid=
}

# wait_for_exit PID: set status. A trapped signal interrupts `wait`, so repeat it until the process is gone.
wait_for_exit() {
    status=0
    wait "$1" || status=$?
    while kill -0 "$1" 2> /dev/null; do
        status=0
        # shellcheck disable=SC2034 # read by the scripts that source this file
        wait "$1" || status=$?
    done
}
