#!/usr/bin/env bash
# Checks that the image works for the user who runs this: folders, packages, commands. On a GPU node, Transformer Engine too:
# docker run --rm --gpus all IMAGE docker/check_image.sh requirements/container.txt
# usage: check_image.sh REQUIREMENTS
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

refuse() {
    echo "error: $1" >&2
    exit 2
}

(($# == 1)) || refuse "arguments: got $#, expected 1: check_image.sh REQUIREMENTS"
for name in USER LOGNAME HOME XDG_CACHE_HOME TORCHINDUCTOR_CACHE_DIR TRITON_CACHE_DIR; do
    [[ -n "${!name:-}" ]] || refuse "$name: not set, expected a value from the image. Is there an ENV for it in the Dockerfile?"
done
for folder in "$HOME" "$XDG_CACHE_HOME" "$TORCHINDUCTOR_CACHE_DIR" "$TRITON_CACHE_DIR" data results; do
    [[ -d "$folder" && -w "$folder" ]] || refuse "$folder: not a folder that user $(id -u) can write. See docker/open_to_all.sh"
done

# What a check leaves in the home would be in the way of another user.
HOME=$(mktemp -d)
trap 'rm -rf "$HOME"' EXIT
export HOME XDG_CACHE_HOME="$HOME" TORCHINDUCTOR_CACHE_DIR="$HOME/torchinductor" TRITON_CACHE_DIR="$HOME/triton"

python3 docker/check_packages.py "$1"
for config in config_CPU_1x2.sh config_B200_1x8.sh; do
    # shellcheck disable=SC2016 # the inner shell's variable
    bash -c 'source "./$1" && python3 -m gptoss20b train --dry-run' check "$config" > /dev/null ||
        refuse "$config: its dry run failed, see above"
done
python3 -m compliance rules > /dev/null || refuse "python -m compliance: does not run, see above"
python3 -m data_scripts --help > /dev/null || refuse "python -m data_scripts: does not run, see above"
