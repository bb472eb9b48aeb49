"""On a GPU: the case table against the oracle of the CPU's tests, and what only a device can show (streams,
graphs, devices). Skipped without one. scripts/gpu_check runs it.
"""

import dataclasses
import os

import pytest
import torch

import attn
from attn import capability, patterns, reference
from cases import CASES, Case, with_dtypes
from oracle import check_attention, plain_attention
from tolerance import assert_as_exact_as, largest_error

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available() or not capability.cuda_architectures(),
        reason="no GPU, or a build without CUDA kernels",
    ),
]
HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, *HALF)
ON_TENSOR_CORES = [dataclasses.replace(case, dtypes=DTYPES) for case in CASES]


@pytest.fixture(autouse=True)
def gpu_still_works():
    """After a fault of a kernel nothing runs in this process any more: xdist starts another worker."""
    yield
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(1)
        raise


def device_attention(q, k, v, **options):
    return attn.attention(q, k, v, **options)


def forward_alone(case, dtype, function=attn.attention, oracle=reference.attention, plain=plain_attention):
    """Results of a case without gradients, by the 2x rule."""
    errors = {"out": 0.0, "lse": 0.0}
    for seed in range(4 if case.q_len * case.D < 64 else 1):
        x = case.inputs(dtype, "cuda", seed)
        exact = oracle(*(t.double() for t in (x.q, x.k, x.v)), **x.double().options, return_lse=True)
        usual = plain(x.q, x.k, x.v, **x.options)
        for name, u, e in zip(errors, usual, exact, strict=True):
            errors[name] = max(errors[name], largest_error(u, e))
    x = case.inputs(dtype, "cuda")
    exact = oracle(*(t.double() for t in (x.q, x.k, x.v)), **x.double().options, return_lse=True)
    usual = plain(x.q, x.k, x.v, **x.options)
    actual = function(x.q, x.k, x.v, **x.options, return_lse=True)
    for name, a, u, e in zip(errors, actual, usual, exact, strict=True):
        assert_as_exact_as(a, u, e, f"{case.id}: {name}", errors[name])


@pytest.mark.parametrize(("case", "dtype"), with_dtypes(ON_TENSOR_CORES))
def test_case_forward(case, dtype):
    forward_alone(case, dtype)


@pytest.mark.parametrize(("case", "dtype"), with_dtypes(ON_TENSOR_CORES))
def test_case_backward(case, dtype):
    check_attention(device_attention, case, dtype, "cuda")


def tensors(*, dtype=torch.bfloat16, **shape):
    x = Case("", **{"B": 2, "H": 4, "Hkv": 2, "Tq": 300, "D": 64, **shape}).inputs(dtype, "cuda")
    return x.q, x.k, x.v


