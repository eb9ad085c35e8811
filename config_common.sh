#!/usr/bin/env bash
# Settings that all configurations share. Sourced by config_*.sh; DGXSYSTEM is derived from the name of that file.
# Works in bash and zsh. Export your own changes (e.g. LEARNING_RATE) after sourcing a configuration.

# Remove what the configuration sourced before has set, unless the user has changed it since; and the user's changes of the
# hyperparameters, which were for that configuration. Another bash compares, so that no variable of this shell is touched.
# shellcheck disable=SC2016,SC2046 # expanded by the inner shells; names without spaces
unset -v GLOBAL_BATCH_SIZE MICRO_BATCH_SIZE LEARNING_RATE WARMUP_STEPS $(
    [ ! -f "${CONFIG_DIR:-}/${CONFIG_FILENAME:-}" ] || bash -c '
        while IFS="=" read -r -d "" name value; do
            case "$name" in
                PATH | PWD | OLDPWD | SHLVL | _) ;;
                *) [[ "${!name-}" != "$value" ]] || echo "$name" ;;
            esac
        done < <(env -i PATH="$PATH" bash -c "source \"\$1\" && env -0" bash "$1")
    ' bash "$CONFIG_DIR/$CONFIG_FILENAME"
)

# The configuration's file: bash knows it, zsh gets it as an argument.
CONFIG_FILENAME="${BASH_SOURCE[1]:-$1}"
CONFIG_DIR="$(unset CDPATH && cd "$(dirname "$CONFIG_FILENAME")" && pwd)"
CONFIG_FILENAME="${CONFIG_FILENAME##*/}"
DGXSYSTEM="${CONFIG_FILENAME#config_}"
DGXSYSTEM="${DGXSYSTEM%.sh}"
# CONFIG_DIR: for the configuration that is sourced next, in this shell or in one that it starts.
export CONFIG_DIR CONFIG_FILENAME DGXSYSTEM

# Defaults: closed division, on GPUs.
export DATADIR="${DATADIR:-/data}"
export SUBMISSION_DIVISION=closed
export SUBMISSION_STATUS=onprem
export MODEL_VARIANT=reference
export PRECISION=bf16
export BACKEND=auto
export TENSOR_PARALLEL=1
export PIPELINE_PARALLEL=1
export CONTEXT_PARALLEL=1
export CLEAR_CACHES=1
export OMP_NUM_THREADS=8
