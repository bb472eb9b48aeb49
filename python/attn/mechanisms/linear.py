"""Linear attention: the softmax replaced by a product of features, so that keys and values are summed
once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._autograd import Function, call
from . import arguments as check
from . import scan_arguments as scan

FEATURE_MAPS = ("elu1", "relu", "exp", "identity", "sigmoid", "taylor2")

State = tuple[Tensor, Tensor]


class _Linear(Function):
    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        initial_s: Tensor | None,
        initial_z: Tensor | None,
        key_mask: Tensor | None,
        cu_seqlens: Tensor | None,
        options: tuple[str, bool, bool, float],
        keep_state: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        places = (key_mask, cu_seqlens, initial_s, initial_z)
        return torch.ops.attn.linear_forward(q, k, v, *options, *places, keep_state)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.options, ctx.keep_state = inputs[7:]
        _, causal, normalize, _ = ctx.options
        out, mass, *state = output
        # Unnormalised, the gradient doesn't read out; causal, it sums states anew.
        ctx.save_for_backward(
            *inputs[:7], out if normalize else None, mass, *((None, None) if causal else state)
        )
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dout: Tensor | None, dmass: None, ds: Tensor | None, dz: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        q, k, v, initial_s, initial_z, key_mask, cu_seqlens, out, mass, s, z = ctx.saved_tensors
        dout = q.new_zeros((*q.shape[:3], v.shape[3])) if dout is None else check.last_contiguous(dout)
        # Compiled, states nobody asked for (which may be empty) get gradients of zeros.
        dstate = (x.contiguous() if ctx.keep_state and x is not None else None for x in (ds, dz))
        saved = (q, k, v, out, mass, s, z)
        places = (key_mask, cu_seqlens, initial_s, initial_z)
        dq, dk, dv, ds0, dz0 = torch.ops.attn.linear_backward(dout, *dstate, *saved, *ctx.options, *places)
        if initial_s is None:
            ds0 = dz0 = None
        return dq, dk, dv, ds0, dz0, None, None, None, None


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    feature_map: str = "elu1",
    causal: bool = False,
    normalize: bool = True,
    eps: float = 1e-6,
    key_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    initial_state: State | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, State]:
    r"""Attention whose weights are products of features, in time and memory linear in the number of tokens.

    .. math::
        out_i = \frac{\varphi(q_i)^T S_i}{\varphi(q_i)^T z_i + \varepsilon}, \qquad
        S_i = \sum_j \varphi(k_j) v_j^T, \quad z_i = \sum_j \varphi(k_j)

    The sums run over the keys that row i sees: all of them, or causally those up to i. They are kept in
    float32 whatever the dtype. The causal form works in chunks, a masked product inside each and a running
    state between them; no ``[T, D, Dv]`` tensor exists.

    Args:
        q: ``[B, H, Tq, D]``; float32, bfloat16, float16 or float64.
        k: ``[B, Hkv, Tk, D]``; H is a multiple of Hkv. No scale is applied to q or k.
        v: ``[B, Hkv, Tk, Dv]``.
        feature_map: ``"elu1"`` (x + 1 for x > 0, else e^x), ``"relu"``, ``"exp"``, ``"identity"`` (q and k
            are features already, such as those of :func:`attn.random_features`), ``"sigmoid"``, or
            ``"taylor2"``: features whose product is ``1 + x + x^2 / 2`` with ``x = q.k / sqrt(D)``, of which
            there are ``F = 1 + D + D (D + 1) / 2`` (else F = D).
        causal: row i sees the keys j <= i; Tq must equal Tk.
        normalize: divide by the mass ``phi(q) . z``; without it the numerator is returned.
        eps: >= 0, added to the mass away from zero (so subtracted from a negative one, which identity
            features can have). A row of mass 0 is 0.
        key_mask: bool ``[B, Tk]``, True = keep. Masked keys and values are never read into a product.
        cu_seqlens: int32 ``[N + 1]``: bounds of N sequences packed along the tokens of q and k (B = 1). Rows
            past the last sequence are 0.
        initial_state: ``(S, z)``, what came before the first key: float32 (float64 for float64 inputs) S
            ``[B, Hkv, F, Dv]`` and z ``[B, Hkv, F]``, with cu_seqlens N in the place of B. Differentiable.
        return_state: also return the state after the last key, in the same form. Differentiable.

    Returns:
        out ``[B, H, Tq, Dv]`` in the dtype of q, or ``(out, (S, z))``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or value.
        BackendError: no backend serves the device or dtype.

    Cost: about ``4 T F Dv`` multiplications a head, causally ``(4 F + 64) Dv T + 64 F T``.

    References: Katharopoulos et al. 2020 (arXiv 2006.16236); taylor2: Arora et al. 2024 (arXiv 2402.18668) in
    the form with one normaliser, whose weights are positive.
    """
    q, k, v = check.query_key_value("linear_attention", q, k, v)
    options = (
        check.one_of("feature_map", feature_map, FEATURE_MAPS),
        check.flag("causal", causal),
        check.flag("normalize", normalize),
        scan.epsilon(eps),
    )
    if causal and q.shape[2] != k.shape[2]:
        raise ValueError(
            f"causal needs q and k of the same number of tokens, got {q.shape[2]} and {k.shape[2]}; "
            "give the past as initial_state"
        )
    mask = scan.keep_mask("key_mask", key_mask, q, k.shape[2])
    cu_seqlens = scan.packed(cu_seqlens, q, k)
    keep_state = check.flag("return_state", return_state)
    before = _initial(initial_state, q, k, v, feature_map, cu_seqlens)
    out, _, s, z = call(_Linear, q, k, v, *before, mask, cu_seqlens, options, keep_state)
    return (out, (s, z)) if keep_state else out


def linear_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: State | None = None,
    *,
    feature_map: str = "elu1",
    normalize: bool = True,
    eps: float = 1e-6,
) -> tuple[Tensor, State]:
    """The next token (or few tokens) of causal :func:`attn.linear_attention`.

    Args:
        q, k, v: ``[B, H, n, D]``, ``[B, Hkv, n, D]`` and ``[B, Hkv, n, Dv]`` of the n new tokens, usually 1.
        state: what the call before returned, or None (default) at the start. It is not modified.
        feature_map, normalize, eps: as in :func:`attn.linear_attention`, with its defaults.

    Returns:
        ``(out, state)``: out ``[B, H, n, Dv]``, state ``(S, z)`` of a size that does not grow: ``[B, Hkv, F,
        Dv]`` and ``[B, Hkv, F]``. Differentiable.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or value.
        BackendError: no backend serves the device or dtype.
    """
    return linear_attention(  # type: ignore[return-value]
        q,
        k,
        v,
        feature_map=feature_map,
        causal=True,
        normalize=normalize,
        eps=eps,
        initial_state=state,
        return_state=True,
    )


def feature_count(feature_map: str, dim: int) -> int:
    """F, the number of features of ``feature_map`` for heads of ``dim``."""
    return 1 + dim + dim * (dim + 1) // 2 if feature_map == "taylor2" else dim


def _initial(
    state: Any, q: Tensor, k: Tensor, v: Tensor, feature_map: str, cu_seqlens: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    if state is None:
        return None, None
    if not isinstance(state, (tuple, list)) or len(state) != 2:
        raise TypeError(f"initial_state must be a pair (S, z) or None, got {type(state).__name__}")
    sequences, letter = (k.shape[0], "B") if cu_seqlens is None else (cu_seqlens.shape[0] - 1, "N")
    z_shape = (sequences, k.shape[1], feature_count(feature_map, k.shape[3]))
    s = scan.state_tensor("initial_state[0]", state[0], (*z_shape, v.shape[3]), f"[{letter}, Hkv, F, Dv]", q)
    return s, scan.state_tensor("initial_state[1]", state[1], z_shape, f"[{letter}, Hkv, F]", q)
