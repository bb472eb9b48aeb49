"""attn.topk_nodes and attn.axis_gate against their float64 oracles."""

import pytest
import torch

import attn
from attn import reference
from pool_oracle import DTYPES, check_equal, check_pool, randn, results, same_for_any_threads

OPS = torch.ops.attn
SIZES = [7, 0, 1, 30, 2, 100]
CU = torch.nn.functional.pad(torch.tensor(SIZES).cumsum(0), (1, 0)).int()
RULES = [{"ratio": 0.5}, {"ratio": 0.1}, {"ratio": 1.0}, {"k": 0}, {"k": 3}, {"k": 1000}, {"min_score": 0.4},
         {"min_score": 99.0}]  # fmt: skip


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_selection(rule, dtype):
    score = randn(140, dtype=dtype)
    for values in (score, (2 * score).round(), torch.zeros_like(score)):
        found, expected = (f(values, cu_seqlens=CU, **rule) for f in (attn.topk_nodes, reference.topk_nodes))
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def test_is_stable_sort():
    score = (3 * randn(140)).round()
    perm, cu = attn.topk_nodes(score, k=10, cu_seqlens=CU)
    for g, (i, j) in enumerate(zip(CU.tolist(), CU[1:].tolist(), strict=False)):
        order = score[i:j].sort(descending=True, stable=True).indices[:10] + i
        assert torch.equal(perm[cu[g] : cu[g + 1]], order)


def test_ratio_means_the_decimal_number():
    for n, ratio, kept in ((30, 0.1, 3), (10, 0.7, 7), (100, 0.29, 29), (7, 0.5, 4), (1, 0.01, 1)):
        cu = torch.tensor([0, n], dtype=torch.int32)
        assert attn.topk_nodes(torch.randn(n), ratio=ratio, cu_seqlens=cu)[1].tolist() == [0, kept]


def test_nan_ranks_highest():
    score = torch.tensor([1.0, float("nan"), 3.0, float("-inf")])
    cu = torch.tensor([0, 4], dtype=torch.int32)
    assert attn.topk_nodes(score, k=2, cu_seqlens=cu)[0].tolist() == [1, 2]
    assert attn.topk_nodes(score, k=4, cu_seqlens=cu)[0].tolist() == [1, 2, 0, 3]


def test_gradients_flow_through_the_kept_values():
    x, score = randn(140, 4).requires_grad_(), randn(140, seed=1).requires_grad_()
    perm, _ = attn.topk_nodes(score, ratio=0.5, cu_seqlens=CU)
    assert not perm.requires_grad
    pooled = x[perm] * score[perm, None]
    dx, dscore = torch.autograd.grad(pooled.sum(), (x, score))
    assert torch.equal(dscore.nonzero()[:, 0], perm.sort().values)
    assert torch.equal(dx.any(1).nonzero()[:, 0], perm.sort().values)


@pytest.mark.isa
def test_nodes_do_not_depend_on_threads():
    score = randn(20000).round()
    cu = torch.arange(0, 20001, 50, dtype=torch.int32)
    same_for_any_threads(lambda: dict(enumerate(attn.topk_nodes(score, ratio=0.3, cu_seqlens=cu))))


def test_nodes_op():
    score = randn(150)  # ten nodes belong to no graph
    for rule in ((0.5, None, None), (None, 4, None), (None, None, 0.2)):
        torch.library.opcheck(OPS.topk_nodes.default, (score, CU, *rule))
        perm, kept = OPS.topk_nodes(score, CU, *rule)
        assert (perm[int(kept[-1]) :] == -1).all()
    compiled = torch.compile(OPS.topk_nodes, fullgraph=True, dynamic=True, backend="aot_eager")
    for a, b in zip(compiled(score, CU, 0.5), OPS.topk_nodes(score, CU, 0.5), strict=True):
        assert torch.equal(a, b)


def test_no_graphs():
    perm, cu = attn.topk_nodes(torch.randn(0), k=2, cu_seqlens=torch.zeros(1, dtype=torch.int32))
    assert perm.shape == (0,)
    assert cu.tolist() == [0]


