#!/usr/bin/env bash
# Sourced. `supervise COMMAND...` runs one child that gets the TERM, INT and HUP of this script as TERM, and waits for its
# end: status is the child's exit status, terminated is 143 (130 for INT) if this script was signalled, else 0.
terminated=0
# shellcheck disable=SC2034 # read by what sources this
status=0
child=

# What a signal does to the child; a launcher may know more.
stop_child() {
    kill -TERM "$child" 2> /dev/null || true
}

# shellcheck disable=SC2329 # the traps call it
pass_on() {
    # Once: Slurm sends two at a time limit, and a second one would end the child in the middle of its end.
    ((terminated == 0)) || return 0
    terminated=$1
    [[ -z "$child" ]] || stop_child
}

# A child that outlives this script, killed as it may be, would keep the accelerators: exec_with_us COMMAND... ends with it.
exec_with_us() {
    exec setpriv --pdeathsig TERM "$@"
}

# From here on a signal is remembered, and passed on to what is supervised. A terminal that goes away ends as TERM does.
listen() {
    trap 'pass_on 143' TERM HUP
    trap 'pass_on 130' INT
}

supervise() {
    listen
    "$@" &
    child=$!
    # One that came before there was a child to pass it on to.
    ((terminated == 0)) || stop_child
    await "$child"
    child=
}

# await PID: wait returns at once when a signal is passed on; what it waits for ends a little later.
await() {
    status=0
    wait "$1" || status=$?
    while kill -0 "$1" 2> /dev/null; do
        status=0
        # shellcheck disable=SC2034 # read by what sources this
        wait "$1" || status=$?
    done
}
