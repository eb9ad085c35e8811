#!/usr/bin/env bash
# NEXP trials of the sourced configuration, each in a new container of the image CONT; on several nodes, started on each of
# them as run_local.sh is. DATADIR is mounted as /data, read-only, LOGDIR as /results, and MODELDIR, if set, as /model.
# What it makes and its exit status: launch/trials.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source launch/checks.sh
source launch/supervise.sh
source launch/trials.sh

: "${CONT:=gptoss20b}"
check_trials
check_node
mountable DATADIR LOGDIR MODELDIR
command -v docker > /dev/null || refuse "docker: not found. Install it, or run without a container: ./run_local.sh"
docker image inspect "$CONT" > /dev/null 2>&1 ||
    refuse "CONT: no image '$CONT' on this machine. Build it: docker build --build-arg GIT_COMMIT=\"\$(git describe --always --dirty --abbrev=40 --exclude='*')\" -t $CONT ."
data=/data
logdir=/results
drop_caches=(launch/clear_caches.sh)
# Names that nobody else has: only what carries them is ever stopped.
containers="gptoss20b_$$_$RANDOM$RANDOM"

# What accelerators need; nothing where the configuration hides them.
device_flags=(--ulimit=memlock=-1 --ulimit=stack=67108864 --ipc=host)
if [[ "${CUDA_VISIBLE_DEVICES:-}" == -1 ]]; then
    :
elif nvidia-smi --list-gpus > /dev/null 2>&1; then
    device_flags+=(--gpus=all)
elif rocm-smi --showid > /dev/null 2>&1 || amd-smi list > /dev/null 2>&1; then
    device_flags+=(--device=/dev/kfd --device=/dev/dri --security-opt=seccomp=unconfined)
    # By number: the groups that may open the devices are the host's, whatever the image calls them.
    for group in $(stat --format=%g /dev/kfd /dev/dri/renderD* | sort --unique --numeric-sort); do
        device_flags+=(--group-add="$group")
    done
else
    refuse "DGXSYSTEM: $DGXSYSTEM needs GPUs, and neither nvidia-smi nor rocm-smi nor amd-smi finds one here. Source config_CPU_1x2.sh for a machine without"
fi
[[ ! -d /dev/infiniband ]] || device_flags+=(--device=/dev/infiniband)
# Nodes meet on the host's addresses; one node needs no network.
[[ "$DGXNNODES" == 1 ]] || device_flags+=(--network=host)

# Variables that reach a trial: the settings, what run_and_time.sh reads, and what libraries read by these prefixes.
passed_on=(
    SEED DGXSYSTEM SUBMISSION_ORG SUBMISSION_PLATFORM SUBMISSION_DIVISION SUBMISSION_STATUS CONFIG_FILENAME
    MODEL_VARIANT VOCAB_SIZE SEQUENCE_LENGTH MAX_STEPS END_LR_RATIO ADAM_BETA1 ADAM_BETA2 ADAM_EPSILON WEIGHT_DECAY
    GRADIENT_CLIP INIT_METHOD_STD EVAL_SAMPLES EVAL_INTERVAL_SAMPLES TARGET_LOSS GLOBAL_BATCH_SIZE LEARNING_RATE
    WARMUP_STEPS DGXNNODES DGXNGPU EXPERT_PARALLEL TENSOR_PARALLEL PIPELINE_PARALLEL CONTEXT_PARALLEL
    MICRO_BATCH_SIZE PRECISION BACKEND RECOMPUTE COMPILE WARMUP_PASSES COLLECTIVE_TIMEOUT
    CPU_THREADS DETERMINISTIC DATADIR EOD_TOKEN LOGDIR
    LOG_INTERVAL SAVE_INTERVAL SAVE_KEEP SAVE_ASYNC RESUME AUX_LOSS_COEFF EXPERT_BIAS_RATE CLEAR_CACHES CHECK_COMPLIANCE
    NODE_RANK MASTER_ADDR MASTER_PORT OMP_NUM_THREADS
    CUDA_VISIBLE_DEVICES HIP_VISIBLE_DEVICES
)
passed_prefixes=(NCCL_ RCCL_ NVTE_ TORCH_ PYTORCH_ HSA_ UCX_ MLPERF_SUBMISSION_ MLLOG_SUBMISSION_)

# What every container gets. --env NAME takes the value from the environment: none is ever part of a command line.
container=(docker run --rm --init --user="$(id -u):$(id -g)")
# A folder may be open to one of the user's other groups only.
for group in $(id -G); do
    container+=(--group-add="$group")
done
container+=(--volume="$DATADIR:/data:ro" --volume="$LOGDIR:/results")
[[ -z "${MODELDIR:-}" ]] || container+=(--volume="$MODELDIR:/model:ro")
environment_flags() {
    local name prefix
    flags=()
    for name in "${passed_on[@]}"; do
        [[ -z "${!name:-}" ]] || flags+=(--env="$name")
    done
    for prefix in "${passed_prefixes[@]}"; do
        for name in $(compgen -e "$prefix"); do
            flags+=(--env="$name")
        done
    done
}

# shellcheck disable=SC2329 # run_trials calls it
run_trial() {
    environment_flags
    exec_with_us "${container[@]}" --name="${containers}_$SEED" "${device_flags[@]}" "${flags[@]}" "$CONT" ./run_and_time.sh
}

# The client passes a signal on, if it has got so far; the container itself is told as well, and ended if it does not end.
stop_child() {
    kill -TERM "$child" 2> /dev/null || true
    in_background docker stop --time=120 "${containers}_$SEED"
}

# A client may go while its container stays.
after_trial() {
    docker stop --time=120 "${containers}_$SEED" > /dev/null 2>&1 || true
}

in_python() {
    environment_flags
    DATADIR=$data "${container[@]}" "${flags[@]}" "$CONT" python3 "$@"
}

run_trials
