#!/usr/bin/env bash
# One node of eight MI355X GPUs, with the reference layout. Closed division.
# 288 GB also fit EXPERT_PARALLEL=1, which needs no all-to-all: try it first when tuning (docs/tuning.md, Memory).
# Micro batch 2: a rank's experts can get 5.6 times the mean of the rows before 288 GB are full (docs/tuning.md, Memory).
source "$(dirname "${BASH_SOURCE[0]:-$0}")/config_common.sh" "${BASH_SOURCE[0]:-$0}"

export DGXNNODES=1
export DGXNGPU=8
export EXPERT_PARALLEL=8

export GLOBAL_BATCH_SIZE=16
export MICRO_BATCH_SIZE=2
export LEARNING_RATE=4e-4
export WARMUP_STEPS=128
