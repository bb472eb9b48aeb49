"""How the masks of transformers are read: as rules where they are rules, else token by token."""

import pytest
import torch

m = pytest.importorskip("transformers.masking_utils", reason="needs transformers (the extra `transformers`)")

from attn.integrations.mask_rule import rule_of_mask_function  # noqa: E402
from attn.integrations.transformers import register  # noqa: E402
from attn.reference.mask import token_mask  # noqa: E402
from decoders import batch, decoder, llama  # noqa: E402


def test_masks_that_look_like_rules():
    """A user's own functions: read where they are rules, evaluated where they only resemble one."""
    groups = torch.tensor([[0, 1, 0, 0, 2, 2, 1, 3, 3]])
    kept = torch.tensor([[1, 1, 0, 1, 1, 0, 1, 1, 1]], dtype=torch.bool)
    causal = m.causal_mask_function
    rules = {
        "strict": (lambda b, h, q, k: q - k > 2, False),
        "lag": (lambda b, h, q, k: k < q, False),
        "window": (lambda b, h, q, k: (q - k < 4) & (k <= q), True),
        "both sides": (lambda b, h, q, k: abs(k - q) < 3, True),
        "ahead": (lambda b, h, q, k: k - q <= 2, True),
        "groups": (m.and_masks(causal, lambda b, h, q, k: groups[b, q] == groups[b, k]), True),
        "two groupings": (
            lambda b, h, q, k: (groups[b, q] == groups[b, k]) & (groups[b, q] // 2 == groups[b, k] // 2),
            True,
        ),
        "keys": (m.and_masks(causal, lambda b, h, q, k: kept[b, k]), True),
        "rows": (m.and_masks(causal, lambda b, h, q, k: kept[b, q]), False),
        # What packed sequences do to positions, with numbers that are none.
        "order of groups": (lambda b, h, q, k: groups[b, k] <= groups[b, q], False),
        "remapped": (m.remap_positions_for_packed_sequence(causal, groups), False),
        "union": (m.or_masks(causal, lambda b, h, q, k: kept[b, k]), False),
        "negated": (lambda b, h, q, k: ~(k <= q), False),
        "late rows": (lambda b, h, q, k: (q >= 3) & (k <= q), False),
    }
    for name, (function, is_rule) in rules.items():
        arguments = {"batch_size": 1, "q_length": 9, "kv_length": 9, "mask_function": function}
        expected = m.sdpa_mask(**arguments, allow_is_causal_skip=False)
        rule = rule_of_mask_function(**arguments)
        assert (rule.layout is None) == is_rule, name
        ids = None if rule.q_ids is None else (rule.q_ids, rule.k_ids)
        window = (rule.left, rule.right)
        actual = (
            token_mask(9, 9, causal=rule.causal, window=window, segment_ids=ids)
            if is_rule
            else rule.layout.to_token_mask()
        )
        assert torch.equal(actual.expand(1, 1, 9, 9), expected), name


def test_masks_are_rules():
    """What transformers describes by functions of indices becomes no T x T tensor and means the same."""
    padding = torch.ones(2, 12, dtype=torch.bool)
    padding[0, :4] = False
    holes = padding.clone()
    holes[1, 5] = False
    packs = torch.tensor([[0] * 5 + [1] * 7, [0] * 12])
    start = torch.tensor([4, 0])
    packed = m.and_masks(m.causal_mask_function, m.packed_sequence_mask_function(packs))
    chunked = m.chunked_causal_mask_function(3, start)
    two_sided = [m.sliding_window_bidirectional_mask_function(3)]
    cases = [
        (m.causal_mask_function, None),
        (m.causal_mask_function, holes),
        (m.bidirectional_mask_function, padding),
        (m.sliding_window_causal_mask_function(4), padding),
        (two_sided[0], holes),
        (packed, None),
        (packed, holes),
        (m.and_masks(chunked, m.packed_sequence_mask_function(packs)), None),
        (chunked, padding),
    ]
    for function, mask in cases:
        for rows, q_offset, keys, kv_offset in ((12, 0, 12, 0), (3, 9, 12, 0), (1, 7, 12, 0), (2, 8, 7, 3)):
            arguments = {
                "batch_size": 2,
                "q_length": rows,
                "kv_length": keys,
                "q_offset": q_offset,
                "kv_offset": kv_offset,
                "mask_function": function,
                "attention_mask": mask,
            }
            expected = m.sdpa_mask(**arguments, allow_is_causal_skip=False)
            for offset in (q_offset, torch.tensor(q_offset)) if rows == 1 else (q_offset,):
                rule = rule_of_mask_function(**{**arguments, "q_offset": offset})
                if rule.layout is not None:  # a window around a row in the middle of a cache
                    assert function in two_sided
                    assert q_offset + rows - kv_offset != keys
                    assert torch.equal(rule.layout.to_token_mask(), expected)
                    continue
                ids = None if rule.q_ids is None else (rule.q_ids, rule.k_ids)
                actual = token_mask(
                    rows, rule.keys, causal=rule.causal, window=(rule.left, rule.right), segment_ids=ids
                )
                full = torch.zeros(2, 1, rows, keys, dtype=torch.bool)
                full[..., : rule.keys] = actual
                assert torch.equal(full, expected.expand(2, 1, rows, keys)), (function, rows, q_offset)


def test_other_masks_are_exact():
    """Image tokens that see each other, and a mask that the user made."""
    blocks = torch.tensor([[-1, 0, 0, 0, -1, -1, 1, 1, -1]])
    function = m.or_masks(m.causal_mask_function, m.blockwise_overlay(blocks))
    arguments = {"batch_size": 1, "q_length": 9, "kv_length": 9, "mask_function": function}
    rule = rule_of_mask_function(**arguments)
    expected = m.sdpa_mask(**arguments, allow_is_causal_skip=False)
    assert torch.equal(rule.layout.to_token_mask(), expected)

    register()
    model, _ = decoder(llama)
    ids, _ = batch("left", lengths=(20, 20))
    prepared = torch.rand(2, 1, 20, 20, generator=torch.Generator().manual_seed(2)) > 0.5
    prepared |= torch.eye(20, dtype=torch.bool)
    additive = torch.zeros(prepared.shape).masked_fill(~prepared, torch.finfo(torch.float32).min)
    with torch.no_grad():
        plain = model(input_ids=ids, attention_mask=prepared).logits
        model.set_attn_implementation("attn")
        for mask in (prepared, additive):
            logits = model(input_ids=ids, attention_mask=mask).logits
            torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-4)
