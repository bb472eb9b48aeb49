"""Mechanisms that know one sequence at a time, over padded and packed batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .mask_rule import MaskRule


@torch.compiler.disable(
    reason="attn_hip, attn_s2 and attn_window take sequences one by one and need their bounds as numbers; "
    'compile without fullgraph=True, or use "attn"'
)
def spans_of(rule: MaskRule, batch: int, q_len: int, name: str) -> list[tuple[int, int, int, int, int]]:
    """(batch entry, first row, end row, first key, end key) of every sequence, kept on the rule so that the
    layers of one forward pass share them. Rows of padding belong to none.
    """
    if rule.spans is not None:
        return rule.spans
    if rule.q_ids is None or rule.k_ids is None:
        return [(b, 0, q_len, 0, rule.keys) for b in range(batch)]
    q_ids = rule.q_ids.expand(batch, -1).tolist()
    k_ids = rule.k_ids.expand(batch, -1).tolist()
    spans = []
    for b in range(batch):
        start = 0
        seen = set()
        keys = k_ids[b]
        while start < len(keys):
            end = start
            while end < len(keys) and keys[end] == keys[start]:
                end += 1
            segment = keys[start]
            if segment != -1:
                if segment in seen:
                    raise ValueError(
                        f"attention_mask of sequence {b} has gaps between the tokens it keeps, which {name} "
                        'does not support; pad on one side only (for generation: padding_side="left"), or '
                        'use "attn"'
                    )
                seen.add(segment)
                # Row i stands at key i + keys - q_len. Rows of padding are left out.
                shift = len(keys) - q_len
                first, last = max(start - shift, 0), max(end - shift, 0)
                if any(q_ids[b][i] != segment for i in range(first, last)):
                    raise ValueError(
                        f"attention_mask gives queries and keys of sequence {b} different segments, which "
                        f'{name} does not support; use "attn"'
                    )
                if last > first:
                    spans.append((b, first, last, start, end))
            start = end
    rule.spans = spans
    return spans


def over_sequences(
    attend: Callable[..., Any],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rule: MaskRule,
    sink_logits: Tensor | None,
    name: str,
) -> Tensor:
    """``attend(q, k, v, return_lse=True)`` of every sequence by itself; rows of padding are 0."""

    def one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if sink_logits is None:
            return attend(q, k, v, return_lse=False)
        # A sink takes e^z of the normaliser: out * e^lse / (e^lse + e^z).
        out, lse = attend(q, k, v, return_lse=True)
        return out * torch.sigmoid(lse - sink_logits[:, None]).unsqueeze(-1).to(out.dtype)

    if rule.layout is not None:
        raise ValueError(
            f"attention_mask is neither causal, windowed, packed nor padding, which {name} does not support; "
            'use "attn" for this model'
        )
    k, v = k[:, :, : rule.keys], v[:, :, : rule.keys]
    if rule.q_ids is None:
        return one(q, k, v)
    # As [B, Tq, H, Dv] in memory, which is what the model wants back.
    out = q.new_zeros(q.shape[0], q.shape[2], q.shape[1], v.shape[3])
    for b, first, end, key, key_end in spans_of(rule, q.shape[0], q.shape[2], name):
        rows = q[b : b + 1, :, first:end]
        part = one(rows, k[b : b + 1, :, key:key_end], v[b : b + 1, :, key:key_end])
        out[b, first:end] = part[0].transpose(0, 1)
    return out.transpose(1, 2)
