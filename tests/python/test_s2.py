"""attn.s2_attention against its explicit mask, the layout form of the pattern, and the relations its paper
names."""

import math

import pytest
import torch

import attn
from attn import patterns, reference
from cases import Case
from oracle import plain_attention, results
from tolerance import assert_as_exact_as

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# (id, shape, options)
CASES = [
    ("default", {"Tq": 700}, {}),
    ("small_blocks", {"H": 4, "Hkv": 4, "Tq": 200}, {"block_size": 16, "local_blocks": 2, "vert_stride": 4}),
    ("gqa", {"B": 2, "H": 6, "Hkv": 3, "Tq": 150}, {"block_size": 16, "local_blocks": 1, "vert_stride": 3}),
    (
        "step",
        {"H": 4, "Hkv": 4, "Tq": 200},
        {"block_size": 16, "local_blocks": 1, "vert_stride": 8, "head_step": 2},
    ),
    (
        "phi3_offset",
        {"H": 4, "Hkv": 2, "Tq": 200},
        {"block_size": 16, "local_blocks": 2, "vert_stride": 4, "head_offset": 1},
    ),
    (
        "negative_offset",
        {"H": 4, "Tq": 130},
        {"block_size": 16, "local_blocks": 1, "vert_stride": 5, "head_offset": -7},
    ),
    (
        "dense_heads",
        {"H": 4, "Hkv": 2, "Tq": 200},
        {"block_size": 32, "local_blocks": 1, "vert_stride": 8, "dense_heads": 1},
    ),
    ("all_dense", {"H": 4, "Hkv": 2, "Tq": 100}, {"block_size": 32, "dense_heads": 2}),
    (
        "homogeneous",
        {"H": 4, "Tq": 200},
        {"block_size": 16, "local_blocks": 2, "vert_stride": 4, "homogeneous": True},
    ),
    ("stride_one", {"Tq": 130}, {"block_size": 16, "local_blocks": 1, "vert_stride": 1}),
    ("odd_block", {"H": 3, "Tq": 170, "D": 20}, {"block_size": 48, "local_blocks": 2, "vert_stride": 3}),
    ("more_keys", {"H": 4, "Tq": 70, "Tk": 250}, {"block_size": 32, "local_blocks": 2, "vert_stride": 3}),
    (
        "one_row",
        {"H": 4, "Hkv": 2, "Tq": 1, "Tk": 333},
        {"block_size": 16, "local_blocks": 2, "vert_stride": 4},
    ),
    ("more_rows", {"H": 2, "Tq": 150, "Tk": 70}, {"block_size": 16, "local_blocks": 2, "vert_stride": 4}),
    (
        "bidirectional",
        {"H": 4, "Hkv": 2, "Tq": 250},
        {"block_size": 16, "local_blocks": 2, "vert_stride": 3, "causal": False},
    ),
    (
        "bidirectional_dense",
        {"H": 2, "Tq": 90},
        {"block_size": 16, "dense_heads": 1, "vert_stride": 5, "causal": False},
    ),
    (
        "scaled",
        {"Tq": 100, "D": 24, "Dv": 40},
        {"block_size": 16, "local_blocks": 1, "vert_stride": 3, "scale": 0.3},
    ),
    ("no_keys", {"Tq": 20, "Tk": 0}, {}),
    ("no_rows", {"Tq": 0, "Tk": 20}, {}),
]


def as_options(mask, options):
    """The same call for attention with an explicit mask."""

    def run(q, k, v, *, return_lse=True, **_):
        return reference.masked_attention(q, k, v, mask, scale=options.get("scale"))

    return run


