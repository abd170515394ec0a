"""Files of usage become records: encodings, JSON and tables, and the exports that are known by their shape.

`UsageFile` reads one file, a piece at a time; the command line sends what it gives. A new kind of file is a
`Format` in the list FORMATS.
"""

from __future__ import annotations

from llm_cost_ops.imports.fields import assignments
from llm_cost_ops.imports.reader import FORMATS, Item, UsageFile
from llm_cost_ops.imports.shapes import delimiter_of

__all__ = ["FORMATS", "Item", "UsageFile", "assignments", "delimiter_of"]
