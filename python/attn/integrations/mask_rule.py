"""What a transformers model says about its attention mask, kept as a rule instead of a T x T tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..layout import BlockLayout

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

    transformers describes a mask as a combination of small functions of indices. The ones it ships that are
    intervals or segments are recognised and become flags and ids. Anything else (image blocks that see each
    other, a user's own function) is evaluated once per forward pass and kept as a bit-packed
    :class:`attn.BlockLayout`.
    """
    from transformers import masking_utils

    if isinstance(attention_mask, MaskRule):
        return attention_mask
    if mask_function is None:
        mask_function = masking_utils.causal_mask_function
    parts: list[tuple[str, dict[str, Any]]] = []
    known = _collect(mask_function, parts)
    names = {name for name, _ in parts}
    if isinstance(q_offset, Tensor) and (q_length > 1 or not known):
        q_offset = int(q_offset)
    if not isinstance(q_offset, Tensor):
        # Keys past the last row's position are room that the cache has not used yet; causal rows don't see
        # them. Other windows need the last row to stand at the last key, as the kernels take it.
        behind = q_offset + q_length - kv_offset
        if "causal" in names:
            known = known and behind <= kv_length
        elif names & {"window", "two-sided window"}:
            known = known and behind == kv_length
    if not known:
        assert isinstance(q_offset, int)
        mask = masking_utils.sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            allow_is_causal_skip=False,
            use_vmap=use_vmap,
            device=device,
        )
        return rule_of_mask(mask, q_length, kv_length)

    rule = MaskRule(kv_length)
    masks: list[Tensor] = []  # bool [B|1, kv_length]: keys that any row may see
    if isinstance(q_offset, Tensor):
        # One row at a position that only the device knows: where it ends is a mask of keys.
        position = torch.arange(kv_length, device=device) + kv_offset
        for name, values in parts:
            if name == "causal":
                masks.append((position <= q_offset)[None])
            elif name == "window":
                masks.append((position > q_offset - values["sliding_window"])[None])
            elif name == "two-sided window":
                masks.append(((position - q_offset).abs() <= values["sliding_window"])[None])
        parts = [p for p in parts if p[0] == "packed" or p[0] == "chunks"]
        row = q_offset.reshape(1)
    else:
        if "causal" in names:
            rule.keys = behind
        row = torch.arange(q_length, device=device) + q_offset
    key = torch.arange(rule.keys, device=device) + kv_offset

    def intersect(q_ids: Tensor, k_ids: Tensor) -> None:
        if rule.q_ids is not None and rule.k_ids is not None:  # pairs of ids, numbered
            base = torch.maximum(q_ids.max(), k_ids.max()) + 1
            q_ids, k_ids = rule.q_ids * base + q_ids, rule.k_ids * base + k_ids
        rule.q_ids, rule.k_ids = q_ids.int(), k_ids.int()

    for name, values in parts:
        if name == "causal":
            rule.causal = True
        elif name == "window":
            rule.left = _smaller(rule.left, values["sliding_window"] - 1)
        elif name == "two-sided window":
            rule.left = _smaller(rule.left, values["sliding_window"])
            rule.right = _smaller(rule.right, values["sliding_window"])
        elif name == "packed":
            ids = values["packed_sequence_mask"]
            intersect(ids[:, row], ids[:, key])
        elif name == "chunks":
            start, size = values["left_padding"].to(device)[:, None], values["chunk_size"]
            # Padding lies in chunks below 0; ids start at 0, because -1 means padding here.
            first = kv_length + kv_offset
            q_chunk = (row - start).div(size, rounding_mode="floor")
            intersect(q_chunk + first, (key - start).div(size, rounding_mode="floor") + first)
    if attention_mask is not None:
        padding = masking_utils.prepare_padding_mask(attention_mask, kv_length, kv_offset)
        assert padding is not None
        padding = padding[:, kv_offset : kv_offset + rule.keys].bool()
        if torch.compiler.is_compiling() or not bool(padding.all()):
            masks.append(padding)
    for mask in masks:
        if rule.q_ids is None or rule.k_ids is None:
            rule.q_ids = torch.zeros(1, q_length, dtype=torch.int32, device=device)
            rule.k_ids = torch.zeros(1, rule.keys, dtype=torch.int32, device=device)
        rule.k_ids = torch.where(mask, rule.k_ids, -1)
    return rule


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


# The functions of transformers.masking_utils that are rules, by the name of the function that makes them.
_RULES = {
    "causal_mask_function": "causal",
    "bidirectional_mask_function": "everything",
    "sliding_window_overlay.<locals>.inner_mask": "window",
    "sliding_window_bidirectional_overlay.<locals>.inner_mask": "two-sided window",
    "packed_sequence_mask_function.<locals>.inner_mask": "packed",
    "chunked_overlay.<locals>.inner_mask": "chunks",
}


def _collect(function: Callable[..., Any], parts: list[tuple[str, dict[str, Any]]]) -> bool:
    """The conjunction that `function` is, as (rule, its values); False if it is not made of known rules."""
    if getattr(function, "__module__", None) != "transformers.masking_utils":
        return False
    name = function.__qualname__
    code = getattr(function, "__code__", None)
    cells = getattr(function, "__closure__", None) or ()
    names = code.co_freevars if code is not None else ()
    values = {n: c.cell_contents for n, c in zip(names, cells, strict=True)}
    if name == "and_masks.<locals>.and_mask":
        return all(_collect(f, parts) for f in values["mask_functions"])
    if name == "remap_positions_for_packed_sequence.<locals>.inner_mask":
        # Positions count from each sequence's start; distances inside a sequence are the same.
        return _collect(values["mask_function"], parts)
    if name not in _RULES:
        return False
    parts.append((_RULES[name], values))
    return True
