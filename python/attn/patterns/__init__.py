"""Common sparse patterns as layouts, exact to the token and built without a token mask.

Every pattern returns a :class:`attn.BlockLayout` and takes ``block_q=64, block_k=64, device=None``. Building
happens on the CPU; the result is moved to ``device``. Arguments of the wrong type or value raise TypeError or
ValueError, which name them.
"""

from .analysis import covers, kv_efficient, union_over_heads
from .documents import block_causal_document, causal_blockwise, document, prefix_lm, shared_question
from .halo import halo_2d
from .strided import strided
from .windows import bigbird, global_window, sink_window, sliding_window

__all__ = [
    "bigbird",
    "block_causal_document",
    "causal_blockwise",
    "covers",
    "document",
    "global_window",
    "halo_2d",
    "kv_efficient",
    "prefix_lm",
    "shared_question",
    "sink_window",
    "sliding_window",
    "strided",
    "union_over_heads",
]