def plain(mask, options):
    def run(q, k, v, *, return_lse=True, **_):
        lists = attn.BlockLayout.from_token_mask(mask, 16, 16)
        return plain_attention(q, k, v, scale=options.get("scale"), layout=lists)

    return run


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(("shape", "options"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_values_and_gradients(shape, options, dtype):
    case = Case("", **shape)
    x = case.inputs(dtype)
    pattern = {name: value for name, value in options.items() if name != "scale"}
    mask = reference.s2_token_mask(
        case.q_len, case.kv_len, num_heads=case.H, num_kv_heads=case.kv_heads, **pattern
    )
    g = torch.Generator().manual_seed(1)
    dout = torch.randn(*x.q.shape[:3], x.v.shape[3], generator=g).to(dtype)
    dlse = torch.randn(x.q.shape[:3], generator=g)
    actual = results(lambda q, k, v, **kw: attn.s2_attention(q, k, v, **options, **kw), x, dout, dlse)
    low = results(plain(mask, options), x, dout, dlse)
    exact = results(as_options(mask, options), x.double(), dout, dlse)
    for name, expected in exact.items():
        assert_as_exact_as(actual[name], low[name], expected, name)


@pytest.mark.parametrize("causal", [True, False])
def test_is_the_strided_layout(causal):
    options = {"block_size": 32, "local_blocks": 2, "vert_stride": 3, "head_offset": 1, "causal": causal}
    x = Case("", B=2, H=4, Hkv=2, Tq=300).inputs(torch.float32)
    layout = patterns.strided(300, 300, num_heads=4, num_kv_heads=2, **options)
    torch.testing.assert_close(
        attn.s2_attention(x.q, x.k, x.v, **options, return_lse=True),
        attn.block_sparse_attention(x.q, x.k, x.v, layout, return_lse=True),
    )


def test_heads_together_see_every_block():
    """With as many kv heads as the stride is wide, every block is some head's vertical block."""
    seen = reference.s2_token_mask(
        320, 320, num_heads=4, num_kv_heads=4, block_size=16, local_blocks=1, vert_stride=4
    )
    q = torch.zeros(1, 4, 320, 8)
    v = torch.eye(320).expand(1, 4, -1, -1)
    weights = attn.s2_attention(q, q, v, block_size=16, local_blocks=1, vert_stride=4)
    torch.testing.assert_close(weights > 0, seen)
    assert seen.any(1)[0].equal(torch.ones(320, 320).tril().bool())


def test_dense_heads_are_plain_attention():
    x = Case("", H=4, Hkv=4, Tq=150).inputs(torch.float32)
    out = attn.s2_attention(x.q, x.k, x.v, block_size=16, local_blocks=1, vert_stride=9, dense_heads=2)
    expected = attn.attention(x.q, x.k, x.v, causal=True)
    torch.testing.assert_close(out[:, 2:], expected[:, 2:])
    assert not torch.allclose(out[:, :2], expected[:, :2])


@pytest.mark.isa
@pytest.mark.parametrize("causal", [True, False])
def test_gradcheck(causal):
    x = Case("", H=2, Tq=40, D=3).inputs(torch.float64)
    inputs = [t.requires_grad_() for t in (x.q, x.k, x.v)]
    options = {"block_size": 16, "local_blocks": 1, "vert_stride": 2, "causal": causal, "return_lse": True}
    assert torch.autograd.gradcheck(lambda *t: attn.s2_attention(*t, **options), inputs, fast_mode=True)


def test_defaults_of_the_op():
    x = Case("", H=4, Tq=700).inputs(torch.float32)
    torch.testing.assert_close(
        torch.ops.attn.s2_forward(x.q, x.k, x.v),
        attn.s2_attention(x.q, x.k, x.v, return_lse=True),
        rtol=0,
        atol=0,
    )


def test_hidden_keys_do_not_leak():
    options = {"block_size": 16, "local_blocks": 1, "vert_stride": 4, "homogeneous": True}
    x = Case("", H=1, Tq=96).inputs(torch.float32)
    mask = reference.s2_token_mask(96, 96, num_heads=1, num_kv_heads=1, **options)[0, 0]
    rows = ~mask[:, 21]  # key 21 lies in block 1, which later blocks don't keep
    x.k[:, :, 21] = math.nan
    x.v[:, :, 21] = math.inf
    q, k, v = (t.requires_grad_() for t in (x.q, x.k, x.v))
    out = attn.s2_attention(q, k, v, **options)
    assert out[:, :, rows].isfinite().all()
    assert out[:, :, ~rows].isnan().any(-1).all()
    grads = torch.autograd.grad(out, (q, k, v), rows[:, None].float().expand_as(out))
    assert grads[0][:, :, rows].isfinite().all()
