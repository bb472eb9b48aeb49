"""attn.flow_attention and its step against the float64 reference; the faults of the released code."""

import pytest
import torch

import attn
import eager_scan
from attn import reference
from scan_oracle import DTYPES, by_sequence, check, draw, grouped

OPS = torch.ops.attn

# B, H, Hkv, Tq, Tk, D, Dv
SHAPES = {
    "one segment": (2, 2, 2, 70, 70, 8, 8),
    "odd widths": (1, 4, 2, 90, 90, 6, 5),
    "segments": (1, 1, 1, 700, 700, 64, 96),
    "256": (1, 1, 1, 130, 130, 256, 64),
    "320": (1, 1, 1, 70, 70, 32, 320),
    "one token": (1, 2, 1, 1, 1, 16, 16),
}
CROSS = {"n > m": (1, 2, 2, 300, 37, 16, 24), "n < m": (2, 2, 1, 33, 520, 8, 8)}


def inputs(shape, dtype, seed=0):
    b, h, hkv, n, m, d, dv = shape
    return draw((b, h, n, d), (b, hkv, m, d), (b, hkv, m, dv), seed=seed, dtype=dtype)


def eager(causal, **options):
    function = eager_scan.flow_attention_causal if causal else eager_scan.flow_attention
    return lambda q, k, v: function(q, k, v, **options)


def ours(**options):
    return lambda q, k, v: attn.flow_attention(q, k, v, **options)


def exact(**options):
    return lambda q, k, v: reference.flow_attention(q, k, v, **options)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("name", [*SHAPES, *CROSS])
