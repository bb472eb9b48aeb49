"""Argument checks that the attend functions share. Wrong arguments raise ValueError or TypeError that name
the argument, what was given and what is accepted; values of index tensors are checked where that needs no
synchronisation (CPU, not while tracing) and again by the op.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..capability import dtype_name, require_backend

_INT32_MAX = 2**31 - 1


def is_tensor(name: str, x: Any) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    return x


def integer(name: str, x: Any, least: int, most: int = _INT32_MAX) -> int:
    """An int in [least, most]; bool is not one."""
    if not isinstance(x, (int, torch.SymInt)) or isinstance(x, bool):
        raise TypeError(f"{name} must be an int, got {type(x).__name__}")
    if x < least or x > most:
        bound = f">= {least}" if most == _INT32_MAX else f"in [{least}, {most}]"
        raise ValueError(f"{name} must be {bound}, got {x}")
    return x  # type: ignore[return-value]  # a SymInt acts as one


def flag(name: str, x: Any) -> bool:
    if not isinstance(x, bool):
        raise TypeError(f"{name} must be a bool, got {type(x).__name__}")
    return x


def one_of(name: str, x: Any, choices: tuple[str, ...]) -> str:
    if x not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {x!r}")
    return str(x)


def finite(name: str, x: Any) -> float:
    if not isinstance(x, (float, int, torch.SymFloat, torch.SymInt)) or isinstance(x, bool):
        raise TypeError(f"{name} must be a float, got {type(x).__name__}")
    if not -math.inf < x < math.inf:  # math.isfinite would break the graph of torch.compile
        raise ValueError(f"{name} must be finite, got {x}")
    return x  # type: ignore[return-value]


def scale_or_default(scale: Any) -> float | None:
    """None means D ** -0.5, which the op fills in."""
    return None if scale is None else finite("scale", scale)


def softcap_or_off(softcap: Any) -> float:
    if softcap is None:
        return 0.0
    if finite("softcap", softcap) <= 0:
        raise ValueError(f"softcap must be positive, or None for no cap, got {softcap}")
    return softcap


def window_pair(window: Any) -> tuple[int, int]:
    """(left, right) with -1 = unlimited."""
    if window is None:
        return -1, -1
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise TypeError(f"window must be a pair (left, right) or None, got {window!r}")
    return integer("window[0]", window[0], -1), integer("window[1]", window[1], -1)


def last_contiguous(x: Tensor) -> Tensor:
    """What kernels can read in place; a copy otherwise."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def same_place(name: str, x: Tensor, like: Tensor, like_name: str = "q") -> None:
    if x.device != like.device:
        raise ValueError(
            f"{name} is on {x.device} but {like_name} is on {like.device}; put all tensors on one device"
        )


def same_dtype(name: str, x: Tensor, like: Tensor, like_name: str = "q") -> None:
    if x.dtype != like.dtype:
        raise ValueError(
            f"{name} must have the dtype of {like_name}, {dtype_name(like.dtype)}, got {dtype_name(x.dtype)}"
        )


def _typed(name: str, x: Any, like: Tensor, like_name: str, dtype: torch.dtype, meaning: str = "") -> Tensor:
    x = is_tensor(name, x)
    same_place(name, x, like, like_name)
    if x.dtype != dtype:
        must, method = dtype_name(dtype), "int" if dtype == torch.int32 else dtype_name(dtype)
        raise TypeError(
            f"{name} must be {must}{meaning}, got {dtype_name(x.dtype)}; convert with .{method}()"
        )
    return x


def int32(name: str, x: Any, like: Tensor, like_name: str = "q") -> Tensor:
    return _typed(name, x, like, like_name, torch.int32)


def keep_mask(name: str, x: Any, like: Tensor, like_name: str = "q") -> Tensor:
    return _typed(name, x, like, like_name, torch.bool, " (True = keep)")


def whole_groups(name: str, heads: int, of: str, kv_heads: int) -> None:
    """Every kv head serves as many query heads."""
    if heads % kv_heads != 0 if kv_heads != 0 else heads != 0:
        raise ValueError(f"{name} must have a multiple of the heads of {of}, got {heads} and {kv_heads}")


def shape_text(x: Tensor) -> str:
    return str(list(x.shape))


def query_key(op: str, q: Any, k: Any) -> tuple[Tensor, Tensor]:
    """q ``[B, H, Tq, D]`` and k ``[B, Hkv, Tk, D]``, checked and with a contiguous last dimension."""
    q, k = is_tensor("q", q), is_tensor("k", k)
    # Looked at once: a shape is a new object every time, and small calls feel it.
    q_shape, k_shape = q.shape, k.shape
    if len(q_shape) != 4:
        raise ValueError(f"q must be [B, H, Tq, D], got shape {list(q_shape)}")
    if len(k_shape) != 4:
        raise ValueError(f"k must be [B, Hkv, Tk, D], got shape {list(k_shape)}")
    same_place("k", k, q)
    q, k = autocast(q, k)
    same_dtype("k", k, q)
    batch, heads, _, dim = q_shape
    k_batch, kv_heads, _, k_dim = k_shape
    if k_batch != batch:
        raise ValueError(f"k must have the batch size of q, {batch}, got shape {list(k_shape)}")
    if k_dim != dim:
        raise ValueError(f"k must have the head dimension of q, {dim}, got shape {list(k_shape)}")
    if dim == 0:
        raise ValueError(f"q and k must have a head dimension of at least 1, got shape {list(q_shape)}")
    whole_groups("q", heads, "k and v", kv_heads)
    require_backend(op, q, head_dim=dim)
    return last_contiguous(q), last_contiguous(k)


