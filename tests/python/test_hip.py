"""attn.hip_select and attn.hip_attention: the search against the reference loop, attention against an
explicit mask, and the contract of a selection that is kept, edited and passed back.
"""

import math

import pytest
import torch

import attn
from attn import reference
from attn.selection import PAD
from cases import Case
from oracle import plain_attention, results
from tolerance import assert_as_exact_as

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# (id, shape, options)
CASES = [
    ("small", {"Tq": 200}, {"mask_k": 32, "block_size_q": 32, "sliding_window": 20}),
    ("default", {"Tq": 900, "H": 1}, {}),
    ("gqa", {"B": 2, "H": 4, "Hkv": 2, "Tq": 150}, {"mask_k": 16, "block_size_q": 32, "sliding_window": 10}),
    (
        "group",
        {"B": 2, "H": 4, "Hkv": 2, "Tq": 150},
        {"mask_k": 16, "block_size_q": 32, "sliding_window": 10, "reduce_heads": "group"},
    ),
    (
        "all_heads",
        {"H": 3, "Tq": 150},
        {"mask_k": 16, "block_size_q": 32, "sliding_window": 10, "reduce_heads": "all"},
    ),
    (
        "first",
        {"Tq": 200},
        {"mask_k": 24, "block_size_q": 16, "sliding_window": 8, "representative": "first"},
    ),
    (
        "odd_sizes",
        {"Tq": 190, "D": 20},
        {"mask_k": 33, "block_size_q": 24, "block_size_k": 5, "block_stride_q": 3, "sliding_window": 7},
    ),
    ("single_keys", {"Tq": 150}, {"mask_k": 10, "block_size_q": 16, "block_size_k": 1, "sliding_window": 3}),
    (
        "wide_blocks",
        {"Tq": 300},
        {"mask_k": 64, "block_size_q": 64, "block_size_k": 32, "sliding_window": 40},
    ),
    ("one_node", {"Tq": 150}, {"mask_k": 4, "block_size_q": 16, "block_size_k": 4, "sliding_window": 5}),
    (
        "stride_past_block",
        {"Tq": 100},
        {"mask_k": 16, "block_size_q": 8, "block_stride_q": 20, "sliding_window": 5},
    ),
    ("no_window", {"Tq": 100}, {"mask_k": 16, "block_size_q": 16, "sliding_window": 0}),
    (
        "no_window_no_sinks",
        {"Tq": 100},
        {"mask_k": 8, "block_size_q": 16, "sliding_window": 0, "sink_tokens": 0},
    ),
    ("no_sinks", {"Tq": 100}, {"mask_k": 16, "block_size_q": 16, "sliding_window": 9, "sink_tokens": 0}),
    ("many_sinks", {"Tq": 100}, {"mask_k": 16, "block_size_q": 16, "sliding_window": 9, "sink_tokens": 70}),
    (
        "not_causal",
        {"Tq": 100, "Tk": 140},
        {"mask_k": 16, "block_size_q": 16, "sliding_window": 9, "causal": False},
    ),
    (
        "more_keys",
        {"H": 4, "Hkv": 2, "Tq": 40, "Tk": 300},
        {"mask_k": 32, "block_size_q": 16, "sliding_window": 20},
    ),
    ("more_rows", {"Tq": 120, "Tk": 50}, {"mask_k": 8, "block_size_q": 16, "sliding_window": 4}),
    ("one_row", {"H": 4, "Hkv": 2, "Tq": 1, "Tk": 500}, {"mask_k": 64, "sliding_window": 30}),
    ("everything_listed", {"Tq": 90}, {"mask_k": 512, "block_size_q": 16, "sliding_window": 8}),
    ("scaled", {"Tq": 100, "Dv": 24}, {"mask_k": 16, "block_size_q": 16, "sliding_window": 8, "scale": 0.4}),
    ("no_keys", {"Tq": 20, "Tk": 0}, {}),
    ("no_rows", {"Tq": 0, "Tk": 20}, {}),
]
PARAMETERS = pytest.mark.parametrize(("shape", "options"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
ATTENTION_ONLY = ("sink_tokens", "scale")
MASK_OPTIONS = ("block_size_q", "block_size_k", "sliding_window", "sink_tokens", "causal")


def equal(a, b):
    return torch.equal(a.index, b.index) and torch.equal(a.count, b.count)


def attention_mask(case, selection, options):
    kept = {name: value for name, value in options.items() if name in MASK_OPTIONS}
    return reference.hip_token_mask(
        selection.index, selection.count, case.q_len, case.kv_len, num_heads=case.H, **kept
    )


def integers(case, dtype):
    """Inputs whose products are exact in any order of summation: equal scores really are equal."""
    g = torch.Generator().manual_seed(3)
    q = torch.randint(-3, 4, (case.B, case.H, case.q_len, case.D), generator=g)
    k = torch.randint(-3, 4, (case.B, case.kv_heads, case.kv_len, case.D), generator=g)
    return q.to(dtype), k.to(dtype)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=lambda d: str(d)[6:])
@PARAMETERS
def test_search(shape, options, dtype):
    """Exactly the reference's choice, ties included."""
    case = Case("", **shape)
    q, k = integers(case, dtype)
    search = {name: value for name, value in options.items() if name not in ATTENTION_ONLY}
    assert equal(attn.hip_select(q, k, **options), reference.hip_select(q, k, **search))


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@PARAMETERS
def test_values_and_gradients(shape, options, dtype):
    case = Case("", **shape)
    x = case.inputs(dtype)
    selection = attn.hip_select(x.q, x.k, **options)
    mask = attention_mask(case, selection, options)
    g = torch.Generator().manual_seed(1)
    dout = torch.randn(*x.q.shape[:3], x.v.shape[3], generator=g).to(dtype)
    dlse = torch.randn(x.q.shape[:3], generator=g)
    scale = options.get("scale")
    layout = attn.BlockLayout.from_token_mask(mask, 16, 16)
    actual = results(lambda q, k, v, **kw: attn.hip_attention(q, k, v, **options, **kw), x, dout, dlse)
    low = results(lambda q, k, v, **_: plain_attention(q, k, v, scale=scale, layout=layout), x, dout, dlse)
    exact = results(
        lambda q, k, v, **_: reference.masked_attention(q, k, v, mask, scale=scale), x.double(), dout, dlse
    )
    for name, expected in exact.items():
        assert_as_exact_as(actual[name], low[name], expected, name)


def test_is_dense_when_everything_is_chosen():
    x = Case("", H=4, Hkv=2, Tq=200).inputs(torch.float32)
    torch.testing.assert_close(
        attn.hip_attention(x.q, x.k, x.v, mask_k=200, sliding_window=10, return_lse=True),
        attn.attention(x.q, x.k, x.v, causal=True, return_lse=True),
    )


def test_results_by_flags():
    x = Case("", Tq=100).inputs(torch.float32)
    options = {"mask_k": 16, "block_size_q": 16, "sliding_window": 8}
    out = attn.hip_attention(x.q, x.k, x.v, **options)
    full = attn.hip_attention(x.q, x.k, x.v, **options, return_lse=True, return_selection=True)
    assert isinstance(out, torch.Tensor)
    assert torch.equal(full[0], out)
    assert full[1].shape == out.shape[:3]
    assert isinstance(full[2], attn.HipSelection)
    with_selection = attn.hip_attention(x.q, x.k, x.v, **options, return_selection=True)
    assert equal(with_selection[1], full[2])


def test_one_op_is_both_steps():
    x = Case("", H=2, Tq=900).inputs(torch.float32)
    out, lse, index, count = torch.ops.attn.hip_forward(x.q, x.k, x.v)
    expected = attn.hip_attention(x.q, x.k, x.v, return_lse=True, return_selection=True)
    assert torch.equal(out, expected[0])
    assert torch.equal(lse, expected[1])
    assert equal(attn.HipSelection(index, count), expected[2])


def test_the_op_compiles():
    def run(q, k, v):
        return torch.ops.attn.hip_forward(q * 2, k, v, 64)

    x = Case("", H=2, Hkv=1, Tq=500).inputs(torch.bfloat16)
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(x.q, x.k, x.v)
    for got, expected in zip(compiled, run(x.q, x.k, x.v), strict=True):
        assert torch.equal(got, expected)


def test_selection_form():
    x = Case("", H=4, Hkv=2, Tq=150).inputs(torch.float32)
    for reduce_heads, heads in (("none", 4), ("group", 2), ("all", 1)):
        s = attn.hip_select(
            x.q, x.k, mask_k=20, block_size_q=32, block_size_k=3, sliding_window=9, reduce_heads=reduce_heads
        )
        assert s.index.dtype == s.count.dtype == torch.int32
        assert s.index.shape == (1, heads, 5, 7)
        assert s.count.shape == (1, heads, 5)
        used = torch.arange(7) < s.count[..., None]
        assert (s.index[~used] == PAD).all()
        assert (s.index[used] % 3 == 0).all()
        assert (s.index.diff() > 0)[used[..., 1:]].all()
    assert not s.index.requires_grad
    assert not attn.hip_select(x.q.requires_grad_(), x.k).index.requires_grad


def test_selection_can_be_kept_and_edited():
    case = Case("", H=4, Hkv=2, Tq=100)
    x = case.inputs(torch.float32)
    options = {"block_size_q": 32, "block_size_k": 4, "sliding_window": 8, "sink_tokens": 4}
    index = torch.tensor([0, 2, 6, 6, 50, 53, 90, 99], dtype=torch.int32).expand(1, 2, 4, -1)
    count = torch.tensor([8, 0, 5, 8], dtype=torch.int32).expand(1, 2, -1)
    kept = attn.HipSelection(index, count)
    out = attn.hip_attention(x.q, x.k, x.v, **options, selection=kept)
    mask = attention_mask(case, kept, options)
    exact, _ = reference.masked_attention(x.q, x.k, x.v, mask)
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)


