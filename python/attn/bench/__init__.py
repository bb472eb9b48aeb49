"""``python -m attn bench``: attention over the masks of LongCA-bench, checked, then timed."""

from __future__ import annotations

from .command import main

__all__ = ["main"]
