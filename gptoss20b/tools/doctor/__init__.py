"""Check whether this node is ready for a long run: ``python -m gptoss20b doctor``.

Every check uses the real thing, has a time limit, and changes nothing. `checks` lists them; the other modules hold one
subject each.
"""

from .checks import check_node as check_node
from .finding import Verdict as Verdict
from .finding import as_document as as_document
from .finding import as_table as as_table
from .finding import overall_verdict as overall_verdict
from .finding import summary_line as summary_line
from .node_context import read_node_context as read_node_context
