"""Observers of training: the MLPerf log, checkpoints and console progress, called in a fixed order.

`base` has the hooks. A callback reads what it is given and never changes training state.
"""

from .base import Callback, CallbackList

__all__ = ["Callback", "CallbackList"]
