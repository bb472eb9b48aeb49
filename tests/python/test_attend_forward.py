"""attn.attention and attn.block_sparse_attention: what the case table (test_attend_backward.py) can't say,
relations between calls, memory order, and inference without gradients.
"""

import math

import pytest
import torch

import attn
from attn import patterns, reference
from cases import CASES, Case
from tolerance import assert_as_exact_as

F32 = torch.float32
BY_ID = {case.id: case for case in CASES}


def exactly(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def tensors(*, B=2, H=4, Hkv=2, Tq=90, Tk=None, D=32, Dv=None, dtype=F32, seed=0):
    return Case("", B=B, H=H, Hkv=Hkv, Tq=Tq, Tk=Tq if Tk is None else Tk, D=D, Dv=Dv).inputs(
        dtype, seed=seed
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_inference_gives_the_same_bits(case):
    """Without lse and gradients another route is taken: no autograd node, gated tiles skipped."""
    inputs = case.inputs(F32)
    out, lse = attn.attention(inputs.q, inputs.k, inputs.v, **inputs.options, return_lse=True)
    alone = attn.attention(inputs.q, inputs.k, inputs.v, **inputs.options)
    exactly(alone, out)
    recorded = attn.attention(inputs.q.requires_grad_(), inputs.k, inputs.v, **inputs.options)
    exactly(recorded.detach(), out)
    assert lse.dtype == F32
    assert lse.is_contiguous()


def test_agrees_with_sdpa():
    x = tensors(Hkv=4)
    expected = torch.nn.functional.scaled_dot_product_attention(x.q, x.k, x.v, is_causal=True)
    torch.testing.assert_close(attn.attention(x.q, x.k, x.v, causal=True), expected)


def test_window_counts_as_flash_attention_does():
    x = tensors(Tq=20)
    lone = attn.attention(x.q, x.k, x.v, window=(0, 0))
    group = x.v.repeat_interleave(2, 1)
    torch.testing.assert_close(lone, group)


def test_grouped_heads_are_repeated_heads():
    x = tensors(H=6, Hkv=2)
    k, v = x.k.repeat_interleave(3, 1), x.v.repeat_interleave(3, 1)
    torch.testing.assert_close(
        attn.attention(x.q, x.k, x.v, causal=True), attn.attention(x.q, k, v, causal=True)
    )


def test_packed_sequences_are_separate_calls():
    lengths = (40, 0, 100, 1, 70)
    case = Case("", H=4, Hkv=2, lengths_q=lengths)
    x = case.inputs(F32)
    out, lse = attn.attention(x.q, x.k, x.v, **x.options, causal=True, return_lse=True)
    begin = 0
    for n in lengths:
        part = slice(begin, begin + n)
        begin += n
        pieces = (t[:, :, part] for t in (x.q, x.k, x.v))
        torch.testing.assert_close(
            (out[:, :, part], lse[:, :, part]), attn.attention(*pieces, causal=True, return_lse=True)
        )


def test_rows_past_the_last_sequence_are_empty():
    x = tensors(B=1, Tq=50)
    x.q[:, :, 30:] = x.k[:, :, 20:] = x.v[:, :, 20:] = math.nan
    cu = torch.tensor([0, 30], dtype=torch.int32), torch.tensor([0, 20], dtype=torch.int32)
    q, k, v = (t.requires_grad_() for t in (x.q, x.k, x.v))
    out, lse = attn.attention(q, k, v, cu_seqlens_q=cu[0], cu_seqlens_k=cu[1], return_lse=True)
    exactly(out[:, :, 30:], torch.zeros_like(out[:, :, 30:]))
    assert (lse[:, :, 30:] == -math.inf).all()
    expected = attn.attention(q[:, :, :30], k[:, :, :20], v[:, :, :20])
    torch.testing.assert_close(out[:, :, :30], expected)
    grads = torch.autograd.grad(out, (q, k, v), torch.full_like(out, 1.0))
    for grad, end in zip(grads, (30, 20, 20), strict=True):
        assert grad.isfinite().all()
        assert (grad[:, :, end:] == 0).all()


def test_segments_are_packed_sequences():
    x = Case("", lengths_q=(40, 30, 20)).inputs(F32)
    ids = torch.tensor([0] * 40 + [1] * 30 + [2] * 20, dtype=torch.int32)[None]
    for causal in (False, True):
        torch.testing.assert_close(
            attn.attention(x.q, x.k, x.v, causal=causal, segment_ids=ids),
            attn.attention(x.q, x.k, x.v, causal=causal, **x.options),
        )


def test_cu_seqlens_k_defaults_to_that_of_q():
    x = Case("", lengths_q=(40, 30)).inputs(F32)
    cu = x.options["cu_seqlens_q"]
    exactly(
        attn.attention(x.q, x.k, x.v, cu_seqlens_q=cu),
        attn.attention(x.q, x.k, x.v, cu_seqlens_q=cu, cu_seqlens_k=cu),
    )


def test_layouts_are_flags():
    x = tensors(B=1, Tq=200)
    for layout, flags in [
        (patterns.sliding_window(200, 200, window=(30, 20)), {"window": (30, 20)}),
        (
            patterns.sink_window(200, 200, window=40, sink_tokens=5),
            {"window": (40, 0), "sink_tokens": 5, "causal": True},
        ),
        (
            attn.BlockLayout.from_mask(
                torch.ones(1, 1, 4, 4).bool(), block_q=64, block_k=64, q_len=200, kv_len=200
            ),
            {},
        ),
    ]:
        listed = attn.block_sparse_attention(x.q, x.k, x.v, layout, return_lse=True)
        torch.testing.assert_close(listed, attn.attention(x.q, x.k, x.v, **flags, return_lse=True))
        exactly(listed, attn.attention(x.q, x.k, x.v, layout=layout, return_lse=True))


def test_key_log_weight_counts_repeats():
    x = tensors(B=1, H=2, Tq=30)
    times = torch.randint(0, 4, (30,), generator=torch.Generator().manual_seed(1))
    k, v = (t.repeat_interleave(times, 2) for t in (x.k, x.v))
    torch.testing.assert_close(
        attn.attention(x.q, x.k, x.v, key_log_weight=times.log(), return_lse=True),
        attn.attention(x.q, k, v, return_lse=True),
    )


def test_sink_logit_is_a_key_without_value():
    x = tensors(H=2, D=16)
    z = torch.tensor([0.5, -math.inf])
    out, lse = attn.attention(x.q, x.k, x.v, sink_logits=z, return_lse=True)
    plain, plain_lse = attn.attention(x.q, x.k, x.v, return_lse=True)
    expected = torch.logaddexp(plain_lse, z[None, :, None])
    torch.testing.assert_close(lse, expected)
    torch.testing.assert_close(out, plain * (plain_lse - expected).exp()[..., None])


def test_merged_parts_are_the_whole():
    x = tensors(Tq=60, Tk=150)
    kw = {"softcap": 5.0, "return_lse": True}
    parts = [
        attn.attention(x.q, x.k[:, :, a:b], x.v[:, :, a:b], **kw) for a, b in [(0, 64), (64, 65), (65, 150)]
    ]
    torch.testing.assert_close(
        attn.merge_states(*zip(*parts, strict=True)), attn.attention(x.q, x.k, x.v, **kw)
    )


@pytest.mark.parametrize(
    "shape", [(2, 5, 40, 16), (1, 3, 1, 8), (2, 1, 30, 8), (0, 2, 5, 4), (2, 3, 0, 4)], ids=str
)
def test_out_lies_as_q_does(shape):
    b, h, t, d = shape
    contiguous = torch.randn(shape)
    assert attn.attention(contiguous, contiguous, contiguous).is_contiguous()
    transposed = torch.randn(b, t, h, d).transpose(1, 2)
    out = attn.attention(transposed, contiguous, contiguous)
    assert out.transpose(1, 2).is_contiguous()
    q, k, v = (x.requires_grad_() for x in (transposed, contiguous, contiguous.clone()))
    grads = torch.autograd.grad(attn.attention(q, k, v).sum(), (q, k, v))
    assert grads[0].transpose(1, 2).is_contiguous()
    assert grads[1].is_contiguous()


def test_out_may_be_changed_in_place():
    """It is no view of anything, whatever its strides."""
    x = tensors()
    q = x.q.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    out = attn.attention(q, x.k, x.v)
    expected = 2 * out
    exactly(out.mul_(2), expected)


def test_strides_without_copy_and_with():
    x = tensors()
    expected = attn.attention(x.q, x.k, x.v)
    wide = torch.full((2, 4, 90, 50), math.nan)
    wide[..., 7:39] = x.q
    exactly(attn.attention(wide[..., 7:39], x.k, x.v), expected)
    scattered = x.k.mT.contiguous().mT  # last dimension not contiguous: copied, not refused
    exactly(attn.attention(x.q, scattered, x.v), expected)
    shared = x.k[:1].expand(2, -1, -1, -1)
    exactly(attn.attention(x.q, shared, x.v), attn.attention(x.q, shared.contiguous(), x.v))
    with pytest.raises(RuntimeError, match="k must be contiguous in its last dimension"):
        torch.ops.attn.attend_forward(x.q, scattered, x.v)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    x = tensors()
    with torch.autocast("cpu", dtype):
        out = attn.attention(x.q, x.k, x.v, causal=True)
        mixed = attn.attention(x.q.to(dtype), x.k, x.v, causal=True)
    assert out.dtype == dtype
    exactly(out, attn.attention(*(t.to(dtype) for t in (x.q, x.k, x.v)), causal=True))
    exactly(mixed, out)
    q = x.q.requires_grad_()
    with torch.autocast("cpu", dtype):
        attn.attention(q, x.k, x.v).float().square().sum().backward()
    assert q.grad.dtype == F32
    double = x.q.double()
    with torch.autocast("cpu", dtype):
        assert attn.attention(double, double, double).dtype == torch.float64


def test_modifiers_in_any_float_type_and_shape():
    x = tensors()
    weight, gate = torch.randn(90), torch.rand(4, 1)
    expected = attn.attention(
        x.q, x.k, x.v, key_log_weight=weight.expand(2, 2, 90), head_gate=gate.expand(2, 4, 90)
    )
    exactly(attn.attention(x.q, x.k, x.v, key_log_weight=weight.double(), head_gate=gate), expected)


def test_large_and_far_flags_mean_everything():
    x = tensors(Tq=40)
    far = 2**31 - 1
    exactly(attn.attention(x.q, x.k, x.v, window=(far, far), sink_tokens=far), attn.attention(x.q, x.k, x.v))
    out, _ = torch.ops.attn.attend_forward(x.q, x.k, x.v, False, 2**62, 2**62, 2**62)
    exactly(out, attn.attention(x.q, x.k, x.v))


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [F32, torch.bfloat16], ids=str)
def test_long_rows_are_split_and_merged(dtype):
    """Few rows and more than 4096 keys: the keys are cut into parts."""
    case = Case("", H=4, Hkv=2, Tq=3, Tk=9000, flags={"causal": True})
    x = case.inputs(dtype)
    out, lse = attn.attention(x.q, x.k, x.v, causal=True, return_lse=True)
    exact, exact_lse = reference.attention(x.q, x.k, x.v, causal=True, return_lse=True)
    plain = torch.nn.functional.scaled_dot_product_attention(
        x.q, x.k, x.v, attn_mask=torch.ones(3, 9000, dtype=torch.bool).tril(8997), enable_gqa=True
    )
    assert_as_exact_as(out, plain, exact)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.isa
@pytest.mark.parametrize(("dtype", "dim"), [(F32, 64), (F32, 33), (torch.bfloat16, 64)], ids=str)
def test_many_rows_of_few_keys(dtype, dim):
    """Rows taken in turn, with what the rows before have packed, give the same bits as in parts."""
    rows = (8 << 20) // (dim * dtype.itemsize) + 300
    q, k, v = (torch.randn(1, 2, n, dim).to(dtype) for n in (rows, 20, 20))
    out, lse = attn.attention(q, k, v, return_lse=True)
    parts = [attn.attention(x, k, v, return_lse=True) for x in q.split(rows // 512 * 128, 2)]
    exactly(torch.cat([x for x, _ in parts], 2), out)
    exactly(torch.cat([x for _, x in parts], 2), lse)


def test_meta_tensors():
    x = tensors(Dv=24)
    q, k, v = (t.to("meta") for t in (x.q.transpose(1, 2).contiguous().transpose(1, 2), x.k, x.v))
    out, lse = attn.attention(q, k, v, causal=True, return_lse=True)
    assert (out.shape, out.dtype, lse.shape) == ((2, 4, 90, 24), F32, (2, 4, 90))
    assert out.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scale", [1e-3, 1.0, -1.0, 0.0])
def test_huge_logits(dtype, scale):
    """Logits so large that their own rounding is more than an exponential can hold."""
    generator = torch.Generator().manual_seed(4)
    q = torch.randint(1, 64, (1, 2, 40, 16), generator=generator).to(dtype) * 2.0**30
    k = torch.zeros(1, 2, 70, 16, dtype=dtype)
    k[..., 0] = torch.randperm(70, generator=generator).to(dtype)  # exact in bf16
    v = torch.randn(1, 2, 70, 24, generator=generator).to(dtype)
    out, lse = attn.attention(q, k, v, scale=scale, return_lse=True)
    order = k[..., 0] * scale
    if scale == 0:
        expected = v.double().mean(2, keepdim=True).expand(1, 2, 40, 24)
    else:
        expected = v.gather(2, order.argmax(-1)[..., None, None].expand(1, 2, 1, 24)).expand(1, 2, 40, 24)
    torch.testing.assert_close(
        out.double(), expected.double(), rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5
    )
    wanted = reference.masked_attention(
        q.double(), k.double(), v.double(), torch.ones(1, 1, 40, 70, dtype=torch.bool), scale=scale
    )[1]
    torch.testing.assert_close(lse.double(), wanted, rtol=1e-5, atol=1e-5)
