"""Properties of the attend family on any input: hypothesis draws shapes, strides, flags and modifiers; bits
do not depend on threads, repetition or the rest of the batch; what is invisible has no influence.
"""

import math

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

import attn
from attn import reference
from cases import Case, random_blocks, random_tokens, strided
from oracle import check_attention

F32 = torch.float32
THREADS = torch.get_num_threads()


def lengths():
    return st.lists(st.integers(0, 40), min_size=1, max_size=4).map(tuple)


@st.composite
def drawn_cases(draw):
    """A case of the table with every field drawn."""
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    packed = draw(st.booleans())
    flags, modifiers = {}, []
    if draw(st.booleans()):
        flags["causal"] = True
    if draw(st.booleans()):
        flags["window"] = (draw(st.integers(-1, 60)), draw(st.integers(-1, 60)))
        flags["sink_tokens"] = draw(st.integers(0, 20))
    if draw(st.booleans()):
        flags["softcap"] = draw(st.floats(0.5, 50))
    if draw(st.booleans()):
        flags["scale"] = draw(st.floats(-1, 1))
    weights = st.sampled_from(["key_log_weight", "key_log_weight_shared", "key_log_weight_removing"])
    gates = st.sampled_from(["head_gate", "head_gate_sparse"])
    for choice in (weights, gates, st.just("segment_ids_pair"), st.just("sink_logits")):
        if draw(st.integers(0, 3)) == 0:
            modifiers.append(draw(choice))
    sizes, layout = {}, None
    if packed:
        sizes["lengths_q"] = draw(lengths())
        if draw(st.booleans()):
            count = len(sizes["lengths_q"])
            sizes["lengths_k"] = tuple(draw(st.lists(st.integers(0, 40), min_size=count, max_size=count)))
    else:
        sizes = {"B": draw(st.integers(0, 3)), "Tq": draw(st.integers(0, 90)), "Tk": draw(st.integers(0, 90))}
        blocks = st.sampled_from([16, 32, 48, 64])
        shared = {"heads": draw(st.booleans()), "batch": draw(st.booleans())}
        layout = draw(
            st.one_of(
                st.none(),
                st.builds(lambda a, b: random_blocks(a, b, **shared), blocks, blocks),
                st.builds(lambda a, b: random_tokens(a, b, **shared), blocks, blocks),
                st.builds(
                    lambda n, v: strided(block_size=16, local_blocks=n, vert_stride=v),
                    *[st.integers(1, 4)] * 2,
                ),
            )
        )
        if min(sizes.values()) == 0:
            layout = None
    return Case(
        "drawn",
        H=kv_heads * group,
        Hkv=kv_heads,
        D=draw(st.integers(1, 70)),
        Dv=draw(st.integers(1, 70)),
        flags=flags,
        modifiers=tuple(modifiers),
        layout=layout,
        memory=draw(st.sampled_from(["contiguous", "BTHD", "padded"])),
        magnitude=draw(st.sampled_from([0.0, 1.0, 20.0])),
        **sizes,
    )


@hypothesis.given(
    case=drawn_cases(), dtype=st.sampled_from([F32, torch.bfloat16, torch.float16, torch.float64])
)
@hypothesis.example(
    case=Case(
        "one of everything",
        H=1,
        Tq=1,
        D=1,
        modifiers=("key_log_weight", "head_gate", "sink_logits"),
        magnitude=0.0,
    ),
    dtype=torch.bfloat16,
)
def test_any_call_is_right(case, dtype):
    check_attention(attn.attention, case, dtype)


