#!/usr/bin/env bash
# One node of eight MI355X GPUs: the reference layout of the closed division.
source "$(dirname "${BASH_SOURCE[0]}")/config_common.sh"

export DGXNNODES=1
export DGXNGPU=8
export DATADIR="${DATADIR:-/data}"

export SUBMISSION_DIVISION=closed
export SUBMISSION_STATUS=onprem
export MODEL_VARIANT=reference
export EXPERT_PARALLEL=8
export TENSOR_PARALLEL=1
export PIPELINE_PARALLEL=1
export CONTEXT_PARALLEL=1
export PRECISION=bf16
export BACKEND=auto

export GLOBAL_BATCH_SIZE=16
export MICRO_BATCH_SIZE=2
export LEARNING_RATE=4e-4
export WARMUP_STEPS=128

export CLEAR_CACHES=1
export OMP_NUM_THREADS=8
