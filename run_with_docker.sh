#!/usr/bin/env bash
# Run NEXP trials of the sourced configuration, each in a new container of the image CONT. For several nodes, start it on
# each node as described in run_local.sh, which also lists the exit statuses. Mounts: DATADIR as /data and MODELDIR (if
# set) as /model, both read-only, LOGDIR as /results, and EXTRA_MOUNTS.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch/start.sh" docker "$@"
