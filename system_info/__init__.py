"""Facts about this machine: GPUs, processors, memory, disks, network and software.

``compliance`` describes a system with them, ``gptoss20b.tools.doctor`` checks a node. Readers return None for what the
machine does not report; they never guess. Nothing here imports torch or one of the project's other packages.
"""
