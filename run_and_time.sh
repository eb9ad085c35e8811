#!/usr/bin/env bash
# One timed run of the sourced configuration: check, clear caches, time, train, report.
# Exit status: 0 converged, 1 failed, 2 bad configuration, 3 target not reached, 4 diverged, 5 converged but not compliant,
# 130 interrupted, 143 terminated.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch/start.sh" run "$@"
