"""Imported by the server that ranks are forked from, as the command line imports it."""

from gptoss20b.megatron_cpu import import_megatron

import_megatron()

import gptoss20b.train  # noqa: E402, F401
