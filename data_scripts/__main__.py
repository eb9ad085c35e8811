"""`python -m data_scripts`."""

from __future__ import annotations

import sys

try:
    from .cli import app

    app(prog_name="python -m data_scripts")
except KeyboardInterrupt:
    # Interrupted while importing; a running command reports its own interrupt.
    sys.stderr.write("error: interrupted\n")
    sys.exit(130)
