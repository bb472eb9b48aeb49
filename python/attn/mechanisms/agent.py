"""Agent attention: few agents gather from all keys, every query reads from the agents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import arguments as check
from .attention import attention
from .plain import plain_attention
from .scan_arguments import keep_mask


def agent_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    agents: Tensor,
    *,
    agent_bias: Tensor | tuple[Tensor, Tensor] | None = None,
    query_bias: Tensor | tuple[Tensor, Tensor] | None = None,
    scale: float | None = None,
    agent_scale: float | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    r"""Attention through r agents, linear in the numbers of queries and keys.

    .. math::
        V_A = \mathrm{softmax}(scale\, A K^T + B_1)\, V, \qquad
        out = \mathrm{softmax}(scale_2\, Q A^T + B_2)\, V_A

    Two calls of :func:`attn.attention`; no ``[r, m]`` or ``[n, r]`` matrix is stored. A bias enters as
    further components of the dot product, so it needs no matrix of logits either, and its gradient is exact.

    Args:
        q: ``[B, H, n, D]``; float32, bfloat16, float16 or float64.
        k: ``[B, Hkv, m, D]``; H is a multiple of Hkv.
        v: ``[B, Hkv, m, Dv]``.
        agents: ``[B, H, r, D]``, for instance :func:`attn.pool_agents` of the queries.
        agent_bias: B1, broadcastable to ``[B, H, r, m]``, or factors ``(left, right)`` whose product it is:
            left broadcastable to ``[B, H, r, F]``, right to ``[B, H, m, F]``; separable biases (rows plus
            columns of an image) have F far below m, and m F numbers instead of r m. In the dtype of q.
        query_bias: B2, broadcastable to ``[B, H, n, r]``, or factors broadcastable to ``[B, H, n, F]`` and
            ``[B, H, r, F]``.
        scale: default ``D ** -0.5``, for the agents' look at the keys.
        agent_scale: for the queries' look at the agents; default: as scale.
        key_mask: bool ``[B, m]``, True = keep. Masked keys are not read. There is no causal form: agents see
            everything.

    Returns:
        ``[B, H, n, Dv]`` in the dtype of q. A batch entry without a key gives 0.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or value.
        BackendError: no backend serves the device or dtype.

    Cost: ``2 r (n + m) (D + Dv)`` multiplications a head; a bias adds r (or F) to D.

    Reference: Han et al. 2024 (arXiv 2312.08874).
    """
    if agent_bias is None and query_bias is None and key_mask is None:
        plain = _plain(q, k, v, agents, scale, agent_scale)
        if plain is not None:
            return plain
    q, k, v = check.query_key_value("agent_attention", q, k, v)
    agents = check.is_tensor("agents", agents)
    if agents.dim() != 4 or agents.shape[:2] != q.shape[:2] or agents.shape[3] != q.shape[3]:
        raise ValueError(
            f"agents must be [B, H, r, D] with the batch size, heads and D of q {check.shape_text(q)}, "
            f"got shape {check.shape_text(agents)}"
        )
    check.same_place("agents", agents, q)
    (agents,) = check.autocast(agents)
    check.same_dtype("agents", agents, q)
    scale = q.shape[3] ** -0.5 if scale is None else float(check.finite("scale", scale))
    agent_scale = scale if agent_scale is None else float(check.finite("agent_scale", agent_scale))
    mask = keep_mask("key_mask", key_mask, q, k.shape[2])
    weight = None
    if mask is not None:
        weight = torch.full(mask.shape, -torch.inf, device=q.device).masked_fill(mask, 0.0).unsqueeze(1)
    one, two, own = _with_bias("agent_bias", agent_bias, agents, k, scale, "r, m")
    # A bias may differ between the query heads that share keys: then each head has its own.
    v = _repeat_heads(v, two.shape[1])
    gathered = attention(one, two, v, scale=own, key_log_weight=weight)
    one, two, own = _with_bias("query_bias", query_bias, q, agents, agent_scale, "n, r")
    return attention(one, two, gathered, scale=own)  # type: ignore[return-value, arg-type]


def _plain(q: Any, k: Any, v: Any, agents: Any, scale: Any, agent_scale: Any) -> Tensor | None:
    """The short way (:mod:`attn.mechanisms.plain`); None: not such a call, or something is wrong with it."""
    if type(q) is not Tensor or type(agents) is not Tensor or agents.shape[:2] != q.shape[:2]:
        return None
    if q.requires_grad and torch.is_grad_enabled():
        return None
    gathered = plain_attention(agents, k, v, False, scale)
    if gathered is None:
        return None
    out = plain_attention(q, agents, gathered[0], False, scale if agent_scale is None else agent_scale)
    return None if out is None else out[0]


def _with_bias(
    name: str, bias: Any, rows: Tensor, columns: Tensor, scale: float, layout: str
) -> tuple[Tensor, Tensor, float]:
    """Rows and columns whose products times the returned scale are ``scale rows columns^T + bias``."""
    if bias is None:
        return rows, columns, scale
    batch, heads, n, _ = rows.shape
    m = columns.shape[2]
    if isinstance(bias, Tensor):
        full = _broadcast(name, bias, (batch, heads, n, m), f"[B, H, {layout}]", rows)
        # The smaller side is the identity, the other one the bias.
        if n <= m:
            left, right = torch.eye(n, dtype=rows.dtype, device=rows.device), full.mT
        else:
            left, right = full, torch.eye(m, dtype=rows.dtype, device=rows.device)
    elif isinstance(bias, (tuple, list)) and len(bias) == 2:
        left, right = (check.is_tensor(f"{name}[{i}]", x) for i, x in enumerate(bias))
        if left.dim() == 0 or right.dim() == 0 or left.shape[-1] != right.shape[-1]:
            raise ValueError(
                f"the factors of {name} must have the same last dimension, got shapes "
                f"{check.shape_text(left)} and {check.shape_text(right)}"
            )
        first, second = layout.split(", ")
        left = _broadcast(f"{name}[0]", left, (batch, heads, n, left.shape[-1]), f"[B, H, {first}, F]", rows)
        right = _broadcast(
            f"{name}[1]", right, (batch, heads, m, right.shape[-1]), f"[B, H, {second}, F]", rows
        )
    else:
        raise TypeError(f"{name} must be a tensor, a pair of factors or None, got {type(bias).__name__}")
    # The scale goes into the rows, so that the bias is neither divided by it nor rounded once more.
    columns = _repeat_heads(columns, heads)
    left, right = left.expand(batch, heads, n, -1), right.expand(batch, heads, m, -1)
    return torch.cat([rows * scale, left], -1), torch.cat([columns, right], -1), 1.0


def _repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Each head several times, one after another; x itself where it has them."""
    if x.shape[1] == heads:
        return x
    return x.unsqueeze(2).expand(-1, -1, heads // x.shape[1], -1, -1).flatten(1, 2)


def _broadcast(name: str, x: Tensor, shape: tuple[int, ...], layout: str, like: Tensor) -> Tensor:
    check.same_place(name, x, like)
    (x,) = check.autocast(x)
    check.same_dtype(name, x, like)
    if x.dim() > 4 or any(a not in (1, b) for a, b in zip(x.shape[::-1], shape[::-1], strict=False)):
        raise ValueError(
            f"{name} must be broadcastable to {layout} = {list(shape)}, got shape {check.shape_text(x)}"
        )
    return x.expand(shape)


def pool_agents(q: Tensor, size: Sequence[int], grid: Sequence[int], *, skip: int = 0) -> Tensor:
    """Agents as means of the queries over the cells of a grid, in any number of dimensions.

    Args:
        q: ``[B, H, n, D]`` with ``n = skip + prod(size)``, tokens in row-major order.
        size: extent of the tokens: ``(n,)`` for text, ``(height, width)``, ``(frames, height, width)``, ...
        grid: number of agents along each of these dimensions, at most the extent; r is their product.
        skip: leading tokens that take no part (class tokens); default 0.

    Returns:
        ``[B, H, r, D]`` in the dtype of q. Cells are those of adaptive average pooling: cell i of g over e
        tokens runs from ``floor(i e / g)`` to ``ceil((i + 1) e / g)``.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, or that doesn't fit the others.
    """
    q = check.is_tensor("q", q)
    if q.dim() != 4:
        raise ValueError(f"q must be [B, H, n, D], got shape {check.shape_text(q)}")
    size, grid = tuple(size), tuple(grid)
    skip = check.integer("skip", skip, 0)
    if len(size) != len(grid) or not size:
        raise ValueError(f"size and grid must have the same number of dimensions, got {size} and {grid}")
    count = 1
    for i, (extent, cells) in enumerate(zip(size, grid, strict=True)):
        check.integer(f"size[{i}]", extent, 1)
        check.integer(f"grid[{i}]", cells, 1, extent)
        count *= extent
    if skip + count != q.shape[2]:
        raise ValueError(
            f"skip + prod(size) must be the number of tokens of q, {q.shape[2]}, got {skip} + {count}"
        )
    batch, heads, _, dim = q.shape
    x = q[:, :, skip:].reshape(batch, heads, *size, dim)
    for axis, (extent, cells) in enumerate(zip(size, grid, strict=True), start=2):
        x = _mean_cells(x, axis, extent, cells)
    return x.reshape(batch, heads, -1, dim)


def _mean_cells(x: Tensor, axis: int, extent: int, cells: int) -> Tensor:
    if extent % cells == 0:
        return x.unflatten(axis, (cells, extent // cells)).mean(axis + 1)
    start = [i * extent // cells for i in range(cells)]
    end = [-(-(i + 1) * extent // cells) for i in range(cells)]
    return torch.stack([x.narrow(axis, i, j - i).mean(axis) for i, j in zip(start, end, strict=True)], axis)
