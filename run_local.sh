#!/usr/bin/env bash
# Run NEXP trials of the sourced configuration with this machine's Python. For several nodes, start it on each node with
# its NODE_RANK, node 0's MASTER_ADDR, and one shared LOGDIR.
# Exit status: 0 all converged, 1 a trial failed, 2 bad configuration, 3 a trial diverged or did not reach the target,
# 5 converged but not compliant, 130 interrupted, 143 terminated.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch/start.sh" local "$@"
