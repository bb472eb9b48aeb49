"""Sum of a gate per channel and a gate per time step, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def axis_gate(x: Tensor, channel: Tensor, time: Tensor) -> Tensor:
    """Oracle of :func:`attn.axis_gate`: ``x[b, c, t] (channel[b, c] + time[b, t])``."""
    x, channel, time = (t.to(torch.float64) for t in (x, channel, time))
    return x * (channel[:, :, None] + time[:, None, :])