def test_choice_is_by_score():
    """One key that all rows like is found wherever it hides, by a search that always looks at the first
    block."""
    q = torch.ones(1, 1, 512, 8)
    k = torch.zeros(1, 1, 512, 8)
    k[:, :, 124] = 9.0  # the first of 31 blocks of node 2, hence of its half in every round
    s = attn.hip_select(q, k, mask_k=16, block_size_k=2, sliding_window=16, representative="first")
    assert (s.index[0, 0, -1] == 124).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_a_needle_in_64k_tokens_is_found(dtype):
    """Whatever its depth, if the keys around it resemble it: the first halves hold 127 keys and are judged by
    their middle ones, at most 64 tokens from the needle."""
    length, dim, logit, width = 65536, 64, 12.0, 64.0
    g = torch.Generator().manual_seed(0)
    direction = torch.randn(dim, generator=g)
    direction *= (logit * dim**0.5) ** 0.5 / direction.norm()
    q = direction + 0.1 * torch.randn(1, 1, 64, dim, generator=g)
    hay, v = torch.randn(2, 1, 1, length, dim, generator=g)
    q, v = q.to(dtype), v.to(dtype)
    position = torch.arange(length)
    for depth in (0.0, 0.003, 0.11, 0.25, 0.5, 0.667, 0.9, 0.99):
        needle = 16 + int(depth * (length - 512))
        bump = torch.exp(-(((position - needle) / width) ** 2) / 2)[:, None]
        k = (hay * 0.5 + bump * direction).to(dtype)
        index = attn.hip_select(q, k).index[0, 0, 0]
        assert (index == needle // 2 * 2).any(), f"needle at {needle}"
        out, exact = attn.hip_attention(q, k, v), attn.attention(q, k, v, causal=True)
        assert (out - exact).float().norm() < 0.1 * exact.float().norm(), f"needle at {needle}"


@pytest.mark.isa
def test_gradcheck():
    x = Case("", H=2, Hkv=1, Tq=40, D=3).inputs(torch.float64)
    options = {"block_size_q": 8, "sliding_window": 4, "sink_tokens": 1, "return_lse": True}
    kept = attn.hip_select(x.q, x.k, mask_k=6, block_size_q=8, sliding_window=4)
    inputs = [t.requires_grad_() for t in (x.q, x.k, x.v)]
    assert torch.autograd.gradcheck(
        lambda *t: attn.hip_attention(*t, selection=kept, **options), inputs, fast_mode=True
    )


def test_hidden_keys_do_not_leak():
    x = Case("", H=1, Tq=96).inputs(torch.float32)
    index = torch.full((1, 1, 6, 1), 40, dtype=torch.int32)
    kept = attn.HipSelection(index, torch.ones(1, 1, 6, dtype=torch.int32))
    options = {
        "block_size_q": 16,
        "block_size_k": 2,
        "sliding_window": 4,
        "sink_tokens": 2,
        "selection": kept,
    }
    x.k[:, :, 20] = math.nan
    x.v[:, :, 20] = math.inf
    q, k, v = (t.requires_grad_() for t in (x.q, x.k, x.v))
    out = attn.hip_attention(q, k, v, **options)
    rows = torch.ones(96, dtype=torch.bool)
    rows[20:24] = False  # whose window holds key 20
    assert out[:, :, rows].isfinite().all()
    grads = torch.autograd.grad(out, (q, k, v), rows[:, None].float().expand_as(out))
    assert grads[0][:, :, rows].isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_search_survives_any_value(value):
    q, k = torch.randn(1, 2, 200, 16), torch.randn(1, 2, 200, 16)
    k[:, :, 50:60] = value
    q[:, :, 100] = value
    s = attn.hip_select(q, k, mask_k=16, block_size_q=16, sliding_window=8)
    used = torch.arange(8) < s.count[..., None]
    assert ((s.index >= 0) & (s.index < 200))[used].all()
    assert (s.index.diff() > 0)[used[..., 1:]].all()


def test_threads_and_batch_do_not_matter():
    x = Case("", B=3, H=4, Hkv=2, Tq=300).inputs(torch.bfloat16)
    options = {
        "mask_k": 32,
        "block_size_q": 32,
        "sliding_window": 16,
        "return_lse": True,
        "return_selection": True,
    }
    expected = attn.hip_attention(x.q, x.k, x.v, **options)
    threads = torch.get_num_threads()
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            again = attn.hip_attention(x.q, x.k, x.v, **options)
            assert torch.equal(again[0], expected[0])
            assert torch.equal(again[1], expected[1])
            assert equal(again[2], expected[2])
    finally:
        torch.set_num_threads(threads)
    alone = attn.hip_attention(x.q[1:2], x.k[1:2], x.v[1:2], **options)
    assert torch.equal(alone[0], expected[0][1:2])
    assert torch.equal(alone[2].index, expected[2].index[1:2])
