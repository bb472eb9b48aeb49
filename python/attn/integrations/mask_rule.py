"""What a transformers model says about its attention mask, kept as a rule instead of a T x T tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..layout import BlockLayout
from .mask_symbols import Band, Keys, Segments, Shifted, read

BLOCK = 64  # of layouts for masks that no rule describes


@dataclass
class MaskRule:
    """Row i at position ``p = i + keys - Tq`` sees key ``t < keys`` if t lies in the window, is not behind p
    (causal), has the row's id, and the layout keeps it.
    """

    keys: int  # the first so many keys count; a static cache has room for more
    causal: bool = False
    left: int = -1  # keys besides the diagonal, -1 = all
    right: int = -1
    q_ids: Tensor | None = None  # int32 [B|1, Tq]: packed sequences, chunks
    k_ids: Tensor | None = None  # int32 [B|1, keys]: the same, padding is -1
    layout: BlockLayout | None = None  # what the above cannot say
    spans: list[tuple[int, int, int, int, int]] | None = field(default=None, repr=False)  # see sequences.py

    # generate() hands a prepared mask back to the model, which asks whether it is a padding mask [B, T].
    ndim = 4

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (1, 1, 0, self.keys)


def rule_of_mask_function(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Any = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **others: Any,
) -> MaskRule:
    """The mask function of ``AttentionMaskInterface``.

    transformers describes a mask by a function of indices. What is made of intervals, segments and sets of
    keys becomes flags and ids (:mod:`.mask_symbols`). Anything else (image blocks that see each other, a
    user's own function) is evaluated once per forward pass and kept as a bit-packed
    :class:`attn.BlockLayout`.
    """
    from transformers import masking_utils

    if isinstance(attention_mask, MaskRule):
        return attention_mask
    if mask_function is None:
        mask_function = masking_utils.causal_mask_function
    row = torch.arange(q_length, device=device) + q_offset
    key = torch.arange(kv_length, device=device) + kv_offset
    parts = read(mask_function, row, key)
    if parts is None or not _places_are_kept(parts):
        parts = None
    if isinstance(q_offset, Tensor) and (q_length > 1 or parts is None):
        if torch.compiler.is_compiling():
            raise ValueError(
                f"{q_length} queries of a static cache can't be compiled with attn, because their place is a "
                "tensor; compile the step of one token (what generate() does), or give no cache"
            )
        q_offset = int(q_offset)
    if parts is not None and not isinstance(q_offset, Tensor):
        # Keys past the last row's position are room that the cache has not used yet; causal rows don't see
        # them. Other windows need the last row to stand at the last key, as the kernels take it.
        behind = q_offset + q_length - kv_offset
        bands = [p for p in parts if isinstance(p, Band)]
        if not (behind <= kv_length if _is_causal(bands) else not bands or behind == kv_length):
            parts = None
    if parts is None:
        if torch.compiler.is_compiling():
            raise ValueError(
                "mask_function is neither causal, windowed, packed nor padding, so its mask is evaluated, "
                "which can't be compiled; call the model without torch.compile, or compile it with sdpa"
            )
        mask = masking_utils.sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=int(q_offset),
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            allow_is_causal_skip=False,
            use_vmap=use_vmap,
            device=device,
        )
        return rule_of_mask(mask, q_length, kv_length)

    rule = MaskRule(kv_length)
    masks = [p.kept for p in parts if isinstance(p, Keys)]  # bool [B|1, kv_length]: keys any row may see
    bands = [p for p in parts if isinstance(p, Band)]
    if isinstance(q_offset, Tensor):
        # One row at a position that only the device knows: where it ends is a mask of keys.
        masks += [_one_row(band, row, key) for band in bands]
    else:
        _set_window(rule, bands, behind)
    segments = [p for p in parts if isinstance(p, Segments)]
    if segments:
        rule.q_ids, rule.k_ids = _numbered(segments, rule.keys)
    if attention_mask is not None:
        padding = masking_utils.prepare_padding_mask(attention_mask, kv_length, kv_offset)
        assert padding is not None
        padding = padding[:, kv_offset : kv_offset + kv_length].bool()
        if torch.compiler.is_compiling() or not bool(padding[:, : rule.keys].all()):
            masks.append(padding)
    for mask in masks:
        _hide_keys(rule, mask, q_length, device)
    return rule


def _set_window(rule: MaskRule, bands: list[Band], behind: int) -> None:
    """behind: the key after the last row's position."""
    if _is_causal(bands):
        rule.causal, rule.keys = True, behind
    for band in bands:
        rule.left = _smaller(rule.left, -1 if band.left is None else band.left)
        if band.right != 0:
            rule.right = _smaller(rule.right, -1 if band.right is None else band.right)


def _hide_keys(rule: MaskRule, kept: Tensor, q_length: int, device: torch.device | str) -> None:
    if rule.q_ids is None or rule.k_ids is None:
        rule.q_ids = torch.zeros(1, q_length, dtype=torch.int32, device=device)
        rule.k_ids = torch.zeros(1, rule.keys, dtype=torch.int32, device=device)
    rule.k_ids = torch.where(kept[:, : rule.keys], rule.k_ids, -1)


def _is_causal(bands: list[Band]) -> bool:
    return any(band.right is not None and band.right == 0 for band in bands)


def _one_row(band: Band, row: Tensor, key: Tensor) -> Tensor:
    kept = torch.ones_like(key, dtype=torch.bool)
    if band.left is not None:
        kept = kept & (key >= row - band.left)
    if band.right is not None:
        kept = kept & (key <= row + band.right)
    return kept[None]


def _numbered(segments: list[Segments], keys: int) -> tuple[Tensor, Tensor]:
    """Ids from 0 on that are equal where all numbers are: int32 ``[B|1, Tq]`` and ``[B|1, keys]``."""
    q_ids = k_ids = None
    for segment in segments:
        rows, places = segment.rows, segment.keys[:, :keys]
        least = torch.minimum(rows.min(), places.min())  # -1 means padding here
        rows, places = rows - least, places - least
        if q_ids is None or k_ids is None:
            q_ids, k_ids = rows, places
        else:
            base = torch.maximum(rows.max(), places.max()) + 1
            q_ids, k_ids = q_ids * base + rows, k_ids * base + places
    assert q_ids is not None
    assert k_ids is not None
    return q_ids.int(), k_ids.int()


def _places_are_kept(parts: list[Any]) -> bool:
    """Whether positions that start over in every sequence leave distances inside a segment as they are. In a
    compiled graph this is an assertion, which runs with the model.
    """
    for shift in (p for p in parts if isinstance(p, Shifted)):
        if shift.rows.shape[1] != shift.keys.shape[1]:
            return False
        same = (shift.rows == shift.keys).all()
        start = shift.keys.diff() != 0
        for segment in parts:
            if isinstance(segment, Segments):
                step = segment.keys.diff()
                # Ids that grow: a segment is one stretch, and its shift is that of its start.
                same = same & (segment.rows == segment.keys).all() & (step >= 0).all()
                start = start & (step == 0)
        same = same & ~start.any()
        if torch.compiler.is_compiling():
            torch._assert_async(same, "position_ids of a packed batch must count up inside every sequence")
        elif not bool(same):
            return False
    return True


def rule_of_mask(mask: Any, q_length: int, kv_length: int) -> MaskRule:
    """A prepared mask: bool or additive ``[B|1, H|1, q_length, kv_length]``, or a FlexAttention BlockMask."""
    if not isinstance(mask, Tensor):
        if type(mask).__name__ == "BlockMask":
            return MaskRule(kv_length, layout=BlockLayout.from_block_mask(mask))
        raise TypeError(
            f"attention_mask must be what the registered mask function made, a 4-dimensional tensor or a "
            f"BlockMask, got {type(mask).__name__}"
        )
    if mask.dim() != 4 or mask.shape[2] != q_length or mask.shape[3] < kv_length:
        raise ValueError(
            f"attention_mask must be [B, 1, {q_length}, {kv_length}] when it comes prepared, got shape "
            f"{list(mask.shape)}; a padding mask [B, T] goes to the model, which prepares it"
        )
    mask = mask[..., :kv_length]
    if mask.dtype != torch.bool:
        kept = mask == 0
        if not bool((kept | (mask <= torch.finfo(mask.dtype).min / 2)).all()):
            raise ValueError(
                "attention_mask must hold 0 (keep) and -inf or the dtype's lowest value (drop), got other "
                "values; a bias on the logits is not supported here, use sdpa or eager for this model"
            )
        mask = kept
    return MaskRule(kv_length, layout=BlockLayout.from_token_mask(mask.contiguous(), BLOCK, BLOCK))


def with_window(rule: MaskRule, left: int, right: int) -> MaskRule:
    """The rule with at most so many keys to the left and right; -1 = as before."""
    return replace(rule, left=_smaller(rule.left, left), right=_smaller(rule.right, right))


def _smaller(a: int, b: int) -> int:
    return max(a, b) if a < 0 or b < 0 else min(a, b)
