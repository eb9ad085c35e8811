"""Entry point of ``python -m compliance``."""

from __future__ import annotations

import gc

from .cli import main

if __name__ == "__main__":
    # A command lives for seconds. Collecting cycles among a million losses would cost 5 % of its time.
    gc.disable()
    main()
