#!/usr/bin/env bash
# Run NEXP trials of the sourced configuration, each in a new container of the image CONT. For several nodes, start it on
# each node as described in run_local.sh. Mounts: DATADIR as /data and MODELDIR (if set) as /model, both read-only, and
# LOGDIR as /results. Output files and exit status: see launch/trials.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source launch/checks.sh
source launch/supervise.sh
source launch/trials.sh

: "${CONT:=gptoss20b}"
prepare_trials
check_node
check_mountable DATADIR LOGDIR MODELDIR
command -v docker > /dev/null || die "docker: command not found. Install docker, or run without a container: ./run_local.sh"
docker image inspect "$CONT" > /dev/null 2>&1 ||
    die "CONT: image '$CONT' is not on this machine. Build it:" \
        "docker build --build-arg GIT_COMMIT=\"\$(git describe --always --dirty --abbrev=40 --exclude='*')\" -t $CONT ."
trial_datadir=/data
trial_logdir=/results
clear_caches_command=(launch/clear_caches.sh)
# Unique names: this script only ever stops its own containers.
containers="gptoss20b_$$_$RANDOM$RANDOM"

# Access to accelerators, unless the configuration hides them.
device_flags=(--ulimit=memlock=-1 --ulimit=stack=67108864 --ipc=host)
if [[ "${CUDA_VISIBLE_DEVICES:-}" == -1 ]]; then
    :
elif nvidia-smi --list-gpus > /dev/null 2>&1; then
    device_flags+=(--gpus=all)
elif rocm-smi --showid > /dev/null 2>&1 || amd-smi list > /dev/null 2>&1; then
    device_flags+=(--device=/dev/kfd --device=/dev/dri --security-opt=seccomp=unconfined)
    # By number, not by name: the devices belong to the host's groups, which have other numbers in the image.
    for group in $(stat --format=%g /dev/kfd /dev/dri/renderD* | sort --unique --numeric-sort); do
        device_flags+=(--group-add="$group")
    done
else
    die "DGXSYSTEM: $DGXSYSTEM needs GPUs, but nvidia-smi, rocm-smi and amd-smi find none." \
        "Source config_CPU_1x2.sh on a machine without GPUs"
fi
[[ ! -d /dev/infiniband ]] || device_flags+=(--device=/dev/infiniband)
# Nodes connect to each other by the hosts' addresses. A single node needs no network.
[[ "$DGXNNODES" == 1 ]] || device_flags+=(--network=host)

# Variables to forward: the settings of the run, as the image lists them, what run_and_time.sh reads, and what libraries
# read. Not forwarded: GIT_COMMIT, which the image sets, and CACHE_CLEARED, which run_and_time.sh sets.
image_settings=$(docker run --rm "$CONT" python3 -m gptoss20b settings) && [[ -n "$image_settings" ]] ||
    die "CONT: image '$CONT' does not list its settings (python3 -m gptoss20b settings). Rebuild it from this checkout"
mapfile -t forwarded < <(grep --invert-match --line-regexp -e GIT_COMMIT -e CACHE_CLEARED <<< "$image_settings")
forwarded+=(
    CLEAR_CACHES CHECK_COMPLIANCE NODE_RANK MASTER_ADDR MASTER_PORT OMP_NUM_THREADS CUDA_VISIBLE_DEVICES
    HIP_VISIBLE_DEVICES
)
forwarded_prefixes=(NCCL_ RCCL_ NVTE_ TORCH_ PYTORCH_ HSA_ UCX_ MLPERF_SUBMISSION_ MLLOG_SUBMISSION_)

# Arguments of every container. --env=NAME takes the value from the environment, so no value appears in a command line.
docker_run=(docker run --rm --init --user="$(id -u):$(id -g)")
# A folder may be accessible only through one of the user's other groups.
for group in $(id -G); do
    docker_run+=(--group-add="$group")
done
docker_run+=(--volume="$DATADIR:/data:ro" --volume="$LOGDIR:/results")
[[ -z "${MODELDIR:-}" ]] || docker_run+=(--volume="$MODELDIR:/model:ro")

# Set environment_flags for the variables that are set now.
build_environment_flags() {
    local name prefix
    environment_flags=()
    for name in "${forwarded[@]}"; do
        [[ -z "${!name:-}" ]] || environment_flags+=(--env="$name")
    done
    for prefix in "${forwarded_prefixes[@]}"; do
        for name in $(compgen -e "$prefix"); do
            environment_flags+=(--env="$name")
        done
    done
}

# shellcheck disable=SC2329 # called by run_trials
exec_trial() {
    build_environment_flags
    exec_die_with_parent "${docker_run[@]}" --name="${containers}_$SEED" "${device_flags[@]}" "${environment_flags[@]}" \
        "$CONT" ./run_and_time.sh
}

# The docker client forwards a signal only once its container runs, so stop the container too. After 120 s it is killed.
stop_child() {
    kill -TERM "$child_pid" 2> /dev/null || true
    run_detached docker stop --time=120 "${containers}_$SEED"
}

# The docker client may end before its container.
cleanup_trial() {
    docker stop --time=120 "${containers}_$SEED" > /dev/null 2>&1 || true
}

run_python() {
    build_environment_flags
    DATADIR=$trial_datadir "${docker_run[@]}" "${environment_flags[@]}" "$CONT" python3 "$@"
}

run_trials