def test_against_reference(name, causal, dtype):
    shape = {**SHAPES, **CROSS}[name]
    if causal and name in CROSS:
        return
    # The released constants cut half of the flows to the same number; 5 lets them compete.
    options = {"clamp": 5.0} if name == "odd widths" else {}
    plain = grouped(eager(causal, **options), shape[1] // shape[2])
    check(ours(causal=causal, **options), plain, exact(causal=causal, **options), inputs(shape, dtype), name)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(
    "options",
    [
        {"eps_outside": True, "eps": 1e-3},
        {"clamp": None},
        {"clamp": 0.9, "eps": 0.0},
        {"competition": "head", "clamp": None},
        {"source_norm": True},
    ],
    ids=str,
)
def test_variants(options, causal):
    if causal and "competition" in options:
        return
    for shape in (SHAPES["odd widths"], *([] if causal else CROSS.values())):
        x = inputs(shape, torch.float64)
        same = exact(causal=causal, **options)
        check(ours(causal=causal, **options), same, same, x, str(options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_padding_is_absent(causal, dtype):
    """The released NLP code computes its padding mask and throws it away; zeroing v instead is off by a
    third. Here a masked token, NaN or not, changes nothing, and its row and gradients are 0.
    """
    g = torch.Generator().manual_seed(2)
    mask = torch.rand(2, 300, generator=g) < 0.6
    mask[1, 5:] = False
    q, k, v = inputs((2, 4, 2, 300, 300, 8, 12), dtype)
    poisoned = [torch.where(mask[:, None, :, None], x, torch.nan) for x in (q, k, v)]
    run = ours(causal=causal, query_mask=mask, key_mask=mask)
    plain = by_sequence(grouped(eager(causal), 2), mask=mask)
    truth = by_sequence(exact(causal=causal), mask=mask)
    check(
        lambda *x: run(*(torch.where(mask[:, None, :, None], y, torch.nan) for y in x)),
        plain,
        truth,
        (q, k, v),
        "mask",
    )
    out = run(*poisoned)
    assert (out.masked_select(~mask[:, None, :, None]) == 0).all()
    if dtype == torch.float32:
        for b in range(2):
            alone = ours(causal=causal)(*(x[b : b + 1, :, mask[b]] for x in (q, k, v)))
            assert torch.equal(out[b : b + 1, :, mask[b]], alone)


def test_cross_masks():
    g = torch.Generator().manual_seed(2)
    q, k, v = inputs((2, 2, 2, 40, 60, 8, 8), torch.float64)
    masks = {
        "query_mask": torch.rand(2, 40, generator=g) < 0.6,
        "key_mask": torch.rand(2, 60, generator=g) < 0.6,
    }
    masks["key_mask"][1] = False
    truth = exact(**masks)
    check(ours(**masks), truth, truth, (q, k, v), "two masks")
    assert (ours(**masks)(q, k, v)[1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_packed(causal, dtype):
    cu = torch.tensor([0, 300, 300, 301, 390], dtype=torch.int32)
    x = inputs((1, 2, 1, 400, 400, 8, 8), dtype)
    run = ours(causal=causal, cu_seqlens=cu)
    plain, truth = by_sequence(grouped(eager(causal), 2), cu), by_sequence(exact(causal=causal), cu)
    check(run, plain, truth, x, "packed")
    alone = ours(causal=causal)(*(t[:, :, 301:390] for t in x))
    assert torch.equal(run(*x)[:, :, 301:390], alone)


@pytest.mark.parametrize("shape", [(1, 2, 1, 7, 7, 3, 2), (2, 1, 1, 5, 9, 2, 3)], ids=str)
def test_gradcheck(shape):
    x = [t.requires_grad_() for t in inputs(shape, torch.float64)]
    for causal in (False, True)[: 1 + (shape[3] == shape[4])]:
        for clamp in (None, 1.0):
            assert torch.autograd.gradcheck(ours(causal=causal, clamp=clamp, eps_outside=True), x)


@pytest.mark.parametrize("tokens", [130, 700])
def test_future_does_not_matter(tokens):
    q, k, v = inputs((1, 2, 2, tokens, tokens, 16, 16), torch.float32)
    first = ours(causal=True)(q, k, v)
    for cut in (1, 65, 129):
        later = [torch.cat([x[:, :, :cut], torch.full_like(x[:, :, cut:], torch.nan)], 2) for x in (q, k, v)]
        assert torch.equal(ours(causal=True)(*later)[:, :, :cut], first[:, :, :cut])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_steps_are_the_causal_form(dtype):
    q, k, v = inputs((2, 4, 2, 40, 40, 6, 10), dtype)
    state, rows = None, []
    for t in range(40):
        out, state = attn.flow_attention_step(*(x[:, :, t : t + 1] for x in (q, k, v)), state, clamp=5.0)
        rows.append(out)
    assert sum(x[0, 0].numel() for x in state[:3]) == 4 * 6 + 1 + 6 * 10
    check_rows = torch.cat(rows, 2)
    truth = reference.flow_attention(q, k, v, causal=True, clamp=5.0)
    plain = grouped(eager(True, clamp=5.0), 2)(q, k, v)
    eager_scan_error = (plain.double() - truth).abs().max()
    assert (check_rows.double() - truth).abs().max() <= 2 * eager_scan_error + 1e-5 * truth.abs().max()
    whole, after = attn.flow_attention(q, k, v, causal=True, clamp=5.0, return_state=True)
    for ours_, theirs in zip(after, state, strict=True):
        error = (ours_ - theirs).abs().max()
        assert error <= (1e-2 if dtype == torch.bfloat16 else 1e-5) * theirs.abs().max()
    # A prompt at once, then steps.
    head = [x[:, :, :30] for x in (q, k, v)]
    _, state = attn.flow_attention(*head, causal=True, clamp=5.0, return_state=True)
    for t in range(30, 40):
        out, state = attn.flow_attention_step(*(x[:, :, t : t + 1] for x in (q, k, v)), state, clamp=5.0)
    last = whole[:, :, -1:]
    assert (out - last).abs().max() <= (1e-2 if dtype.itemsize == 2 else 1e-5) * last.abs().max()


@pytest.mark.parametrize(("n", "m"), [(200, 200), (512, 64), (30, 400)])
def test_mean_of_conserved_flow(n, m):
    """mean(s) = n / m: why clamp=1 cuts half of the sources, and what source_norm undoes."""
    q, k, v = inputs((1, 2, 2, n, m, 32, 8), torch.float32)
    sources = OPS.flow_forward(q, k, v, 1e-6, False, None)[2]
    assert (sources[:, :, 1].mean(-1) - n / m).abs().max() < 1e-4 * max(1, n / m)
    if n == 512:  # every source is cut: the competition is off
        weight = OPS.flow_forward(q, k, v)[2][:, :, 2]
        torch.testing.assert_close(weight, torch.ones_like(weight))
        normed = OPS.flow_forward(q, k, v, 1e-6, False, 5.0, "source", True)[2]
        assert (normed[:, :, 1].mean(-1) - 1).abs().max() < 1e-4
        assert normed[:, :, 2].std() > 0.01


def test_half_precision_does_not_overflow():
    """n D / 4 > 65504: the released form's flows are infinite in float16 and most of its rows 0."""
    q, k, v = (x.half() for x in inputs((1, 1, 1, 4400, 4400, 64, 16), torch.float32))
    for causal in (False, True):
        out = ours(causal=causal)(q, k, v)
        truth = ours(causal=causal)(q.double(), k.double(), v.double())
        assert (out.double() - truth).abs().max() < 2e-3 * truth.abs().max()
        if not causal:
            released = eager_scan.flow_attention(q, k, v).double()
            assert (released - truth).abs().max() > 0.5 * truth.abs().max()


def test_a_million_tokens():
    """Sums of float32 over 2**20 tokens, against float64."""
    x = inputs((1, 1, 1, 1 << 20, 1 << 20, 8, 8), torch.float32)
    for causal in (False, True):
        out = ours(causal=causal)(*x)
        truth = ours(causal=causal)(*(t.double() for t in x))
        assert (out - truth).abs().max() < 1e-4 * truth.abs().max()


def test_many_heads():
    x = inputs((64, 64, 64, 20, 20, 8, 8), torch.float32)
    for causal in (False, True):
        out = ours(causal=causal)(*x)
        assert torch.equal(out[17:18, 5:6], ours(causal=causal)(*(t[17:18, 5:6] for t in x)))


@pytest.mark.isa
@pytest.mark.parametrize("heads", [1, 3, 8])
def test_same_bits_with_any_number_of_threads(heads):
    x = [t.requires_grad_() for t in inputs((1, heads, heads, 600, 600, 16, 16), torch.float32)]
    (dout,) = draw((1, heads, 600, 16), dtype=torch.float32)

    def run(causal):
        out = ours(causal=causal)(*x)
        return [out, *torch.autograd.grad(out, x, dout)]

    for causal in (False, True):
        two = run(causal)
        torch.set_num_threads(1)
        try:
            one = run(causal)
        finally:
            torch.set_num_threads(2)
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(
    "shape", [(2, 2, 2, 0, 0, 4, 4), (0, 2, 2, 5, 5, 4, 4), (1, 2, 1, 5, 5, 4, 0)], ids=str
)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_empty(shape, causal):
    x = [t.requires_grad_() for t in inputs(shape, torch.float32)]
    out = ours(causal=causal)(*x)
    assert out.shape == (*shape[:2], shape[3], shape[6])
    assert all((g == 0).all() for g in torch.autograd.grad(out.sum(), x))


def test_no_keys_or_no_queries():
    for n, m in ((5, 0), (0, 5)):
        x = [t.requires_grad_() for t in inputs((1, 2, 1, n, m, 4, 4), torch.float32)]
        out = ours()(*x)
        assert (out == 0).all()
        assert all((g == 0).all() for g in torch.autograd.grad(out.sum(), x))


def test_strides():
    q, k, v = (
        x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs((2, 3, 3, 50, 50, 8, 8), torch.float32)
    )
    for causal in (False, True):
        out = ours(causal=causal)(q, k, v)
        assert out.transpose(1, 2).is_contiguous()
        assert torch.equal(out, ours(causal=causal)(*(x.contiguous() for x in (q, k, v))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype):
    q, k, v = inputs((1, 4, 2, 12, 12, 8, 6), dtype)
    dout = torch.randn(1, 4, 12, 6).to(dtype)
    mask, cu = torch.rand(1, 12) < 0.7, torch.tensor([0, 5, 12], dtype=torch.int32)
    tests = {} if dtype == torch.float32 else {"test_utils": ("test_schema", "test_faketensor")}
    full, causal = (1e-6, True, None, "source", True, mask, mask, cu), (1e-6, False, 5.0, mask, cu)
    torch.library.opcheck(OPS.flow_forward.default, (q, k, v, *full), **tests)
    torch.library.opcheck(OPS.flow_causal_forward.default, (q, k, v, *causal, True), **tests)
    saved = OPS.flow_forward(q, k, v, *full)
    torch.library.opcheck(OPS.flow_backward.default, (dout, q, k, v, *saved, *full), **tests)
    saved = OPS.flow_causal_forward(q, k, v, *causal, False)[:3]
    torch.library.opcheck(OPS.flow_causal_backward.default, (dout, q, k, v, *saved, *causal), **tests)
    token = [x[:, :, :1] for x in (q, k, v)]
    torch.library.opcheck(OPS.flow_step.default, token, **tests)
    torch.library.opcheck(OPS.flow_step.default, (*token, *OPS.flow_step(*token)[1:], 1e-6, 5.0), **tests)


def test_compile():
    x = [t.requires_grad_() for t in inputs((1, 2, 1, 30, 30, 8, 8), torch.float32)]

    def run(q, k, v):
        return attn.flow_attention(q, k, v) + attn.flow_attention(q, k, v, causal=True)

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    for expected, found in zip(
        torch.autograd.grad(run(*x).sum(), x), torch.autograd.grad(compiled(*x).sum(), x), strict=True
    ):
        torch.testing.assert_close(found, expected)


WRONG = [
    ({"eps": -1.0}, "eps must be >= 0, got -1.0"),
    ({"clamp": 0.0}, "clamp must be positive, or None for none, got 0.0"),
    ({"competition": "heads"}, "competition must be one of 'source', 'head'"),
    ({"competition": "head", "causal": True}, "competition='head' needs causal=False"),
    ({"return_state": True}, "return_state needs causal=True"),
    ({"key_mask": torch.ones(1, 9, dtype=torch.bool)}, r"key_mask must be \[B, tokens\] = \[1, 8\]"),
    (
        {
            "causal": True,
            "key_mask": torch.ones(1, 8, dtype=torch.bool),
            "query_mask": torch.zeros(1, 8, dtype=torch.bool),
        },
        "query_mask and key_mask must agree",
    ),
    ({"cu_seqlens": torch.tensor([0, 9], dtype=torch.int32)}, "cu_seqlens"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[m for _, m in WRONG])
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        attn.flow_attention(*inputs((1, 1, 1, 8, 8, 4, 4), torch.float32), **options)
    with pytest.raises(ValueError, match="must hold one token, got 8 and 8"):
        attn.flow_attention_step(*inputs((1, 1, 1, 8, 8, 4, 4), torch.float32))
    with pytest.raises(ValueError, match="same number of tokens, got 8 and 9"):
        attn.flow_attention(*inputs((1, 1, 1, 8, 9, 4, 4), torch.float32), causal=True)
