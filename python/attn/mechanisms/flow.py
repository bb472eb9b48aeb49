"""Flow attention: linear-time attention by conserving the flow between sources (keys) and sinks (queries)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._autograd import Function, call, no_forward_mode
from . import arguments as check
from . import scan_arguments as scan

FlowState = tuple[Tensor, Tensor, Tensor, Tensor]


class _Flow(Function):
    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        query_mask: Tensor | None,
        key_mask: Tensor | None,
        cu_seqlens: Tensor | None,
        options: tuple[float, bool, float | None, str, bool],
    ) -> tuple[Tensor, ...]:
        return torch.ops.attn.flow_forward(q, k, v, *options, query_mask, key_mask, cu_seqlens)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:6], *output)
        ctx.options = inputs[6]
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, *unused: None) -> tuple[Tensor | None, ...]:
        if dout is None:
            return (None,) * 7
        q, k, v, query_mask, key_mask, cu_seqlens, *saved = ctx.saved_tensors
        grads = torch.ops.attn.flow_backward(
            check.last_contiguous(dout), q, k, v, *saved, *ctx.options, query_mask, key_mask, cu_seqlens
        )
        return (*grads, None, None, None, None)


class _FlowCausal(Function):
    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        cu_seqlens: Tensor | None,
        options: tuple[float, bool, float | None],
        keep_state: bool,
    ) -> tuple[Tensor, ...]:
        return torch.ops.attn.flow_causal_forward(q, k, v, *options, mask, cu_seqlens, keep_state)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:5], *output[:3])
        ctx.options = inputs[5]
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, *unused: None) -> tuple[Tensor | None, ...]:
        if dout is None:
            return (None,) * 7
        q, k, v, mask, cu_seqlens, *saved = ctx.saved_tensors
        grads = torch.ops.attn.flow_causal_backward(
            check.last_contiguous(dout), q, k, v, *saved, *ctx.options, mask, cu_seqlens
        )
        return (*grads, None, None, None, None)


def flow_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    eps: float = 1e-6,
    eps_outside: bool = False,
    clamp: float | None = 1.0,
    competition: str = "source",
    source_norm: bool = False,
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, FlowState]:
    r"""Flow attention (Flowformer): time and memory linear in the number of tokens.

    With :math:`\hat q = \sigma(q)`, :math:`\hat k = \sigma(k)`, n queries (sinks) and m keys (sources),

    .. math::
        I_i = \hat q_i \cdot \textstyle\sum_j \hat k_j, \quad O_j = \hat k_j \cdot \sum_i \hat q_i, \qquad
        c_i = \hat q_i \cdot \textstyle\sum_j \hat k_j / O_j, \quad
        s_j = \hat k_j \cdot \sum_i \hat q_i / I_i

        out_i = \sigma(c_i\, n / m)\, \frac{\hat q_i}{I_i}
                \sum_j \hat k_j^T \left( m\, \mathrm{softmax}_j(s)\, v_j \right)

    where every factor of the four products has eps added to its components. Causally the sums run over the
    tokens up to t = 1, 2, ... themselves, I and O are divided by t where their inverse is summed, c and s are
    divided by t, and the softmax, over the tokens up to j, is fixed once and for all at j (times j). Sums and
    states are float32 whatever the dtype; no ``[T, D, Dv]`` tensor exists. No scale is applied to q or k.

    Args:
        q: ``[B, H, Tq, D]``; float32, bfloat16, float16 or float64.
        k: ``[B, Hkv, Tk, D]``; H is a multiple of Hkv.
        v: ``[B, Hkv, Tk, Dv]``.
        causal: Tq must equal Tk.
        eps: >= 0.
        eps_outside: add eps to each of I, O, c and s once more (Flowformer's vision code).
        clamp: s is cut to ``[-clamp, clamp]``, None for not at all. The mean of s is n / m, so the default 1,
            that of the released core code, cuts half of the sources of self-attention and all of them where
            n is much larger than m; see source_norm. The released variants use 1, 5, 10 and None.
        competition: ``"source"``: the softmax runs over the sources. ``"head"``: at each source over the
            heads, as the released JAX code has it (not causal).
        source_norm: multiply s by m / n before the clamp, so that its mean is 1 (causally it already is).
        query_mask: bool ``[B, Tq]``, True = keep. A masked query takes part in nothing; its row is 0.
        key_mask: bool ``[B, Tk]``, True = keep. With the masks a padded batch gives what each sequence gives
            alone (sinks count for sources too, so padded queries must be masked as well as padded keys).
            Causal: a masked token is absent as query and key, so the two masks must agree; one is enough.
        cu_seqlens: int32 ``[N + 1]``: bounds of N sequences packed along the tokens of q and k (B = 1).
        return_state: causal only: also return the state after the last token for
            :func:`attn.flow_attention_step` (no gradient; with cu_seqlens one batch entry per sequence).

    Returns:
        out ``[B, H, Tq, Dv]`` in the dtype of q, or ``(out, state)``. Rows without any key are 0.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or value.
        BackendError: no backend serves the device or dtype.

    Reference: Wu et al. 2022 (arXiv 2202.06258).
    """
    q, k, v = check.query_key_value("flow_attention", q, k, v)
    numbers = (scan.epsilon(eps), check.flag("eps_outside", eps_outside), _clamp(clamp))
    check.one_of("competition", competition, ("source", "head"))
    check.flag("source_norm", source_norm)
    query_mask = scan.keep_mask("query_mask", query_mask, q, q.shape[2])
    key_mask = scan.keep_mask("key_mask", key_mask, q, k.shape[2])
    cu_seqlens = scan.packed(cu_seqlens, q, k)
    keep_state = check.flag("return_state", return_state)
    if not check.flag("causal", causal):
        if keep_state:
            raise ValueError("return_state needs causal=True: without it there is no next token")
        options = (*numbers, competition, source_norm)
        return call(_Flow, q, k, v, query_mask, key_mask, cu_seqlens, options)[0]
    if q.shape[2] != k.shape[2]:
        raise ValueError(
            f"causal needs q and k of the same number of tokens, got {q.shape[2]} and {k.shape[2]}"
        )
    if competition == "head":
        raise ValueError("competition='head' needs causal=False: a causal softmax runs over the sources")
    mask = _one_mask(query_mask, key_mask)
    out, _, _, *state = call(_FlowCausal, q, k, v, mask, cu_seqlens, numbers, keep_state)
    return (out, tuple(state)) if keep_state else out


def flow_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: FlowState | None = None,
    *,
    eps: float = 1e-6,
    clamp: float | None = 1.0,
) -> tuple[Tensor, FlowState]:
    """The next token of causal :func:`attn.flow_attention`. No gradient.

    Args:
        q, k, v: ``[B, H, 1, D]``, ``[B, Hkv, 1, D]`` and ``[B, Hkv, 1, Dv]``, of the new token.
        state: what the step before returned, or ``flow_attention(..., causal=True, return_state=True)``; None
            at the start. It is not modified.
        eps, clamp: as in :func:`attn.flow_attention`.

    Returns:
        ``(out, state)``: out ``[B, H, 1, Dv]``, and the state as float32 (float64 for float64 inputs) tensors
        of a size that does not grow: sums ``[B, H, 4, D]``, product ``[B, H, D, Dv]``, log_mean ``[B, H]``
        and the number of tokens ``[B]``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or value.
        BackendError: no backend serves the device or dtype.
    """
    no_forward_mode("flow_attention_step", q, k, v, *(state if isinstance(state, (tuple, list)) else ()))
    q, k, v = check.query_key_value("flow_attention_step", q, k, v)
    if q.shape[2] != 1 or k.shape[2] != 1:
        raise ValueError(f"q, k and v must hold one token, got {q.shape[2]} and {k.shape[2]}")
    parts: tuple[Tensor | None, ...] = (None,) * 4
    if state is not None:
        given: Any = state
        if not isinstance(given, (tuple, list)) or len(given) != 4:
            what = f"{len(given)} parts" if isinstance(given, (tuple, list)) else type(given).__name__
            raise TypeError(
                f"state must be the four tensors that flow_attention_step returned, or None, got {what}"
            )
        batch, heads, _, dim = q.shape
        shapes = ((batch, heads, 4, dim), (batch, heads, dim, v.shape[3]), (batch, heads), (batch,))
        layouts = ("[B, H, 4, D]", "[B, H, D, Dv]", "[B, H]", "[B]")
        parts = tuple(
            scan.state_tensor(f"state[{i}]", x, shape, layout, q)
            for i, (x, shape, layout) in enumerate(zip(state, shapes, layouts, strict=True))
        )
    with torch.no_grad():
        out, *after = torch.ops.attn.flow_step(q, k, v, *parts, scan.epsilon(eps), _clamp(clamp))
    return out, tuple(after)


def _clamp(clamp: Any) -> float | None:
    if clamp is None:
        return None
    if check.finite("clamp", clamp) <= 0:
        raise ValueError(f"clamp must be positive, or None for none, got {clamp}")
    return float(clamp)


def _one_mask(query_mask: Tensor | None, key_mask: Tensor | None) -> Tensor | None:
    if query_mask is None or key_mask is None:
        return key_mask if query_mask is None else query_mask
    known = check.values_are_known(query_mask) and check.values_are_known(key_mask)
    if known and query_mask is not key_mask and not torch.equal(query_mask, key_mask):
        at = (query_mask != key_mask).nonzero()[0].tolist()
        raise ValueError(
            "query_mask and key_mask must agree where causal (a token is absent or present), but differ at "
            f"{at}; one of them is enough"
        )
    return query_mask
