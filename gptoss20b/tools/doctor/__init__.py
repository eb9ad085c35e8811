"""Check whether this node is ready for a long run: ``python -m gptoss20b doctor``.

Every check uses the real thing, has a time limit, and changes nothing. `checks` lists them; the other modules hold one
subject each.
"""

from .checks import check_node
from .finding import Finding, Verdict
from .node_context import read_node_context
from .report import as_document, as_table, overall_verdict, summary_line

__all__ = [
    "Finding",
    "Verdict",
    "as_document",
    "as_table",
    "check_node",
    "overall_verdict",
    "read_node_context",
    "summary_line",
]
