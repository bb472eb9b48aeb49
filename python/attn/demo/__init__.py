"""``python -m attn demo``: HiP attention on the q, k and v of a real encoder over a long real text."""

from __future__ import annotations

from .command import main

__all__ = ["main"]
