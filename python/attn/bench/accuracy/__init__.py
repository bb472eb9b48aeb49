"""``python -m attn bench accuracy``: what sparse attention loses, over what it costs, on real text."""

from __future__ import annotations

from .command import main

__all__ = ["main"]
