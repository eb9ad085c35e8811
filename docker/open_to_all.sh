#!/usr/bin/env bash
# Makes the code readable, and home, caches, data/ and results/ writable, for any user id that a container is started with.
# usage: open_to_all.sh CODE, with HOME and the cache folders in the environment
set -euo pipefail

(($# == 1)) || {
    echo "error: arguments: got $#, expected 1: open_to_all.sh CODE" >&2
    exit 2
}
code=$1
# Whatever umask the checkout was made with.
chmod -R u=rwX,go=rX "$code"
# Those who run it cannot write __pycache__.
python3 -m compileall -q "$code/gptoss20b" "$code/data_scripts" "$code/compliance"

writable=("$HOME" "$XDG_CACHE_HOME" "$TORCHINDUCTOR_CACHE_DIR" "$TRITON_CACHE_DIR" "$code/data" "$code/results")
mkdir -p "${writable[@]}"
# As /tmp: each may write, none may remove what is another's.
chmod 1777 "${writable[@]}"
