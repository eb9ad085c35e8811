#!/usr/bin/env bash
# One node's part of a trial, under srun --kill-on-bad-exit.
set -euo pipefail
# Slurm signals every process of the step: this one outlives the run, whose end would else be killed with the task.
trap : TERM
status=0
./run_and_time.sh || status=$?
# The first node's log says how the run ended. What another one knows may come first, and srun would end the first in the
# middle of its report; only a node that could not begin ends all.
((SLURM_NODEID == 0 || status == 2)) || status=0
exit "$status"