def run(function, tensors, options=None):
    """out, lse and gradients."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out, lse = function(*leaves, **(options or {}), return_lse=True)[:2]
    g = torch.Generator().manual_seed(5)
    dout = torch.randn(out.shape[1:], generator=g).expand_as(out).to(out)
    dlse = torch.randn(lse.shape[1:], generator=g).expand_as(lse).masked_fill(lse.isinf(), 0)
    return out.detach(), lse.detach(), *torch.autograd.grad((out, lse), leaves, (dout, dlse))


def layout_for(tokens):
    mask = torch.rand(1, 1, tokens, tokens, generator=torch.Generator().manual_seed(2)) < 0.3
    return attn.BlockLayout.from_token_mask(mask, 32, 48)


# A prepared selection, so that the same one serves the batch and its entries.
def hip(q, k, v, **options):
    return attn.hip_attention(
        q, k, v, mask_k=16, block_size_q=16, sliding_window=8, sink_tokens=2, reduce_heads="group", **options
    )


FUNCTIONS = {
    "dense": lambda *t, **o: attn.attention(*t, causal=True, **o),
    "window": lambda *t, **o: attn.attention(*t, window=(30, 10), sink_tokens=3, softcap=9.0, **o),
    "layout": lambda *t, **o: attn.attention(*t, layout=layout_for(t[0].shape[2]), **o),
    "s2": lambda *t, **o: attn.s2_attention(*t, block_size=16, local_blocks=2, vert_stride=3, **o),
    "hip": hip,
}
BY_FUNCTION = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
BY_DTYPE = pytest.mark.parametrize("dtype", [F32, torch.bfloat16], ids=str)


def same_bits(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.isa
@BY_DTYPE
@BY_FUNCTION
def test_threads_and_repetition(function, dtype):
    x = Case("", B=2, H=4, Hkv=2, Tq=200, D=40).inputs(dtype)
    expected = run(function, (x.q, x.k, x.v))
    try:
        for n in (1, 2, 3, 7):
            torch.set_num_threads(n)
            same_bits(run(function, (x.q, x.k, x.v)), expected)
    finally:
        torch.set_num_threads(THREADS)


@BY_DTYPE
@BY_FUNCTION
def test_batch_entry_alone(function, dtype):
    x = Case("", B=3, H=4, Hkv=2, Tq=150, D=24).inputs(dtype)
    together = run(function, (x.q, x.k, x.v))
    for i in range(3):
        alone = run(function, (x.q[i : i + 1], x.k[i : i + 1], x.v[i : i + 1]))
        same_bits(alone, tuple(t[i : i + 1] for t in together))


@BY_FUNCTION
def test_batch_entry_beside_nan(function):
    x = Case("", B=3, H=4, Hkv=2, Tq=100, D=24).inputs(F32)
    clean = run(function, (x.q, x.k, x.v))
    for t in (x.q, x.k, x.v):
        t[1] = math.nan
    dirty = run(function, (x.q, x.k, x.v))
    same_bits(tuple(t[::2] for t in dirty), tuple(t[::2] for t in clean))


POISON = pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf], ids=str)


def check_invisible(mask, options, poison, dtype):
    """Keys that no row sees, and rows that see nothing, are poisoned: nothing changes.

    mask: bool [B, H, Tq, Tk] as the reference gives it.
    """
    x = Case("", B=2, H=4, Hkv=2, Tq=mask.shape[2], Tk=mask.shape[3], D=24).inputs(dtype)
    mask = mask.expand(*x.q.shape[:3], x.k.shape[2])
    seen = mask.any(2).unflatten(1, (x.k.shape[1], -1)).any(2)  # [B, Hkv, Tk]
    alive = mask.any(3)
    assert not seen.all() or not alive.all(), "the case hides something"
    clean = run(lambda *t, **o: attn.attention(*t, **o), (x.q, x.k, x.v), options)
    for t, hidden in ((x.k, ~seen), (x.v, ~seen), (x.q, ~alive)):
        t[hidden] = poison
    dirty = run(lambda *t, **o: attn.attention(*t, **o), (x.q, x.k, x.v), options)
    for name, a, b in zip(("out", "lse", "dq", "dk", "dv"), dirty, clean, strict=True):
        assert not a.isnan().any(), name
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")
    assert (dirty[3][~seen] == 0).all()
    assert (dirty[4][~seen] == 0).all()
    assert (dirty[2][~alive] == 0).all()


@POISON
@BY_DTYPE
def test_invisible_keys_by_position(poison, dtype):
    window = reference.token_mask(60, 150, causal=True, window=(20, 0), sink_tokens=2)
    check_invisible(window, {"causal": True, "window": (20, 0), "sink_tokens": 2}, poison, dtype)
    late = reference.token_mask(100, 40, causal=True)
    check_invisible(late, {"causal": True}, poison, dtype)


@POISON
@BY_DTYPE
def test_invisible_keys_by_segment(poison, dtype):
    ids = torch.zeros(2, 100, dtype=torch.int32)
    ids[:, 70:] = 1
    lonely = ids.clone()
    lonely[:, ::7] = 5  # ids that only keys, or only rows have
    for pair in ((ids, lonely), (lonely, ids)):
        mask = reference.token_mask(100, 100, segment_ids=pair)
        check_invisible(mask, {"segment_ids": pair}, poison, dtype)


@POISON
@BY_DTYPE
def test_invisible_keys_by_layout(poison, dtype):
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(1, 1, 90, 110, generator=generator) < 0.4
    kept[..., ::3] = False
    kept[:, :, 40:75] = False
    layout = attn.BlockLayout.from_token_mask(kept, 32, 32)
    check_invisible(kept, {"layout": layout}, poison, dtype)
    blocks = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 0, 0]]).bool()[None, None]
    whole = attn.BlockLayout.from_mask(blocks, block_q=32, block_k=48, q_len=90, kv_len=110)
    check_invisible(whole.to_token_mask(), {"layout": whole}, poison, dtype)


@POISON
@BY_DTYPE
def test_invisible_keys_by_weight(poison, dtype):
    weight = torch.zeros(2, 2, 100)
    weight[..., 30:50] = -math.inf
    weight[1] = -math.inf
    mask = (weight > -math.inf).repeat_interleave(2, 1)[:, :, None].expand(2, 4, 60, 100)
    check_invisible(mask, {"key_log_weight": weight}, poison, dtype)


@BY_DTYPE
def test_nan_reaches_only_rows_that_see_it(dtype):
    x = Case("", H=2, Tq=100, D=24).inputs(dtype)
    clean = attn.attention(x.q, x.k, x.v, causal=True)
    for place in (0, 37, 99):
        k, v = x.k.clone(), x.v.clone()
        k[:, :, place] = math.nan
        out = attn.attention(x.q, k, x.v, causal=True)
        assert out[:, :, place:].isnan().all()
        torch.testing.assert_close(out[:, :, :place], clean[:, :, :place])
        v[:, :, place] = math.nan
        out = attn.attention(x.q, x.k, v, causal=True)
        assert out[:, :, place:].isnan().all()
        torch.testing.assert_close(out[:, :, :place], clean[:, :, :place])


@pytest.mark.isa
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True, "window": (4, 0), "sink_tokens": 1},
        {"softcap": 1.5, "scale": 0.7},
        {"cu_seqlens_q": torch.tensor([0, 4, 4, 10], dtype=torch.int32)},
    ],
    ids=["dense", "window", "softcap", "packed"],
)
def test_gradcheck(options):
    x = Case("", B=1, H=2, Hkv=1, Tq=10, D=3, Dv=2).inputs(torch.float64)
    inputs = [t.requires_grad_() for t in (x.q, x.k, x.v)]
    assert torch.autograd.gradcheck(
        lambda *t: attn.attention(*t, **options, return_lse=True), inputs, fast_mode=True
    )


def test_gradcheck_layout():
    x = Case("", B=1, H=2, Hkv=1, Tq=20, D=3, Dv=2).inputs(torch.float64)
    layout = random_tokens(16, 16)(Case("", Tq=20))
    inputs = [t.requires_grad_() for t in (x.q, x.k, x.v)]
    assert torch.autograd.gradcheck(
        lambda *t: attn.block_sparse_attention(*t, layout), inputs, fast_mode=True
    )


def test_only_wanted_gradients():
    x = Case("", H=2, Tq=40, D=8).inputs(F32)
    every = [t.requires_grad_() for t in (x.q, x.k, x.v)]
    expected = torch.autograd.grad(attn.attention(*every, causal=True).sum(), every)
    for wanted in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2)):
        leaves = [t.detach().clone().requires_grad_(i in wanted) for i, t in enumerate(every)]
        attn.attention(*leaves, causal=True).sum().backward()
        for i, leaf in enumerate(leaves):
            assert (leaf.grad is not None) == (i in wanted)
            if i in wanted:
                same_bits(leaf.grad, expected[i])


def ints(low, high):
    return st.integers(low, high) | st.integers(-(2**31), 2**31 - 1)


@hypothesis.given(data=st.data())
def test_any_lists_are_refused_or_right(data):
    """Whatever stands in the lists of a layout, the op refuses it or reads inside its tensors."""
    blocks, width = 3, data.draw(st.integers(0, 4))
    count = torch.tensor(
        data.draw(st.lists(ints(-1, 4), min_size=blocks, max_size=blocks)), dtype=torch.int32
    )
    index = torch.tensor(
        data.draw(st.lists(ints(-1, 3), min_size=blocks * width, max_size=blocks * width)), dtype=torch.int32
    )
    q = torch.ones(1, 1, 40, 4)
    count, index = count.reshape(1, 1, blocks), index.reshape(1, 1, blocks, width)
    lists = [index[0, 0, i, : max(n, 0)].tolist() for i, n in enumerate(count.flatten().tolist())]
    valid = all(0 <= n <= width for n in count.flatten().tolist()) and all(
        x == sorted(set(x)) and all(0 <= j < 3 for j in x) for x in lists
    )
    arguments = (q, q, q, count, index, None, None, None, None, 16, 16)
    if valid:
        out, lse = torch.ops.attn.block_sparse_forward(*arguments)
        for i, kept in enumerate(lists):
            rows = slice(16 * i, 16 * (i + 1))
            assert (out[:, :, rows] == (1 if kept else 0)).all()
            assert (lse[:, :, rows].isinf() == (not kept)).all()
    else:
        with pytest.raises(RuntimeError, match="kv_(count|index) must"):
            torch.ops.attn.block_sparse_forward(*arguments)


@hypothesis.given(data=st.data())
def test_any_bounds_are_refused_or_right(data):
    bounds = data.draw(st.lists(ints(-2, 12), min_size=0, max_size=5))
    cu = torch.tensor(bounds, dtype=torch.int32)
    q = torch.ones(1, 1, 10, 4)
    valid = bounds and bounds[0] == 0 and bounds == sorted(bounds) and bounds[-1] <= 10
    if valid:
        out, _lse = torch.ops.attn.attend_forward(q, q, q, cu_seqlens_q=cu, cu_seqlens_k=cu)
        assert (out[:, :, : bounds[-1]] == 1).all()
        assert (out[:, :, bounds[-1] :] == 0).all()
    else:
        with pytest.raises(RuntimeError, match="cu_seqlens_q must"):
            torch.ops.attn.attend_forward(q, q, q, cu_seqlens_q=cu, cu_seqlens_k=cu)
