#!/usr/bin/env bash
# What all configurations share. Sourced by config_*.sh, whose name gives the system's name.
# What you change yourself (LEARNING_RATE=..., say), set after sourcing a configuration.

# A configuration sourced earlier in this shell leaves nothing behind. (What follows, and what every file sets, is new.)
unset GLOBAL_BATCH_SIZE MICRO_BATCH_SIZE LEARNING_RATE WARMUP_STEPS
# Hidden GPUs come back; a choice among them is the user's.
[[ "${CUDA_VISIBLE_DEVICES:-}" != -1 ]] || unset CUDA_VISIBLE_DEVICES
[[ "${HIP_VISIBLE_DEVICES:-}" != -1 ]] || unset HIP_VISIBLE_DEVICES

CONFIG_FILENAME="${BASH_SOURCE[1]##*/}"
DGXSYSTEM="${CONFIG_FILENAME#config_}"
DGXSYSTEM="${DGXSYSTEM%.sh}"
export CONFIG_FILENAME DGXSYSTEM

# The closed division on GPUs.
export DATADIR="${DATADIR:-/data}"
export SUBMISSION_DIVISION=closed
export SUBMISSION_STATUS=onprem
export MODEL_VARIANT=reference
export PRECISION=bf16
export BACKEND=auto
export TENSOR_PARALLEL=1
export PIPELINE_PARALLEL=1
export CONTEXT_PARALLEL=1
export CLEAR_CACHES=1
export OMP_NUM_THREADS=8