WRONG_NODES = {
    r"score must be \[N\]": {"score": torch.randn(2, 3), "k": 1},
    "exactly one of": {},
    "exactly one of ratio": {"k": 1, "ratio": 0.5},
    r"ratio must be in \(0, 1\]": {"ratio": 1.5},
    "ratio must be": {"ratio": 0.0},
    "k must be": {"k": -1},
    "min_score must be": {"min_score": float("nan")},
    "cu_seqlens must be int32": {"k": 1, "cu_seqlens": torch.tensor([0, 140])},
    "cu_seqlens must not exceed": {"k": 1, "cu_seqlens": torch.tensor([0, 141]).int()},
}


@pytest.mark.parametrize("message", WRONG_NODES)
def test_wrong_arguments_of_nodes(message):
    given = {"score": torch.randn(140), "cu_seqlens": CU, **WRONG_NODES[message]}
    with pytest.raises((TypeError, ValueError), match=message):
        attn.topk_nodes(given.pop("score"), **given)


def plain_gate(x, channel, time):
    return x * (channel[:, :, None] + time[:, None, :])


def gates(batch, channels, length, dtype=torch.float32):
    return {
        "x": randn(batch, channels, length, dtype=dtype),
        "channel": randn(batch, channels, seed=1, dtype=dtype),
        "time": randn(batch, length, seed=2, dtype=dtype),
    }


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(2, 5, 33), (1, 40, 16), (3, 1, 1), (1, 300, 1000), (0, 3, 4), (2, 0, 3), (2, 3, 0)],
    ids=str,
)
def test_gate(shape, dtype):
    check_pool(attn.axis_gate, plain_gate, reference.axis_gate, gates(*shape, dtype=dtype), {})


@pytest.mark.isa
def test_gate_does_not_depend_on_threads_or_batch():
    inputs = gates(3, 200, 700, torch.bfloat16)
    same_for_any_threads(lambda: results(attn.axis_gate, inputs, {}))
    alone = attn.axis_gate(*(x[1:2] for x in inputs.values()))
    assert torch.equal(alone, attn.axis_gate(**inputs)[1:2])


def test_gate_strides():
    inputs = gates(2, 8, 9)
    strided = {
        "x": inputs["x"].transpose(0, 1).contiguous().transpose(0, 1),
        "channel": inputs["channel"].T.contiguous().T,
        "time": inputs["time"].repeat_interleave(2, 1)[:, ::2],
    }
    check_equal(results(attn.axis_gate, strided, {}), results(attn.axis_gate, inputs, {}))


def test_gate_gradcheck():
    leaves = [x.requires_grad_() for x in gates(2, 4, 7, torch.float64).values()]
    torch.autograd.gradcheck(attn.axis_gate, leaves)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gate_op(dtype):
    utils = {} if dtype == torch.float32 else {"test_utils": ("test_schema", "test_faketensor")}
    inputs = list(gates(2, 4, 7, dtype).values())
    torch.library.opcheck(OPS.axis_gate_forward.default, inputs, **utils)
    for wanted in ([True] * 3, [False, True, False], [True, False, True]):
        torch.library.opcheck(
            OPS.axis_gate_backward.default, (torch.randn_like(inputs[0]), *inputs, wanted), **utils
        )


def test_gate_compile():
    leaves = [x.requires_grad_() for x in gates(2, 4, 7).values()]
    compiled = torch.compile(lambda *x: attn.axis_gate(*x), fullgraph=True, dynamic=True, backend="aot_eager")
    outs = (compiled(*leaves), attn.axis_gate(*leaves))
    assert torch.equal(*outs)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), leaves) for y in outs), strict=True):
        assert torch.equal(a, b)


WRONG_GATES = {
    r"x must be \[B, C, T\]": {"x": torch.randn(3, 4)},
    r"channel must be \[B, C\]": {"channel": torch.randn(2, 4)},
    r"time must be \[B, T\]": {"time": torch.randn(1, 7)},
    "time must have the dtype of x": {"time": torch.randn(2, 7).bfloat16()},
    "channel must be a": {"channel": 1.0},
}


@pytest.mark.parametrize("message", WRONG_GATES)
def test_wrong_arguments_of_gates(message):
    with pytest.raises((TypeError, ValueError), match=message):
        attn.axis_gate(**{**gates(2, 3, 7), **WRONG_GATES[message]})
