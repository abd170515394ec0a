"""`python -m llm_cost_ops` is the command `llm-cost-ops`, where the path has no scripts of this Python."""

from __future__ import annotations

import sys

from llm_cost_ops.cli import main

sys.exit(main())