@pytest.mark.parametrize("causal", [True, False])
def test_s2_is_its_layout(causal):
    q, k, v = tensors(Tq=400)
    options = {"block_size": 32, "local_blocks": 2, "vert_stride": 3, "dense_heads": 1, "causal": causal}
    actual = attn.s2_attention(q, k, v, **options, return_lse=True)
    expected = reference.s2_attention(*(x.double() for x in (q, k, v)), **options, return_lse=True)
    for a, e, tolerance in zip(actual, expected, (2e-2, 1e-4), strict=True):
        torch.testing.assert_close(a.double(), e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("causal", [True, False])
def test_hip(causal):
    """Selections are compared by what they keep: ties of scores may fall either way between devices."""
    q, k, v = tensors(Tq=500, D=32)
    options = {"mask_k": 64, "block_size_q": 32, "sliding_window": 20, "sink_tokens": 4, "causal": causal}
    out, lse, chosen = attn.hip_attention(q, k, v, **options, return_lse=True, return_selection=True)
    kept = attn.HipSelection(chosen.index.cpu(), chosen.count.cpu())
    on_cpu = [x.cpu() for x in (q, k, v)]
    wanted = attn.hip_attention(*on_cpu, **options, selection=kept, return_lse=True)
    for a, e, tolerance in zip((out, lse), wanted, (2e-2, 1e-3), strict=True):
        torch.testing.assert_close(a.cpu().float(), e.float(), rtol=tolerance, atol=tolerance)
    there = attn.hip_attention(*on_cpu, **options, return_selection=True)[1]
    assert (there.count == kept.count).all()
    assert (there.index == kept.index).float().mean() > 0.98


def same_as_on_cpu(function, inputs, **options):
    """Result and gradients are those of the CPU, up to the last bits."""
    found = []
    for device in ("cpu", "cuda"):
        leaves = [x.detach().to(device).requires_grad_() for x in inputs]
        moved = {n: o.to(device) if isinstance(o, torch.Tensor) else o for n, o in options.items()}
        out = function(*leaves, **moved)
        dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        found.append([out, *torch.autograd.grad(out, leaves, dout)])
    tolerance = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}[inputs[0].dtype]
    for e, a in zip(*found, strict=True):
        size = e.abs().amax().item() if e.numel() else 0.0
        torch.testing.assert_close(a.cpu(), e, rtol=tolerance, atol=tolerance * size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("new_tokens", [1, 3])
def test_decode(paged, new_tokens, dtype):
    g = torch.Generator().manual_seed(3)
    q = torch.randn(3, 8, new_tokens, 64, generator=g).to(dtype)
    k, v = (torch.randn(3, 2, 640, 64, generator=g).to(dtype) for _ in range(2))
    table = None
    if paged:
        table = torch.randperm(30, generator=g).int().view(3, 10)
        pages = [x.view(3, 2, 10, 64, 64).transpose(1, 2).flatten(0, 1) for x in (k, v)]
        k, v = (torch.empty_like(x).index_copy_(0, table.flatten().long(), x) for x in pages)
    options = {"seqlens": torch.tensor([640, 77, 3], dtype=torch.int32), "return_lse": True}
    options |= {"window": (300, 0), "sink_tokens": 2}
    wanted = attn.decode_attention(q, k, v, **options, block_table=table)
    options["seqlens"] = options["seqlens"].cuda()
    moved = None if table is None else table.cuda()
    actual = attn.decode_attention(q.cuda(), k.cuda(), v.cuda(), **options, block_table=moved)
    for a, e, tolerance in zip(
        actual, wanted, (1e-5, 1e-5) if dtype == torch.float32 else (2e-2, 1e-3), strict=True
    ):
        torch.testing.assert_close(a.cpu().float(), e.float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("dim", [1, 64, 100])
def test_merge_states(dtype, dim):
    outs, lses = (
        torch.randn(3, 2, 4, 70, dim, device="cuda").to(dtype),
        torch.randn(3, 2, 4, 70, device="cuda"),
    )
    lses[0, 0] = lses[:, 1, 0] = -torch.inf
    lses.requires_grad_()
    outs.requires_grad_()
    actual = attn.merge_states(outs, lses)
    exact_in = [x.detach().double().requires_grad_() for x in (outs, lses)]
    expected = reference.merge_states(*exact_in)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=tolerance, atol=tolerance)
    starts = torch.randn_like(actual[0]), torch.randn_like(actual[1]).masked_fill(actual[1].isinf(), 0)
    grads = torch.autograd.grad(actual, (outs, lses), starts)
    finite = [torch.where(e.isinf(), 0, e) for e in expected]
    wanted = torch.autograd.grad(finite, exact_in, [x.double() for x in starts])
    for a, e in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a.double(), e.nan_to_num(), rtol=tolerance, atol=tolerance)


