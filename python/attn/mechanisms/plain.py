"""The short way into attend_forward for calls that use none of its options. At a handful of tokens, looking
at every argument costs more than the attention does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_NO_OPTIONS = (None,) * 7
_NO_WINDOW = (-1, -1, 0)


def plain_attention(q: Any, k: Any, v: Any, causal: Any, scale: Any) -> tuple[Tensor, Tensor] | None:
    """(out, lse) of plain tensors that no transformation, gradient or autocast is interested in. None: this
    isn't such a call, or something is wrong with it; the long way tells, and says what.
    """
    if (
        torch.compiler.is_compiling()
        or type(q) is not Tensor
        or type(k) is not Tensor
        or type(v) is not Tensor
        or (causal is not False and causal is not True)
        or (scale is not None and type(scale) is not float)
        or forward_ad._current_level >= 0
        or not (q.is_cpu and k.is_cpu and v.is_cpu)
        or torch.is_autocast_enabled("cpu")
        or ((q.requires_grad or k.requires_grad or v.requires_grad) and torch.is_grad_enabled())
    ):
        return None
    try:
        return torch.ops.attn.attend_forward(q, k, v, causal, *_NO_WINDOW, scale, 0.0, *_NO_OPTIONS, False)
    except RuntimeError:
        return None
