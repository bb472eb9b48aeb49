"""Fake implementations: shapes, dtypes and exact strides of every op's results, for torch.compile, export and
meta tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.register_fake("attn::merge_states")
def _merge_states(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    return outs.new_empty(outs.shape[1:]), lses.new_empty(lses.shape[1:])


@torch.library.register_fake("attn::merge_states_backward")
def _merge_states_backward(
    dout: Tensor, dlse: Tensor | None, outs: Tensor, lses: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor]:
    return outs.new_empty(outs.shape), lses.new_empty(lses.shape)
