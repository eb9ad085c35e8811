#!/usr/bin/env bash
# Fail unless the build names its commit. usage: check_commit.sh COMMIT
set -euo pipefail

[[ "${1:-}" =~ ^[0-9a-f]{40}(-dirty)?$ ]] && exit 0
echo "error: GIT_COMMIT: got '${1:-}', expected 40 hex digits, followed by -dirty if files are modified." \
    "Build with --build-arg GIT_COMMIT=\"\$(git describe --always --dirty --abbrev=40 --exclude='*')\"" >&2
exit 2