def query_key_value(op: str, q: Any, k: Any, v: Any) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`query_key`, with v ``[B, Hkv, Tk, Dv]``."""
    q, k = query_key(op, q, k)
    v = is_tensor("v", v)
    same_place("v", v, q)
    (v,) = autocast(v)
    same_dtype("v", v, q)
    v_shape = v.shape
    if len(v_shape) != 4 or v_shape[:3] != k.shape[:3]:
        raise ValueError(
            f"v must be [B, Hkv, Tk, Dv] with the batch size, heads and tokens of k {shape_text(k)}, "
            f"got shape {list(v_shape)}"
        )
    return q, k, last_contiguous(v)


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under ``torch.autocast`` these functions run in its dtype, as scaled_dot_product_attention does."""
    device = tensors[0].device.type
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors)


def float_rows(name: str, x: Any, q: Tensor, shape: tuple[int, ...], layout: str) -> Tensor | None:
    """A float32 modifier, broadcast to ``shape`` without a copy; autograd sums over what was broadcast."""
    if x is None:
        return None
    x = is_tensor(name, x)
    same_place(name, x, q)
    if not x.is_floating_point():
        raise TypeError(f"{name} must be float32, got {dtype_name(x.dtype)}")
    if x.dtype != torch.float32:
        x = x.float()
    if x.shape == shape:
        return x
    try:
        return x.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"{name} must be broadcastable to {layout} = {list(shape)}, got shape {shape_text(x)}"
        ) from None


def segment_pair(segment_ids: Any, q: Tensor, k: Tensor) -> tuple[Tensor | None, Tensor | None]:
    if segment_ids is None:
        return None, None
    if isinstance(segment_ids, Tensor):
        if q.shape[2] != k.shape[2]:
            raise ValueError(
                "segment_ids must be a pair (q_ids, k_ids) where q and k differ in length, "
                f"{q.shape[2]} and {k.shape[2]}"
            )
        pair = (segment_ids, segment_ids)
    elif isinstance(segment_ids, (tuple, list)) and len(segment_ids) == 2:
        pair = tuple(segment_ids)
    else:
        raise TypeError(
            f"segment_ids must be a tensor [B, T] or a pair (q_ids, k_ids), got {type(segment_ids).__name__}"
        )
    return _ids("segment_ids of q", pair[0], q), _ids("segment_ids of k", pair[1], k)


def _ids(name: str, ids: Any, like: Tensor) -> Tensor:
    ids = int32(name, ids, like)
    shape = (like.shape[0], like.shape[2])
    if ids.dim() != 2 or ids.shape[1] != shape[1] or (ids.shape[0] != shape[0] and ids.shape[0] != 1):
        raise ValueError(f"{name} must be [B, T] = {list(shape)}, got shape {shape_text(ids)}")
    return ids.expand(shape)


def packed_sequences(
    cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: Any, max_seqlen_k: Any, q: Tensor, k: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The two cu_seqlens; keys are packed like queries where only those are given."""
    if cu_seqlens_q is None:
        if cu_seqlens_k is not None:
            raise ValueError("cu_seqlens_k needs cu_seqlens_q")
        for name, value in (("max_seqlen_q", max_seqlen_q), ("max_seqlen_k", max_seqlen_k)):
            if value is not None:
                raise ValueError(f"{name} needs cu_seqlens_q")
        return None, None
    one_batch("cu_seqlens_q", q.shape[0])
    if cu_seqlens_k is None:
        cu_seqlens_k, max_seqlen_k = cu_seqlens_q, max_seqlen_q if max_seqlen_k is None else max_seqlen_k
    cu_q = bounds("cu_seqlens_q", cu_seqlens_q, q, "q", q.shape[2])
    cu_k = bounds("cu_seqlens_k", cu_seqlens_k, q, "q", k.shape[2])
    _at_least_longest("max_seqlen_q", max_seqlen_q, cu_q)
    _at_least_longest("max_seqlen_k", max_seqlen_k, cu_k)
    if cu_q.shape != cu_k.shape:
        raise ValueError(
            "cu_seqlens_q and cu_seqlens_k must describe the same number of sequences, "
            f"got shapes {shape_text(cu_q)} and {shape_text(cu_k)}"
        )
    return cu_q, cu_k


def one_batch(name: str, batch: int) -> None:
    if batch != 1:
        raise ValueError(f"{name} needs a batch size of 1 (sequences are packed along tokens), got {batch}")


def bounds(name: str, cu: Any, like: Tensor, like_name: str, tokens: int) -> Tensor:
    """cu_seqlens: where each of N sequences packed along ``tokens`` starts, and where the last one ends."""
    cu = int32(name, cu, like, like_name)
    if cu.dim() != 1 or cu.shape[0] == 0:
        raise ValueError(f"{name} must be [N + 1] for N sequences, got shape {shape_text(cu)}")
    if values_are_known(cu):
        values = cu.tolist()
        if values[0] != 0:
            raise ValueError(f"{name} must start at 0, got {values[0]}")
        if values != sorted(values):
            i, j = next((i, j) for i, j in pairwise(values) if j < i)
            raise ValueError(f"{name} must not decrease, got {i} before {j}")
        if values[-1] > tokens:
            raise ValueError(f"{name} must not exceed the number of tokens, {tokens}, got {values[-1]}")
    return cu.contiguous()


def _at_least_longest(name: str, given: Any, cu: Tensor) -> None:
    if given is None:
        return
    integer(name, given, 0)
    if values_are_known(cu):
        longest = max((end - begin for begin, end in pairwise(cu.tolist())), default=0)
        if longest > given:
            raise ValueError(f"{name} must be at least the longest sequence, {longest}, got {given}")


def values_are_known(x: Tensor) -> bool:
    """Whether values can be looked at without a synchronisation and without disturbing a tracer."""
    return x.device.type == "cpu" and type(x) is Tensor and not torch.compiler.is_compiling()
