#!/usr/bin/env bash
# One node of eight H200 GPUs. Closed division.
# Micro batch 1: of 141 GB, the state takes 50 GiB and each sequence an estimated 39 GiB of activations. That leaves 43 GiB
# at micro batch 1 and 4 GiB at 2, too little for unbalanced experts (docs/tuning.md, Memory).
source "$(dirname "${BASH_SOURCE[0]:-$0}")/config_common.sh" "${BASH_SOURCE[0]:-$0}"

export DGXNNODES=1
export DGXNGPU=8
export EXPERT_PARALLEL=8

export GLOBAL_BATCH_SIZE=16
export MICRO_BATCH_SIZE=1
export LEARNING_RATE=4e-4
export WARMUP_STEPS=128
