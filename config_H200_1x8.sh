#!/usr/bin/env bash
# One node of eight H200 GPUs. Closed division.
# Micro batch 1: a rank's experts can get 4.0 times the mean of the rows before 141 GB are full. At micro batch 2 it is 1.7,
# less than the 2 to have room for; with RECOMPUTE=moe_act 2.3: try it when tuning (docs/tuning.md, Memory and layout).
source "$(dirname "${BASH_SOURCE[0]:-$0}")/config_common.sh" "${BASH_SOURCE[0]:-$0}"

export DGXNNODES=1
export DGXNGPU=8
export EXPERT_PARALLEL=8

export GLOBAL_BATCH_SIZE=16
export MICRO_BATCH_SIZE=1
export LEARNING_RATE=4e-4
export WARMUP_STEPS=128
