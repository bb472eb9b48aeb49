"""Float64 oracles with the signatures of the public functions, from explicit masks and weights: slow, and
written to be read.
"""

from . import patterns
from .attend import attention, block_sparse_attention, masked_attention
from .decode import decode_attention
from .hip import hip_attention, hip_select, hip_token_mask
from .mask import layout_mask, token_mask
from .s2 import s2_attention, s2_token_mask
from .states import merge_states

__all__ = [
    "attention",
    "block_sparse_attention",
    "decode_attention",
    "hip_attention",
    "hip_select",
    "hip_token_mask",
    "layout_mask",
    "masked_attention",
    "merge_states",
    "patterns",
    "s2_attention",
    "s2_token_mask",
    "token_mask",
]
