#!/usr/bin/env bash
# Run one node's part of a trial, under srun --kill-on-bad-exit.
set -euo pipefail
# Slurm signals every process of the step. This shell must outlive the run: Slurm kills what is left of an ended task.
trap : TERM
status=0
./run_and_time.sh || status=$?
# Only node 0's log has the outcome. A worker may end first with status 1, and srun would then kill node 0 while it
# reports. So workers hide their failures, except status 2: a node that cannot start must end the step.
((SLURM_NODEID == 0 || status == 2)) || status=0
exit "$status"
