"""torch.compile(fullgraph=True, dynamic=True), export, and torch.func over the attend family."""

import pytest
import torch

import attn
from attn import patterns
from cases import Case

SMALL_HIP = {"mask_k": 8, "block_size_q": 16, "sliding_window": 6, "sink_tokens": 2}
SMALL_S2 = {"block_size": 16, "local_blocks": 1, "vert_stride": 3}


def plain(q, k, v, **_):
    return attn.attention(q, k, v, causal=True)


def everything(q, k, v, *, weight, sink, gate, ids):
    out, lse = attn.attention(
        q,
        k,
        v,
        causal=True,
        window=(20, 0),
        sink_tokens=3,
        scale=0.3,
        softcap=4.0,
        key_log_weight=weight,
        sink_logits=sink,
        head_gate=gate,
        segment_ids=ids,
        return_lse=True,
    )
    return out * lse.exp()[..., None]


def s2(q, k, v, **_):
    return attn.s2_attention(q, k, v, **SMALL_S2)


def hip(q, k, v, **_):
    out, lse, selection = attn.hip_attention(q, k, v, **SMALL_HIP, return_lse=True, return_selection=True)
    return out + lse[..., None] + 0 * selection.count.sum()


def merged(q, k, v, **_):
    half = k.shape[2] // 2
    parts = [
        attn.attention(q, x, y, return_lse=True)
        for x, y in ((k[:, :, :half], v[:, :, :half]), (k[:, :, half:], v[:, :, half:]))
    ]
    return attn.merge_states([o for o, _ in parts], [l for _, l in parts])[0]


def arguments(tokens, batch=2):
    x = Case("", B=batch, H=4, Hkv=2, Tq=tokens, D=8).inputs(torch.float32, seed=tokens)
    g = torch.Generator().manual_seed(tokens)
    extra = {
        "weight": torch.randn(tokens, generator=g),
        "sink": torch.randn(4, generator=g),
        "gate": torch.rand(batch, 4, tokens, generator=g),
    }
    leaves = {name: t.requires_grad_() for name, t in {"q": x.q, "k": x.k, "v": x.v, **extra}.items()}
    ids = torch.randint(0, 2, (batch, tokens), generator=g, dtype=torch.int32).sort().values
    return leaves, ids


def step(function, leaves, ids):
    out = function(
        leaves["q"].sin(),
        leaves["k"],
        leaves["v"],
        **{n: leaves[n] for n in ("weight", "sink", "gate")},
        ids=ids,
    )
    return torch.autograd.grad(out.square().sum(), list(leaves.values()), allow_unused=True), out


@pytest.mark.parametrize("function", [plain, everything, s2, hip, merged], ids=lambda f: f.__name__)
def test_fullgraph_dynamic(function):
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens, batch in ((40, 2), (57, 3), (41, 2)):
        leaves, ids = arguments(tokens, batch)
        torch.testing.assert_close(step(compiled, leaves, ids), step(function, leaves, ids))


def test_new_lengths_do_not_recompile():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(plain, fullgraph=True, dynamic=True, backend=counter)
    for tokens in (40, 57, 90, 91):
        leaves, _ = arguments(tokens)
        compiled(leaves["q"], leaves["k"], leaves["v"])
    assert counter.frame_count == 1


def test_layout_is_an_argument():
    torch._dynamo.reset()

    def run(q, k, v, layout):
        return attn.block_sparse_attention(q, k, v, layout, causal=True)

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens, window in ((64, 10), (100, 20), (100, 70)):
        leaves, _ = arguments(tokens)
        qkv = [leaves[n] for n in "qkv"]
        layout = patterns.sliding_window(tokens, tokens, window=window, block_q=16, block_k=32)
        actual, expected = compiled(*qkv, layout), run(*qkv, layout)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(
            torch.autograd.grad(actual.sum(), qkv), torch.autograd.grad(expected.sum(), qkv)
        )


def test_packed_sequences():
    torch._dynamo.reset()

    def run(q, k, v, cu):
        return attn.attention(q, k, v, causal=True, cu_seqlens_q=cu)

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    for bounds in ((0, 10, 40), (0, 0, 20, 55, 60)):
        x = Case("", B=1, H=2, Tq=bounds[-1]).inputs(torch.float32)
        cu = torch.tensor(bounds, dtype=torch.int32)
        torch.testing.assert_close(compiled(x.q, x.k, x.v, cu), run(x.q, x.k, x.v, cu))


def test_selection_is_an_argument():
    torch._dynamo.reset()

    def run(q, k, v, selection):
        return attn.hip_attention(q, k, v, **SMALL_HIP, selection=selection)

    leaves, _ = arguments(60)
    q, k, v = (leaves[n] for n in "qkv")
    kept = attn.hip_select(q, k, **SMALL_HIP)
    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v, kept), run(q, k, v, kept))


def test_autocast():
    torch._dynamo.reset()
    leaves, _ = arguments(40)
    q, k, v = (leaves[n] for n in "qkv")
    with torch.autocast("cpu", torch.bfloat16):
        out = torch.compile(plain, fullgraph=True, backend="aot_eager")(q, k, v)
        expected = plain(q, k, v)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("function", [plain, everything, s2, hip], ids=lambda f: f.__name__)
@pytest.mark.parametrize("strict", [False, True])
def test_export(function, strict):
    class Module(torch.nn.Module):
        def forward(self, q, k, v, weight, sink, gate, ids):
            return function(q, k, v, weight=weight, sink=sink, gate=gate, ids=ids)

    def inputs(tokens):
        leaves, ids = arguments(tokens)
        return (*(t.detach() for t in leaves.values()), ids)

    tokens = torch.export.Dim("tokens", min=17, max=4096)  # more than one query block
    shapes = ({2: tokens}, {2: tokens}, {2: tokens}, {0: tokens}, None, {2: tokens}, {1: tokens})
    exported = torch.export.export(Module(), inputs(40), dynamic_shapes=shapes, strict=strict)
    other = inputs(53)
    torch.testing.assert_close(exported.module()(*other), Module()(*other))


LAYOUT = patterns.sliding_window(20, 20, window=5, block_q=16, block_k=16)


def listed(q, k, v, **_):
    return attn.block_sparse_attention(q, k, v, LAYOUT)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("function", [plain, s2, hip, listed], ids=lambda f: f.__name__)
def test_transforms(function):
    def loss(q, k, v):
        return function(q, k, v).square().sum()

    x = [torch.randn(3, 1, 2, 20, 4, dtype=torch.float64) for _ in range(3)]
    batched = torch.func.vmap(torch.func.grad(loss, (0, 1, 2)))(*x)
    for i in range(3):
        leaves = [t[i].clone().requires_grad_() for t in x]
        expected = torch.autograd.grad(loss(*leaves), leaves)
        torch.testing.assert_close(tuple(t[i] for t in batched), expected)
    torch.testing.assert_close(torch.func.vmap(function)(*x)[1], function(*(t[1] for t in x)))


def test_checkpoint():
    leaves, _ = arguments(40)
    qkv = [leaves[n] for n in "qkv"]
    out = torch.utils.checkpoint.checkpoint(plain, *qkv, use_reentrant=False)
    torch.testing.assert_close(
        torch.autograd.grad(out.sum(), qkv), torch.autograd.grad(plain(*qkv).sum(), qkv)
    )