FLOW = {
    "sources": {},
    "heads": {"competition": "head", "clamp": None},
    "source_norm": {"source_norm": True, "eps_outside": True, "clamp": 5.0},
    "causal": {"causal": True, "clamp": None},
}


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("options", FLOW.values(), ids=FLOW)
@pytest.mark.parametrize("dim", [6, 64, 96])
def test_flow_attention(options, dim, dtype):
    keep = torch.arange(700).repeat(2, 1) < torch.tensor([700, 333])[:, None]
    q, k, v = (torch.randn(2, h, 700, d).to(dtype) for h, d in ((4, dim), (2, dim), (2, 40)))
    for masks in ({}, {"query_mask": keep, "key_mask": keep}):
        same_as_on_cpu(attn.flow_attention, (q, k, v), **options, **masks)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_flow_attention_steps(dtype):
    q, k, v = (torch.randn(2, h, 300, 64, device="cuda").to(dtype) for h in (4, 2, 2))
    whole = attn.flow_attention(q, k, v, causal=True)
    first = [x[:, :, :290] for x in (q, k, v)]
    rows, state = attn.flow_attention(*first, causal=True, return_state=True)
    rows = [rows]
    for t in range(290, 300):
        row, state = attn.flow_attention_step(*(x[:, :, t : t + 1] for x in (q, k, v)), state)
        rows.append(row)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(torch.cat(rows, 2), whole, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("shape", [(2, 5, 33), (3, 200, 1000), (1, 40, 512), (2, 0, 3), (2, 3, 0)])
def test_axis_gate(shape, dtype):
    batch, channels, time = shape
    on_cpu = [torch.randn(*s).to(dtype) for s in (shape, (batch, channels), (batch, time))]
    same_as_on_cpu(attn.axis_gate, on_cpu)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("kind", [("softmax", "keys"), ("softmax", "queries"), ("relu_mean", "keys")])
@pytest.mark.parametrize("queries", [1, 20, 100])
@pytest.mark.parametrize("packed", [False, True])
def test_query_pool(packed, queries, kind, dtype):
    g = torch.Generator().manual_seed(queries)
    batch, tokens = (1, 1500) if packed else (3, 700)
    shapes = ((1, 4, queries, 72), (batch, 2, tokens, 72), (batch, 2, tokens, 200))
    inputs = [torch.randn(*s, generator=g).to(dtype) for s in shapes]
    options = {"activation": kind[0], "axis": kind[1]}
    options["key_mask"] = torch.rand(batch, tokens, generator=g) < 0.8
    if packed:
        options["cu_seqlens"] = torch.tensor([0, 0, 700, 701, 1490], dtype=torch.int32)
    same_as_on_cpu(attn.query_pool, inputs, **options)
    if not packed:
        inputs[0] = torch.randn(3, 4, queries, 72, generator=g).to(dtype)
        same_as_on_cpu(attn.query_pool, inputs, **options)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("rule", [{"ratio": 0.3}, {"k": 5}, {"min_score": 0.4}], ids=str)
def test_topk_nodes(rule, dtype):
    """Every index is that of the CPU."""
    sizes = torch.tensor([7, 0, 1, 3000, 40_000, 2, 100])
    cu = torch.nn.functional.pad(sizes.cumsum(0), (1, 0)).int()
    score = torch.randn(int(cu[-1]), generator=torch.Generator().manual_seed(1)).to(dtype)
    score[::97] = float("nan")
    wanted = attn.topk_nodes(score, cu_seqlens=cu, **rule)
    found = attn.topk_nodes(score.cuda(), cu_seqlens=cu.cuda(), **rule)
    for a, e in zip(found, wanted, strict=True):
        assert torch.equal(a.cpu(), e)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("channels", [40, 33])
@pytest.mark.parametrize("reduce", ["max", "mean", "sum", "first", "last"])
def test_segment_pool(reduce, channels, dtype):
    x = torch.randn(2, 500, channels).to(dtype).relu()
    ids = torch.randint(0, 40, (2, 500), generator=torch.Generator().manual_seed(2)).sort().values.int()
    ids[1] = (ids[1] > 30).int()  # long segments
    mask = torch.rand(2, 500) < 0.8
    same_as_on_cpu(attn.segment_pool, [x], segment_ids=ids, num_segments=42, reduce=reduce, mask=mask)
    same_as_on_cpu(attn.segment_pool, [x], segment_ids=ids, num_segments=42, reduce=reduce, tie="even")
    same_as_on_cpu(attn.segment_pool, [x], reduce=reduce)
    cu = torch.tensor([0, 3, 3, 300, 490], dtype=torch.int32)
    same_as_on_cpu(attn.segment_pool, [x[0]], cu_seqlens=cu, reduce=reduce)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("channels", [40, 33])
@pytest.mark.parametrize("reduce", ["max", "mean"])
@pytest.mark.parametrize(("window", "dilation"), [(3, 1), (7, 1), (5, 2)])
def test_window_pool(window, dilation, reduce, channels, dtype):
    x = torch.randn(2, 300, channels).to(dtype).relu()
    options = {"window": window, "dilation": dilation, "reduce": reduce}
    same_as_on_cpu(attn.window_pool, [x], **options, mask=torch.rand(2, 300) < 0.8)
    cu = torch.tensor([0, 3, 3, 200, 290], dtype=torch.int32)
    same_as_on_cpu(attn.window_pool, [x[:1]], **options, cu_seqlens=cu)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize(("channels", "heads"), [(96, 3), (35, 5), (40, 4)])
@pytest.mark.parametrize("segment_length", [None, 2, 64])
def test_ponet(segment_length, channels, heads, dtype):
    x = [torch.randn(2, 300, channels).to(dtype).relu() for _ in range(5)]
    ids = torch.randint(0, 40, (2, 300), generator=torch.Generator().manual_seed(2)).sort().values.int()
    mask, special = torch.rand(2, 300) < 0.8, torch.rand(2, 300) < 0.1
    packed = {"cu_seqlens": torch.tensor([0, 3, 3, 200, 290], dtype=torch.int32)}
    for inputs, options in (
        (x, {"segment_length": segment_length, "mask": mask}),
        (x, {"segment_ids": ids, "special_mask": special, "window": 5}),
        ([y[:1] for y in x], {"segment_length": segment_length, **packed}),
    ):
        for tie in ("first", "even"):
            same_as_on_cpu(attn.ponet_mix, inputs, num_heads=heads, tie=tie, **options)

    def given_query(*y, **options):
        return attn.ponet_mix(None, *y[:4], pooled_query=y[4], num_heads=heads, **options)

    same_as_on_cpu(given_query, [*x[1:], torch.randn(2, channels)], mask=mask)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("channels", [192, 33])
def test_tap_pool(channels, dtype):
    x, weights = torch.randn(2, 14 * 19, channels).to(dtype), torch.rand(2, 14 * 19, 4).to(dtype)
    same_as_on_cpu(attn.tap_pool, [x, weights], height=14, width=19)
    same_as_on_cpu(attn.tap_pool, [x, weights[..., :2]], height=14, width=19, dilations=(5, 0))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("tokens", "dim", "dim_v"), [(70, 6, 5), (700, 64, 96), (1300, 128, 128)])
