#!/usr/bin/env bash
# Check that the image works for the current user: folders, packages, commands. usage: check_image.sh REQUIREMENTS
# On a GPU node it also loads Transformer Engine:
# docker run --rm --gpus all IMAGE docker/check_image.sh requirements/container.txt
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# die MESSAGE...: print one error line and exit with status 2.
die() {
    echo "error: $*" >&2
    exit 2
}

(($# == 1)) || die "arguments: got $#, expected 1: check_image.sh REQUIREMENTS"
for name in USER LOGNAME HOME XDG_CACHE_HOME TORCHINDUCTOR_CACHE_DIR TRITON_CACHE_DIR; do
    [[ -n "${!name:-}" ]] || die "$name: not set, expected a value from the image. Set it with ENV in the Dockerfile"
done
for folder in "$HOME" "$XDG_CACHE_HOME" "$TORCHINDUCTOR_CACHE_DIR" "$TRITON_CACHE_DIR" data results; do
    [[ -d "$folder" && -w "$folder" ]] ||
        die "$folder: user $(id -u) has no write access, or the folder is missing. See docker/open_to_all.sh"
done

# Use a temporary home: files of these checks would belong to one user and block the others.
HOME=$(mktemp -d)
trap 'rm -rf "$HOME"' EXIT
export HOME XDG_CACHE_HOME="$HOME" TORCHINDUCTOR_CACHE_DIR="$HOME/torchinductor" TRITON_CACHE_DIR="$HOME/triton"

python3 docker/check_packages.py "$1"
for config in config_CPU_1x2.sh config_B200_1x8.sh; do
    # shellcheck disable=SC2016 # expanded by the inner shell
    bash -c 'source "./$1" && python3 -m gptoss20b train --dry-run' check "$config" > /dev/null ||
        die "$config: dry run failed, see above"
done
python3 -m compliance rules > /dev/null || die "python -m compliance: failed, see above"
python3 -m data_scripts --help > /dev/null || die "python -m data_scripts: failed, see above"
