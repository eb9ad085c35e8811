#!/usr/bin/env bash
# Make the code readable, and home, caches, data/ and results/ writable, for every user id a container may run as.
# usage: open_to_all.sh CODE, with HOME and the cache folders in the environment
set -euo pipefail

(($# == 1)) || {
    echo "error: arguments: got $#, expected 1: open_to_all.sh CODE" >&2
    exit 2
}
code=$1
# The checkout may have been made with a restrictive umask.
chmod -R u=rwX,go=rX "$code"
# Compile now: users of the image cannot write __pycache__.
python3 -m compileall -q "$code"

writable=("$HOME" "$XDG_CACHE_HOME" "$TORCHINDUCTOR_CACHE_DIR" "$TRITON_CACHE_DIR" "$code/data" "$code/results")
mkdir -p "${writable[@]}"
# Sticky, like /tmp: every user may write, and only the owner of a file may remove it.
chmod 1777 "${writable[@]}"
