"""Float64 oracles with the signatures of the public functions, from explicit masks and weights: slow, and
written to be read.
"""

from . import patterns
from .agent import agent_attention
from .attend import attention, block_sparse_attention, masked_attention
from .decode import decode_attention
from .features import random_features
from .flow import flow_attention
from .gate import axis_gate
from .hip import hip_attention, hip_select, hip_token_mask
from .linear import linear_attention
from .mask import layout_mask, token_mask
from .nodes import topk_nodes
from .ponet import ponet_mix
from .prefix import prefix_softmax_pool
from .query_pool import query_pool
from .s2 import s2_attention, s2_token_mask
from .segment import segment_pool
from .states import merge_states
from .tap import tap_pool
from .window import window_pool

__all__ = [
    "agent_attention",
    "attention",
    "axis_gate",
    "block_sparse_attention",
    "decode_attention",
    "flow_attention",
    "hip_attention",
    "hip_select",
    "hip_token_mask",
    "layout_mask",
    "linear_attention",
    "masked_attention",
    "merge_states",
    "patterns",
    "ponet_mix",
    "prefix_softmax_pool",
    "query_pool",
    "random_features",
    "s2_attention",
    "s2_token_mask",
    "segment_pool",
    "tap_pool",
    "token_mask",
    "topk_nodes",
    "window_pool",
]
