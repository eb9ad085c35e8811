"""Whether this node is ready for a long run: `python -m gptoss20b doctor`.

Every check looks at the real thing, has a time limit, and changes nothing. `examination` lists them; the other modules
hold one subject each.
"""

from .examination import examine
from .finding import Finding, Verdict, as_document, verdict_of
from .place import read_node_context
from .table import as_table, last_line

__all__ = ["Finding", "Verdict", "as_document", "as_table", "examine", "last_line", "read_node_context", "verdict_of"]
