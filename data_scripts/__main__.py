"""`python -m data_scripts`."""

import sys

try:
    from data_scripts.cli import app

    app(prog_name="python -m data_scripts")
except KeyboardInterrupt:
    # while the libraries were still being loaded; a command tells its own
    sys.stderr.write("error: interrupted\n")
    sys.exit(130)
