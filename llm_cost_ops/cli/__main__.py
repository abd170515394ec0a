"""`python -m llm_cost_ops.cli`."""

from __future__ import annotations

import sys

from llm_cost_ops.cli import main

sys.exit(main())
