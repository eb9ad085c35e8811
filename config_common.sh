#!/usr/bin/env bash
# What all configurations share. Sourced by config_*.sh, whose name gives the system's name.
# What you change yourself (LEARNING_RATE=..., say), set after sourcing a configuration.

# A configuration sourced earlier in this shell leaves nothing behind.
unset DGXNNODES DGXNGPU MODEL_VARIANT SUBMISSION_DIVISION SUBMISSION_STATUS PRECISION BACKEND \
    EXPERT_PARALLEL TENSOR_PARALLEL PIPELINE_PARALLEL CONTEXT_PARALLEL \
    GLOBAL_BATCH_SIZE MICRO_BATCH_SIZE LEARNING_RATE WARMUP_STEPS CLEAR_CACHES OMP_NUM_THREADS

# Hidden GPUs come back; a choice among them is the user's.
[[ "${CUDA_VISIBLE_DEVICES:-}" != -1 ]] || unset CUDA_VISIBLE_DEVICES
[[ "${HIP_VISIBLE_DEVICES:-}" != -1 ]] || unset HIP_VISIBLE_DEVICES

CONFIG_FILENAME="${BASH_SOURCE[1]##*/}"
DGXSYSTEM="${CONFIG_FILENAME#config_}"
DGXSYSTEM="${DGXSYSTEM%.sh}"
export CONFIG_FILENAME DGXSYSTEM
