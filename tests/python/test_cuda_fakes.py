"""Public functions on fake CUDA tensors: what they return, what they refuse and what a tracer sees of them,
without a GPU.
"""

import re

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

import attn
import test_errors as errors
from attn import capability
from cases import CASES
from recorded import recorded_calls
from surface import SURFACE, flat
from test_ops_robust import all_ops

HALF = (torch.bfloat16, torch.float16)


@pytest.fixture
def kernels(monkeypatch):
    """As if this build had CUDA kernels."""
    monkeypatch.setitem(capability._BUILD, "cuda_architectures", "80-real 90")


def fake_cuda(mode: FakeTensorMode, tree):
    """The tensors of `tree` on a fake cuda:0, strides kept."""

    def one(x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return mode.from_tensor(x)
        with mode:
            y = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda:0")
        return y.requires_grad_(x.requires_grad)

    return pytree.tree_map_only(Tensor, one, tree)


CALLS = recorded_calls()


def test_every_op_is_called():
    registered = {name.split("::")[1].split(".")[0] for name in all_ops() if name.startswith("attn::")}
    assert {call.name for call in CALLS} == registered


@pytest.mark.parametrize("call", CALLS, ids=[f"{call.name}-{i}" for i, call in enumerate(CALLS)])
def test_ops(call):
    """One node of the graph, with the results of the CPU on the device."""
    expected = call()
    expected = [expected] if isinstance(expected, Tensor) else list(expected)
    mode = FakeTensorMode()
    leaves, spec = pytree.tree_flatten(call.arguments)
    places = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]

    def function(*tensors):
        there = dict(zip(places, tensors, strict=True))
        return call(pytree.tree_unflatten([there.get(i, x) for i, x in enumerate(leaves)], spec))

    with mode:
        graph = make_fx(function)(*(fake_cuda(mode, leaves[i]) for i in places)).graph
    (node,) = (n for n in graph.nodes if str(n.target).startswith("attn."))
    assert node.target == call.op
    found = node.meta["val"]
    found = [found] if isinstance(found, Tensor) else list(found)
    for a, e in zip(found, expected, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (e.shape, e.stride(), e.dtype)
        assert a.device == torch.device("cuda:0")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_are_those_of_the_cpu(case, kernels):
    inputs = case.inputs(torch.bfloat16)
    expected = attn.attention(inputs.q, inputs.k, inputs.v, **inputs.options, return_lse=True)
    mode = FakeTensorMode()
    (q, k, v), options = fake_cuda(mode, ((inputs.q, inputs.k, inputs.v), inputs.options))
    with mode:
        actual = attn.attention(q, k, v, **options, return_lse=True)
    for a, e in zip(actual, expected, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (e.shape, e.stride(), e.dtype)
        assert a.device == torch.device("cuda:0")


@pytest.mark.parametrize(
    ("function", "arguments", "error", "text"),
    [
        *(pytest.param(attn.attention, *row, id=f"attention {id}") for id, row in errors.ATTENTION.items()),
        *(pytest.param(*row, id=id) for id, row in errors.MECHANISMS.items()),
    ],
)
def test_the_errors_of_the_cpu(function, arguments, error, text, kernels):
    if re.search("must (start|not decrease|not exceed|be at least the longest)", text):
        pytest.skip("needs the values of cu_seqlens, which a GPU would have to be waited for")
    if error is attn.BackendError:
        text = "supports dtypes float32, bfloat16, float16, got int64"
    mode = FakeTensorMode()
    arguments = fake_cuda(mode, arguments)
    with (
        mode,
        pytest.raises(
            error, match=text.replace("on cpu", "on cuda:0").replace("got Tensor", "got FakeTensor")
        ),
    ):
        function(**arguments)


def test_dtypes_without_kernels(kernels):
    mode = FakeTensorMode()
    q = fake_cuda(mode, torch.zeros(1, 2, 16, 8, dtype=torch.float64))
    wanted = "cuda: supports dtypes float32, bfloat16, float16, got float64; convert with"
    with mode, pytest.raises(attn.BackendError, match=wanted):
        attn.attention(q, q, q)


def test_head_dimensions_without_kernels(kernels):
    mode = FakeTensorMode()
    q = fake_cuda(mode, torch.zeros(1, 2, 16, 300, dtype=torch.bfloat16))
    with mode, pytest.raises(attn.BackendError, match="cuda: supports head dimensions up to 256, got 300"):
        attn.attention(q, q, q)


def test_functions_without_kernels(kernels, monkeypatch):
    monkeypatch.delitem(capability._CUDA_OPS, "agent_attention")
    mode = FakeTensorMode()
    q = fake_cuda(mode, torch.zeros(1, 2, 16, 8))
    with mode, pytest.raises(attn.BackendError, match="cuda: has no kernels for agent_attention"):
        attn.agent_attention(q, q, q, q)


def test_a_build_without_kernels(monkeypatch):
    monkeypatch.setitem(capability._BUILD, "cuda_architectures", "")
    mode = FakeTensorMode()
    q = fake_cuda(mode, torch.zeros(1, 2, 16, 8, dtype=torch.bfloat16))
    with (
        mode,
        pytest.raises(attn.BackendError, match=r"cuda: this build has no CUDA kernels; .*ATTN_CUDA=ON"),
    ):
        attn.attention(q, q, q)
    assert "cuda" not in {row["backend"] for row in capability.support_matrix()}


FUNCTIONS = {
    "attend_forward": lambda q, k, v, layout: attn.attention(q, k, v, causal=True),
    "block_sparse_forward": lambda q, k, v, layout: attn.attention(q, k, v, layout=layout),
    "decode_forward": lambda q, k, v, layout: attn.decode_attention(
        q, k, v, seqlens=q.new_zeros(1, dtype=torch.int32)
    ),
    "flow_forward": lambda q, k, v, layout: attn.flow_attention(q, k, v),
    "flow_causal_forward": lambda q, k, v, layout: attn.flow_attention(q, k, v, causal=True),
    "hip_select hip_attend": lambda q, k, v, layout: attn.hip_attention(
        q, k, v, mask_k=16, sliding_window=16
    ),
    "hip_select": lambda q, k, v, layout: attn.hip_select(q, k, mask_k=16, sliding_window=16),
    "s2_forward": lambda q, k, v, layout: attn.s2_attention(q, k, v),
    "merge_states": lambda q, k, v, layout: attn.merge_states(
        torch.stack((q, q)), q.new_zeros((2, *q.shape[:3]), dtype=torch.float32)
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_ops_in_the_graph(name, kernels):
    q, k, v = (torch.zeros(1, h, 128, 64, dtype=torch.bfloat16) for h in (4, 2, 2))
    layout = attn.patterns.sliding_window(128, 128, window=(20, 0), block_q=64, block_k=64)
    mode = FakeTensorMode()
    arguments = fake_cuda(mode, (q, k, v, layout))
    with mode:
        graph = make_fx(FUNCTIONS[name])(*arguments).graph
    ops = [str(node.target) for node in graph.nodes if str(node.target).startswith("attn.")]
    assert ops == [f"attn.{op}.default" for op in name.split()]


# topk_nodes looks at a value, through torch's own indexing: a fake tensor can't, where torch has no CUDA.
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", sorted(set(capability._CUDA_OPS) - {"topk_nodes"}))
def test_public_functions_compiled(name, dynamic, kernels):
    """torch.compile traces the whole call, and everything stays on the device."""
    row = SURFACE[name]
    graphs = []

    def compiler(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(
        row.call, fullgraph=True, dynamic=dynamic, backend=aot_autograd(fw_compiler=compiler)
    )
    mode = FakeTensorMode()
    # Without gradients: autograd asks the driver for a fake tensor's device.
    arguments = fake_cuda(mode, {n: x.detach() for n, x in row.arguments(24).items()})
    with mode:
        results = flat(compiled(**arguments))
    expected = row.results(row.arguments(24))
    assert [x.shape for x in results] == [x.shape for x in expected]
    assert {x.device.type for x in results} == {"cuda"}
    assert any(str(node.target).startswith("attn.") for graph in graphs for node in graph.graph.nodes)


@pytest.mark.parametrize("dynamic", [False, True])
def test_exported_on_cuda(dynamic, kernels):
    class Model(torch.nn.Module):
        def forward(self, q, k, v):
            return attn.attention(2 * q, k, v, causal=True)

    q, k, v = (torch.zeros(1, h, 128, 64, dtype=torch.bfloat16) for h in (4, 2, 2))
    mode = FakeTensorMode()
    arguments = fake_cuda(mode, (q, k, v))
    tokens = torch.export.Dim("tokens", min=2, max=4096)
    shapes = ({2: tokens},) * 3 if dynamic else None
    with mode:
        program = torch.export.export(Model(), arguments, dynamic_shapes=shapes)
    (node,) = [n for n in program.graph.nodes if "attend_forward" in str(n.target)]
    assert node.meta["val"][0].device == torch.device("cuda:0")
