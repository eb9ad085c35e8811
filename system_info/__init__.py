"""Facts about this machine: GPUs, processors, memory, disks, network and software.

``compliance`` describes a system with them, ``gptoss20b.tools.doctor`` checks a node. Readers return None or nothing
for what the machine does not report; they never guess. ``root`` is always the folder that holds /proc, /sys and /etc.
``limit_s`` is the time limit in seconds of each call of a tool or library, which is made in a child process. With None
it is made in this process, which limits itself.

Nothing here imports torch or one of the project's other packages.
"""
