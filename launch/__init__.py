"""Start runs and sets of trials, watch them, and record how they end.

Python 3.9 and the standard library are enough: on the host of a container nothing else may be installed.
"""

import sys

# Checked here, before modules that an older Python cannot import.
if sys.version_info < (3, 9):  # noqa: UP036
    sys.stderr.write("error: PYTHON: Python %d.%d is older than 3.9\n" % sys.version_info[:2])  # noqa: UP031
    sys.exit(2)
