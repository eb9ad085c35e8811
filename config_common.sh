#!/usr/bin/env bash
# What all configurations share. Sourced by config_*.sh, whose name gives the system's name.
CONFIG_FILENAME="${BASH_SOURCE[1]##*/}"
DGXSYSTEM="${CONFIG_FILENAME#config_}"
DGXSYSTEM="${DGXSYSTEM%.sh}"
export CONFIG_FILENAME DGXSYSTEM
