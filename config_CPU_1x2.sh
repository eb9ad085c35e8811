#!/usr/bin/env bash
# Two CPU ranks, expert parallel 2. Open division: the small model, with its own batch size, learning rate and target.
source "$(dirname "${BASH_SOURCE[0]:-$0}")/config_common.sh" "${BASH_SOURCE[0]:-$0}"

export DGXNNODES=1
export DGXNGPU=2
export EXPERT_PARALLEL=2

export DATADIR="$CONFIG_DIR/data/sample"
export SUBMISSION_DIVISION=open
export SUBMISSION_STATUS=research
export MODEL_VARIANT=tiny
export PRECISION=fp32
export BACKEND=torch
export CLEAR_CACHES=0
export OMP_NUM_THREADS=1
# Use the CPU even on a machine with GPUs.
export CUDA_VISIBLE_DEVICES=-1
export HIP_VISIBLE_DEVICES=-1
