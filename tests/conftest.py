"""For all tests."""

from __future__ import annotations

from hypothesis import settings

# Other tests run beside each, on a machine that may be busy: no example is wrong because it took long.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
