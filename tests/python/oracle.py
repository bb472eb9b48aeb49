"""Runs a softmax attention on a case of the table and compares results and gradients with the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attn import reference
from cases import Case, Inputs
from tolerance import assert_as_exact_as, largest_error

Attention = Callable[..., tuple[Tensor, Tensor]]


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    key_log_weight: Tensor | None = None,
    sink_logits: Tensor | None = None,
    head_gate: Tensor | None = None,
    return_lse: bool = True,
    **visibility: Any,
) -> tuple[Tensor, Tensor]:
    """What one writes in PyTorch, in the dtype of the arguments: the yardstick of the tolerance rule.

    Keyword arguments of :func:`attn.attention`; returns (out, lse).
    """
    for hint in ("max_seqlen_q", "max_seqlen_k"):
        visibility.pop(hint, None)
    mask = reference.token_mask(q.shape[2], k.shape[2], device=q.device, **visibility)
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    logits = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if key_log_weight is not None:
        weight = key_log_weight.expand(k.shape[0], k.shape[1] // group, k.shape[2])
        logits = logits + weight.repeat_interleave(group, dim=1)[:, :, None, :]
    logits = logits.masked_fill(~mask, -torch.inf)
    if sink_logits is not None:
        sink = sink_logits[None, :, None, None].expand(*logits.shape[:3], 1)
        logits = torch.cat([logits, sink.to(logits.dtype)], dim=-1)
    empty = (logits == -torch.inf).all(-1)
    logits = logits.masked_fill(empty[..., None], 0.0)
    weights = torch.softmax(logits, dim=-1).masked_fill(empty[..., None], 0.0)
    statistics = torch.float64 if q.dtype == torch.float64 else torch.float32
    if logits.shape[-1]:
        lse = torch.logsumexp(logits.to(statistics), dim=-1).masked_fill(empty, -torch.inf)
    else:
        lse = torch.full(logits.shape[:3], -torch.inf, dtype=statistics, device=q.device)
    out = weights[..., : k.shape[2]].to(v.dtype) @ v
    if head_gate is not None:
        out = (out * head_gate[..., None]).to(q.dtype)
    return out, lse


def results(attention: Attention, inputs: Inputs, dout: Tensor, dlse: Tensor) -> dict[str, Tensor]:
    """out, lse, and the gradients of every differentiable input, by name."""
    tensors = {name: x.detach().requires_grad_() for name, x in inputs.differentiable().items()}
    call = inputs.replace(tensors)
    out, lse = attention(call.q, call.k, call.v, **call.options, return_lse=True)
    found = {"out": out.detach(), "lse": lse.detach()}
    # A row without keys has lse -inf, whose gradient is of no consequence.
    dlse = dlse.to(lse.dtype).masked_fill(found["lse"].isinf(), 0.0)
    live = [(x, dx) for x, dx in ((out, dout.to(out.dtype)), (lse, dlse)) if x.requires_grad]
    ends, starts = zip(*live, strict=True) if live else ((), ())
    gradients = torch.autograd.grad(ends, list(tensors.values()), starts, allow_unused=True)
    for (name, x), gradient in zip(tensors.items(), gradients, strict=True):
        found["d" + name] = torch.zeros_like(x) if gradient is None else gradient
    return found


def check_attention(attention: Attention, case: Case, dtype: torch.dtype, device: str = "cpu") -> None:
    """Assert that results and gradients of ``attention`` are as exact as the plain ones (2x rule).

    attention: called like :func:`attn.attention` with ``return_lse=True``.
    """
    actual, plain, exact = (_run(f, case, dtype, device) for f in (attention, plain_attention, None))
    errors = dict.fromkeys(exact, 0.0)
    for seed in range(1, _draws(case)):
        other, truth = (_run(f, case, dtype, device, seed) for f in (plain_attention, None))
        errors = {name: max(errors[name], largest_error(other[name], truth[name])) for name in exact}
    for name, expected in exact.items():
        assert_as_exact_as(actual[name], plain[name], expected, f"{case.id}: {name}", errors[name])


def _draws(case: Case) -> int:
    """How many draws tell the error of the plain implementation.

    With a handful of entries its largest error is a matter of luck: a gradient is the difference of two
    rounded terms (dout . v, and delta = dout . out with out rounded to the dtype, as in FlashAttention), and
    where they round the same way the plain error is far below one unit of either. 64 entries are enough.
    """
    entries = case.B * case.H * case.q_len * min(case.D, case.D if case.Dv is None else case.Dv)
    return 1 if entries == 0 else -(-64 // entries)


def _run(
    attention: Attention | None, case: Case, dtype: torch.dtype, device: str, seed: int = 0
) -> dict[str, Tensor]:
    """Results of `attention`, None for the reference in float64, on a draw of the case."""
    inputs = case.inputs(dtype, device, seed)
    g = torch.Generator().manual_seed(seed + 1)
    rows = inputs.q.shape[:3]
    dout = torch.randn(*rows, inputs.v.shape[3], generator=g, dtype=torch.float64).to(inputs.q)
    dlse = torch.randn(rows, generator=g, dtype=torch.float32).to(device)
    if attention is None:
        return results(reference.attention, inputs.double(), dout, dlse)
    return results(attention, inputs, dout, dlse)
