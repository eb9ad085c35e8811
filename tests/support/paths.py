"""Where things are: the repository and, where they are at hand, the published logs."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REFERENCE_LOGS = ROOT.parent / "shared" / "data" / "rcp_logs" / "gbs32"
