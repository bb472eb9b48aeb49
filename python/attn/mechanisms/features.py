"""Random features: maps whose inner products approximate a kernel, with the projection as an explicit
tensor.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..capability import dtype_name, statistics_dtype
from . import arguments as check
from .linear import linear_attention

KINDS = ("performer", "fast_transformers", "relu", "rff")
STABILIZERS = ("row", "none", "global", "running")


def random_features(x: Tensor, omega: Tensor, *, kind: str = "performer", stabilizer: str = "row") -> Tensor:
    r"""Random features of queries or keys, for :func:`attn.linear_attention` with ``feature_map="identity"``.

    With :math:`\tilde x = x D^{-1/4}`, :math:`u = \omega \tilde x`, :math:`h = |\tilde x|^2 / 2` and a
    stabilizer c:

    ===================  ==============================================================================
    kind                 features
    ===================  ==============================================================================
    performer            :math:`r^{-1/2} (e^{u - h - c} + 10^{-4})`, c from max u; r of them
    fast_transformers    :math:`(2r)^{-1/2} [e^{u - h - c}, e^{-u - h - c}]`; 2r of them. c from
                         max \|u\| per row, from :math:`|\tilde x|^2` (as released) otherwise
    relu                 :math:`\mathrm{relu}(u) + 10^{-3}`; r of them
    rff                  :math:`r^{-1/2} [\cos u, \sin u]`; 2r of them, of either sign
    ===================  ==============================================================================

    The products of the first two approximate :math:`e^{q \cdot k / \sqrt D}` for rows of omega drawn by
    :func:`attn.draw_omega`. Nothing is drawn in here: the same omega gives the same features, in training
    and in evaluation.

    Args:
        x: ``[..., T, D]``; float32, bfloat16, float16 or float64. Computed in float32 (float64 for float64).
        omega: ``[r, D]``; float32, or the dtype of x. Differentiable.
        kind: as above.
        stabilizer: where c is taken: ``"row"``, each token's own (right for queries, where it cancels; for
            keys it changes their relative weights); ``"global"``, the maximum over the tokens, as the
            released code has it for keys (causal results then depend on the future); ``"running"``, the
            maximum up to the token, which can be streamed but reweights keys; ``"none"``. A constant to
            autograd. relu and rff have none.

    Returns:
        ``[..., T, r]`` or ``[..., T, 2 r]`` in the dtype of x.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or value.

    References: Choromanski et al. 2021 (arXiv 2009.14794); Katharopoulos et al. (fast-transformers).
    """
    x, omega = check.is_tensor("x", x), check.is_tensor("omega", omega)
    check.one_of("kind", kind, KINDS)
    check.one_of("stabilizer", stabilizer, STABILIZERS)
    if not x.dtype.is_floating_point:
        raise TypeError(f"x must be a floating point tensor, got {dtype_name(x.dtype)}")
    if x.dim() < 2 or x.shape[-1] == 0:
        raise ValueError(f"x must be [..., T, D] with D >= 1, got shape {check.shape_text(x)}")
    if omega.dim() != 2 or omega.shape[1] != x.shape[-1] or omega.shape[0] == 0:
        raise ValueError(
            f"omega must be [r, D] with the D of x, {x.shape[-1]}, and r >= 1, "
            f"got shape {check.shape_text(omega)}"
        )
    check.same_place("omega", omega, x, "x")
    if omega.dtype not in (torch.float32, x.dtype):
        raise TypeError(
            f"omega must be float32 or the dtype of x, {dtype_name(x.dtype)}, got {dtype_name(omega.dtype)}"
        )
    kept = statistics_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        return _features(x.to(kept), omega.to(kept), kind, stabilizer).to(x.dtype)


def _features(x: Tensor, omega: Tensor, kind: str, stabilizer: str) -> Tensor:
    r, dim = omega.shape
    x = x * dim**-0.25
    u = x @ omega.mT
    if kind == "rff":
        return torch.cat([u.cos(), u.sin()], -1) * r**-0.5
    if kind == "relu":
        return torch.relu(u) + 1e-3
    norm = x.square().sum(-1, keepdim=True)
    if kind == "performer":
        shift = norm / 2 + _shift(u.detach(), stabilizer)
        return (torch.exp(u - shift) + 1e-4) * r**-0.5
    bound = u.detach().abs() if stabilizer == "row" else norm.detach()
    shift = norm / 2 + math.log(2 * r) / 2 + _shift(bound, stabilizer)
    return torch.cat([torch.exp(u - shift), torch.exp(-u - shift)], -1)


def _shift(bound: Tensor, stabilizer: str) -> Tensor:
    if stabilizer == "none" or bound.numel() == 0:
        return bound.new_zeros(())
    top = bound.amax(-1, keepdim=True)
    if stabilizer == "global":
        return top.amax(-2, keepdim=True)
    return top.cummax(-2).values if stabilizer == "running" else top


def draw_omega(
    features: int,
    dim: int,
    *,
    generator: torch.Generator | None = None,
    orthogonal: bool = True,
    regularized: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """A projection for :func:`attn.random_features`: rows distributed as standard normal vectors.

    Args:
        features: r, the number of rows.
        dim: D.
        generator: of random numbers; its device is that of the result. None: torch's default one.
        orthogonal: rows of a block of D are orthogonal to each other, which lowers the variance; their
            lengths are those of independent normal vectors.
        regularized: instead every row has length ``D ** 0.5``.
        dtype: of the result.

    Returns:
        ``[features, dim]``.

    Raises:
        TypeError, ValueError: features or dim is no int, or below 1.

    References: Choromanski et al. 2021 (arXiv 2009.14794); orthogonal rows: Yu et al. 2016 (arXiv
    1610.09072).
    """
    features, dim = check.integer("features", features, 1), check.integer("dim", dim, 1)
    device = None if generator is None else generator.device

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, dim, generator=generator, device=device, dtype=torch.float64)

    if orthogonal:
        blocks = []
        for first in range(0, features, dim):
            q, r = torch.linalg.qr(normal(dim).mT)
            # Signs that make the draw uniform over rotations.
            blocks.append((q * r.diagonal().sign()).mT[: min(dim, features - first)])
        rows = torch.cat(blocks)
    else:
        rows = torch.nn.functional.normalize(normal(features), dim=1)
    lengths = torch.full((features,), dim**0.5, dtype=rows.dtype, device=device)
    if not regularized:
        lengths = normal(features).norm(dim=1)
    return (rows * lengths[:, None]).to(dtype)


def random_feature_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    omega: Tensor,
    *,
    kind: str = "performer",
    causal: bool = False,
    stabilizer: str | None = None,
    **options: Any,
) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
    r"""Linear attention on random features: an unbiased estimate of softmax attention for positive kinds.

    ``linear_attention(random_features(q), random_features(k), v, feature_map="identity")``.

    Args:
        q, k, v: ``[B, H, Tq, D]``, ``[B, Hkv, Tk, D]``, ``[B, Hkv, Tk, Dv]``.
        omega: ``[r, D]``, see :func:`attn.draw_omega`.
        kind: as in :func:`attn.random_features`. rff features make masses that can cross 0.
        causal: row i sees keys up to i.
        stabilizer: of the keys (queries have their own, which cancels). Default: ``"global"``, causally
            ``"none"``: every other choice either looks into the future or reweights keys. Masked keys and
            other packed sequences take part in ``"global"``, so with ``key_mask`` or ``cu_seqlens`` the
            default is ``"none"`` too.
        options: eps, key_mask, cu_seqlens, initial_state, return_state, normalize of
            :func:`attn.linear_attention`.

    Returns:
        out ``[B, H, Tq, Dv]`` in the dtype of q (float16 is computed in float32: features span more than its
        range), or ``(out, state)``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or value.
        BackendError: no backend serves the device or dtype.
    """
    q, k, v = check.query_key_value("random_feature_attention", q, k, v)
    whole = options.get("key_mask") is None and options.get("cu_seqlens") is None
    if stabilizer is None:
        stabilizer = "global" if whole and not check.flag("causal", causal) else "none"
    if q.dtype == torch.float16:
        phi_q, phi_k, values = q.float(), k.float(), v.float()
    else:
        phi_q, phi_k, values = q, k, v
    phi_q = random_features(phi_q, omega, kind=kind)
    phi_k = random_features(phi_k, omega, kind=kind, stabilizer=stabilizer)
    found = linear_attention(phi_q, phi_k, values, feature_map="identity", causal=causal, **options)
    if isinstance(found, tuple):
        return found[0].to(q.dtype), found[1]
    return found.to(q.dtype)