def test_linear_attention(tokens, dim, dim_v, causal, dtype):
    shapes = ((1, 4, tokens, dim), (1, 2, tokens, dim), (1, 2, tokens, dim_v))
    on_cpu = [torch.randn(*s).to(dtype) for s in shapes]
    cu = torch.tensor([0, 50, 50, tokens - 3], dtype=torch.int32)
    for options in (
        {"feature_map": "sigmoid"},
        {"feature_map": "taylor2"} if dim < 100 else {"feature_map": "relu"},
        {"cu_seqlens": cu},
        {"key_mask": torch.rand(1, tokens) < 0.7},
    ):
        same_as_on_cpu(attn.linear_attention, on_cpu, causal=causal, **options)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_agent_attention(dtype):
    q, k, v = (torch.randn(2, h, 300, 64).to(dtype) for h in (4, 2, 2))
    agents, bias = torch.randn(2, 4, 49, 64).to(dtype), torch.randn(4, 49, 300).to(dtype)
    keep = torch.rand(2, 300) < 0.8
    same_as_on_cpu(attn.agent_attention, [q, k, v, agents], agent_bias=bias, key_mask=keep)


@pytest.mark.parametrize("kind", ["performer", "relu"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_random_feature_attention(dtype, kind):
    on_cpu = [torch.randn(1, 2, 300, 32).to(dtype) for _ in range(3)]
    omega = attn.draw_omega(48, 32, generator=torch.Generator().manual_seed(2))
    options = {"omega": omega, "causal": True, "kind": kind}
    same_as_on_cpu(attn.random_feature_attention, on_cpu, **options)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize(
    ("heads", "tokens", "dim"), [((4, 2), 700, 64), ((1, 1), 20_000, 33), ((3, 3), 70, 130)]
)
def test_prefix_softmax_pool(heads, tokens, dim, dtype):
    score, v = torch.randn(1, heads[0], tokens), torch.randn(1, heads[1], tokens, dim)
    score[:, :, ::7] = -torch.inf
    on_cpu = [score.to(dtype), v.to(dtype)]
    same_as_on_cpu(attn.prefix_softmax_pool, on_cpu)
    cu = torch.tensor([0, 0, 50, tokens - 3], dtype=torch.int32)
    same_as_on_cpu(attn.prefix_softmax_pool, on_cpu, cu_seqlens=cu)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_prefix_softmax_pool_steps(dtype):
    score, v = (torch.randn(2, 3, 20, *d, device="cuda").to(dtype) for d in ((), (40,)))
    whole, state, rows = attn.prefix_softmax_pool(score, v), None, []
    for t in range(20):
        row, state = attn.prefix_softmax_pool_step(score[:, :, t : t + 1], v[:, :, t : t + 1], state)
        rows.append(row)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(torch.cat(rows, 2), whole, rtol=tolerance, atol=tolerance)


def test_layouts_made_on_the_device():
    layout = patterns.sink_window(700, 900, window=130, sink_tokens=5, block_q=64, block_k=32)
    turned = layout.to("cuda").transpose()
    assert turned.to("cpu") == layout.transpose()
    mask = torch.rand(2, 3, 70, 45) < 0.3
    here, there = attn.BlockLayout.from_mask(mask), attn.BlockLayout.from_mask(mask.cuda())
    assert torch.equal(there.kv_count.cpu(), here.kv_count)
    assert torch.equal(there.kv_index.cpu(), here.kv_index)


def test_same_bits_every_time_and_alone():
    q, k, v = tensors(B=3)
    layout = patterns.sink_window(300, 300, window=70, sink_tokens=5).to("cuda")
    for function in (
        lambda *x: attn.attention(*x, causal=True),
        lambda *x: attn.attention(*x, layout=layout),
        lambda *x: attn.s2_attention(*x, block_size=32, local_blocks=2, vert_stride=3),
    ):
        first = function(q, k, v)
        assert all(torch.equal(first, function(q, k, v)) for _ in range(5))
        assert torch.equal(first[1:2], function(q[1:2], k[1:2], v[1:2]))


def test_the_current_stream_is_used():
    q, k, v = tensors(Tq=2048)
    expected = attn.attention(q, k, v)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = q * 1  # done only after the sleep
        out = attn.attention(late, k, v)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(out, expected)


def test_no_call_waits_for_the_device():
    q, k, v = tensors(Tq=256)
    cu = torch.tensor([0, 100, 256], dtype=torch.int32, device="cuda")
    one = [x[:1] for x in (q, k, v)]
    layout = patterns.sliding_window(256, 256, window=(50, 0)).to("cuda")
    calls = [
        lambda: attn.attention(q, k, v, causal=True),
        lambda: attn.attention(*one, cu_seqlens_q=cu, causal=True),
        lambda: attn.attention(q, k, v, layout=layout),
        lambda: attn.s2_attention(q, k, v),
        lambda: attn.hip_attention(q, k, v, mask_k=64),
        lambda: attn.decode_attention(q[:, :, :1], k, v, seqlens=cu[1:]),
        lambda: attn.flow_attention(*one, cu_seqlens=cu),
        lambda: attn.flow_attention(*one, cu_seqlens=cu, causal=True, return_state=True),
        lambda: attn.merge_states(torch.stack((q, q)), q.new_zeros(2, *q.shape[:3], dtype=torch.float32)),
        lambda: attn.BlockLayout.from_mask(layout.to_block_state() != -2).transpose(),
        lambda: layout._transpose_unseen(),
    ]
    for call in calls:
        call()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for call in calls:
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dim", [64, 256])
def test_captured_in_a_graph(dim):
    q, k, v = tensors(Tq=256, D=dim)
    layout = patterns.sliding_window(256, 256, window=(50, 0)).to("cuda")

    def step():
        a, la = attn.attention(q, k, v, causal=True, return_lse=True)
        b, lb = attn.attention(q, k, v, layout=layout, return_lse=True)
        return attn.merge_states([a, b], [la, lb])

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = step()
    q.copy_(torch.randn_like(q))
    graph.replay()
    for a, e in zip((out, lse), step(), strict=True):
        assert torch.equal(a, e)


def test_compiled():
    q, k, v = tensors()
    function = torch.compile(lambda q, k, v: attn.attention(2 * q, k, v, causal=True), fullgraph=True)
    torch.testing.assert_close(function(q, k, v), attn.attention(2 * q, k, v, causal=True))


def test_another_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    q, k, v = tensors()
    moved = attn.attention(*(x.to("cuda:1") for x in (q, k, v)))
    assert torch.equal(moved.to("cuda:0"), attn.attention(q, k, v))


def test_opcheck():
    q, k, v = tensors(Tq=40)
    for op, more in ((torch.ops.attn.attend_forward, (True,)), (torch.ops.attn.s2_forward, ())):
        torch.library.opcheck(op.default, (q, k, v, *more), test_utils=("test_schema", "test_faketensor"))


def test_index_tensors_may_hold_anything():
    """What is out of range is skipped; nothing outside the tensors is read (compute-sanitizer sees it)."""
    q, k, v = tensors(B=1, Tq=100)
    wild = torch.tensor([-1, 2**31 - 1, -(2**31), 1000, 1, 0], dtype=torch.int32, device="cuda")
    count, index = wild[:2].repeat(1, 4, 1).contiguous(), wild[:4].view(1, 1, 2, 2).repeat(1, 4, 1, 1)
    lists = (count, index, None, None, None, None, 64, 64)
    out, _ = torch.ops.attn.block_sparse_forward(q, k, v, *lists)
    packed = torch.ops.attn.attend_forward(q, k, v, cu_seqlens_q=wild[:3], cu_seqlens_k=wild[3:])[0]
    torch.cuda.synchronize()
    assert not out.isnan().any()
    assert not packed.isnan().any()


def test_refusals():
    q, k, v = tensors(dtype=torch.float32)
    with pytest.raises(
        RuntimeError, match="attn::attend_forward: .*supports float32, bfloat16 and float16, got float64"
    ):
        torch.ops.attn.attend_forward(*(x.double() for x in (q, k, v)))
    with pytest.raises(RuntimeError, match="v must be on cuda:0 like the other arguments"):
        torch.ops.attn.attend_forward(q, k, v.cpu())
    with pytest.raises(attn.BackendError, match="cuda: has no kernels for agent_attention"):
        attn.agent_attention(q, q, q, q)
