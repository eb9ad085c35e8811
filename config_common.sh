#!/usr/bin/env bash
# Settings that all configurations share. Sourced by config_*.sh; DGXSYSTEM is derived from the name of that file.
# Export your own changes (e.g. LEARNING_RATE) after sourcing a configuration.

# Remove what a configuration sourced earlier in this shell may have set. All other variables are set below or by every
# configuration.
unset GLOBAL_BATCH_SIZE MICRO_BATCH_SIZE LEARNING_RATE WARMUP_STEPS
# Unhide the GPUs that config_CPU_1x2.sh hides. Keep the user's own selection of GPUs.
[[ "${CUDA_VISIBLE_DEVICES:-}" != -1 ]] || unset CUDA_VISIBLE_DEVICES
[[ "${HIP_VISIBLE_DEVICES:-}" != -1 ]] || unset HIP_VISIBLE_DEVICES
# Leave its sample data, too. Keep the user's own folder.
[[ "${DATADIR:-}" != data/sample ]] || unset DATADIR

CONFIG_FILENAME="${BASH_SOURCE[1]##*/}"
DGXSYSTEM="${CONFIG_FILENAME#config_}"
DGXSYSTEM="${DGXSYSTEM%.sh}"
export CONFIG_FILENAME DGXSYSTEM

# Defaults: closed division, on GPUs.
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
