"""Token-mixing mechanisms of the long-context literature as native PyTorch ops.

Functions take q ``[B, H, Tq, D]``, k ``[B, Hkv, Tk, D]``, v ``[B, Hkv, Tk, Dv]`` and are differentiable
unless they say otherwise. The ops themselves are ``torch.ops.attn.*``. ``python -m attn info`` tells what
this installation supports.
"""

from . import _library  # noqa: F401  # isort: skip  (registers the ops that the rest refers to)
from . import _cuda, _fake, _fake_attend, _fake_layout, _fake_pool, _fake_scan, patterns, reference, viz  # noqa: F401
from ._version import __version__
from .errors import BackendError
from .info import Info, info
from .layout import BlockLayout
from .mechanisms.agent import agent_attention, pool_agents
from .mechanisms.attention import attention
from .mechanisms.axis_gate import axis_gate
from .mechanisms.block_sparse import block_sparse_attention
from .mechanisms.decode import decode_attention
from .mechanisms.features import draw_omega, random_feature_attention, random_features
from .mechanisms.flow import flow_attention, flow_attention_step
from .mechanisms.hip import hip_attention, hip_select
from .mechanisms.linear import linear_attention, linear_attention_step
from .mechanisms.nodes import topk_nodes
from .mechanisms.ponet import ponet_mix
from .mechanisms.prefix import prefix_softmax_pool, prefix_softmax_pool_step
from .mechanisms.query_pool import query_pool
from .mechanisms.s2 import s2_attention
from .mechanisms.segment_pool import segment_pool
from .mechanisms.states import merge_states
from .mechanisms.tap_pool import tap_pool
from .mechanisms.window_pool import window_pool
from .selection import HipSelection

from . import nn  # isort: skip  (over the functions)

__all__ = [
    "BackendError",
    "BlockLayout",
    "HipSelection",
    "Info",
    "__version__",
    "agent_attention",
    "attention",
    "axis_gate",
    "block_sparse_attention",
    "decode_attention",
    "draw_omega",
    "flow_attention",
    "flow_attention_step",
    "hip_attention",
    "hip_select",
    "info",
    "linear_attention",
    "linear_attention_step",
    "merge_states",
    "nn",
    "patterns",
    "ponet_mix",
    "pool_agents",
    "prefix_softmax_pool",
    "prefix_softmax_pool_step",
    "query_pool",
    "random_feature_attention",
    "random_features",
    "reference",
    "s2_attention",
    "segment_pool",
    "tap_pool",
    "topk_nodes",
    "viz",
    "window_pool",
]
