"""The layer back end that the run will choose."""

from __future__ import annotations

from ...config import Config
from .finding import Finding, failed, passed


def look_at_back_end(config: Config) -> Finding:
    """Report the layer back end that the run will choose, or why it finds none."""
    from ...model.build import BackendError, choose_backend

    try:
        return passed("back end", f"{choose_backend(config)} (BACKEND={config.execution.backend})")
    except BackendError as error:
        return failed("back end", str(error), "change what the message names")
