"""What PyTorch does with functions, over every public function: compile, export, autocast, torch.func,
checkpointing, threads, forward mode; and copies of every module.
"""

import copy
import inspect
import pickle
import re
import threading

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.attention import flex_attention as flex
from torch.utils.checkpoint import checkpoint

import attn
from surface import SURFACE, WITHOUT_TENSORS, flat

ALL = pytest.mark.parametrize("name", SURFACE)
WITH_GRADIENT = pytest.mark.parametrize("name", [n for n, row in SURFACE.items() if row.gradient])


def scalar(results):
    return sum(x.square().sum() for x in results if x.is_floating_point())


def gradients(row, arguments, call=None):
    results = flat((call or row.call)(**arguments))
    assert any(x.requires_grad for x in results) == row.gradient
    wanted = [arguments[n] for n in row.floats(arguments)]
    return results, torch.autograd.grad(scalar(results), wanted) if row.gradient else ()


def assert_same(actual, expected, exactly=False):
    for a, b in zip(actual, expected, strict=True):
        if exactly:
            assert torch.equal(a, b)
        else:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_table_is_complete():
    public = {n for n in attn.__all__ if inspect.isfunction(getattr(attn, n))}
    assert set(SURFACE) | set(WITHOUT_TENSORS) == public, "add new functions to surface.py"
    assert set(MODULES) == set(attn.nn.__all__), "add new modules to MODULES"


@ALL
def test_compile(name):
    row = SURFACE[name]
    torch._dynamo.reset()
    compiled = torch.compile(row.call, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (24, 37):
        arguments = row.arguments(tokens)
        actual, expected = gradients(row, arguments, compiled), gradients(row, arguments)
        assert_same(actual[0], expected[0])
        assert_same(actual[1], expected[1])


@ALL
def test_export(name):
    row = SURFACE[name]
    small, large = ({n: x.detach() for n, x in row.arguments(tokens).items()} for tokens in (24, 37))

    class Module(torch.nn.Module):
        def forward(self, *values):
            return row.results(dict(zip(small, values, strict=True)))

    shapes = tuple(
        {i: torch.export.Dim.AUTO for i in range(x.dim()) if x.shape[i] != large[n].shape[i]}
        for n, x in small.items()
    )
    exported = torch.export.export(Module(), tuple(small.values()), dynamic_shapes=(shapes,), strict=False)
    for arguments in (small, large):
        assert_same(exported.module()(*arguments.values()), row.results(arguments))


# Features are exponentials of products: float32, like softmax under autocast. The others keep the dtype they
# are given: that of the cache, of what attention returned, and a mean that attention casts.
FLOAT32_UNDER_AUTOCAST = {"decode_attention", "merge_states", "pool_agents", "random_features"}
# Arguments that are float32 beside low-precision tensors, and stay so.
MODIFIERS = {"gate", "lses", "omega", "sink", "weight"}


@pytest.mark.parametrize("name", [n for n in SURFACE if n not in ("hip_select", "topk_nodes")])
def test_autocast(name):
    """Floating arguments run in autocast's dtype and float64 stays; what is float32 whatever the inputs
    (lse, states, features) stays float32; gradients have the arguments' dtype.
    """
    row = SURFACE[name]
    arguments = row.arguments(24)
    names = row.floats(arguments)
    low = {n: x.bfloat16() if n in names and n not in MODIFIERS else x for n, x in arguments.items()}
    plain, in_bfloat16 = row.results(arguments), row.results(low)
    with torch.autocast("cpu", torch.bfloat16):
        results, grads = gradients(row, arguments)
        doubles = row.results(row.arguments(24, torch.float64))
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)
    assert results[0].dtype == (torch.float32 if name in FLOAT32_UNDER_AUTOCAST else torch.bfloat16)
    for cast, exact, low_result, double in zip(results, plain, in_bfloat16, doubles, strict=True):
        assert double.dtype == torch.float64 or not double.is_floating_point()
        torch.testing.assert_close(cast, exact.to(cast.dtype), rtol=0.1, atol=0.1)
        if name not in FLOAT32_UNDER_AUTOCAST | {"random_feature_attention"}:  # its features are float32
            assert torch.equal(cast, low_result)


@WITH_GRADIENT
def test_func_grad(name):
    row = SURFACE[name]
    arguments = row.arguments(24, torch.float64)
    names = row.floats(arguments)

    def loss(*floats):
        return scalar(row.results({**arguments, **dict(zip(names, floats, strict=True))}))

    leaves = [arguments[n] for n in names]
    found = torch.func.grad(loss, tuple(range(len(names))))(*(x.detach() for x in leaves))
    assert_same(found, gradients(row, arguments)[1])


@pytest.mark.parametrize("reentrant", [False, True])
@WITH_GRADIENT
def test_checkpoint(name, reentrant):
    row = SURFACE[name]
    arguments = row.arguments(24)
    names = list(arguments)

    def run(*values):
        return row.results(dict(zip(names, values, strict=True)))

    results = checkpoint(run, *arguments.values(), use_reentrant=reentrant)
    wanted = [arguments[n] for n in row.floats(arguments)]
    if reentrant:  # serves backward() only
        scalar(results).backward()
        found = [x.grad for x in wanted]
    else:
        found = torch.autograd.grad(scalar(results), wanted)
    expected = gradients(row, arguments)
    assert_same(results, expected[0], exactly=True)
    assert_same(found, expected[1], exactly=True)


@ALL
def test_threads(name):
    row = SURFACE[name]
    arguments = row.arguments(37)
    expected = gradients(row, arguments)
    found, start = {}, threading.Barrier(4)

    def work(i):
        own = {n: x.detach().clone().requires_grad_(x.requires_grad) for n, x in arguments.items()}
        start.wait()
        found[i] = [gradients(row, own) for _ in range(3)]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4
    for results in found.values():
        for actual in results:
            assert_same(actual[0], expected[0], exactly=True)
            assert_same(actual[1], expected[1], exactly=True)


@ALL
def test_forward_mode(name):
    """Raises, or is right; never a silent zero."""
    row = SURFACE[name]
    arguments = row.arguments(24, torch.float64)
    names = row.floats(arguments)
    g = torch.Generator().manual_seed(1)
    tangents = {n: torch.randn(arguments[n].shape, generator=g, dtype=torch.float64) for n in names}
    said = ""
    try:
        with forward_ad.dual_level():
            duals = {n: forward_ad.make_dual(arguments[n].detach(), tangents[n]) for n in names}
            results = row.results({**arguments, **duals})
            rates = [forward_ad.unpack_dual(x).tangent for x in results if x.is_floating_point()]
            if not rates:  # a selection: integers are constants
                return
    except (RuntimeError, NotImplementedError) as error:
        said = str(error)
    if name not in FORWARD_MODE_WORKS:
        assert re.search("forward AD|jvp", said), said
        return
    assert said == ""
    results, grads = gradients(row, arguments)
    rate = sum(2 * (x.detach() * r).sum() for x, r in zip(results, rates, strict=True))
    expected = sum((g * tangents[n]).sum() for n, g in zip(names, grads, strict=True))
    torch.testing.assert_close(rate, expected)


FORWARD_MODE_WORKS = {"pool_agents", "random_features"}  # made of PyTorch's own functions

ROWS = (2, 16, 16)
MODULES = {
    "AgentAttention": (lambda: attn.nn.AgentAttention(16, num_heads=2, window=(4, 4), agent_num=4), [ROWS]),
    "FlowAttention": (lambda: attn.nn.FlowAttention(16, n_heads=2), [ROWS]),
    "FrozenReluAttention": (lambda: attn.nn.FrozenReluAttention(16, 2), [(2, 16), ROWS]),
    "LamaPooling": (lambda: attn.nn.LamaPooling(16, num_heads=2), [ROWS]),
    "LatentPooling": (lambda: attn.nn.LatentPooling(16, num_latents=3, num_heads=2, head_dim=8), [ROWS]),
    "LinearAttention": (lambda: attn.nn.LinearAttention(16, n_heads=2), [ROWS]),
    "MultiLayerPooling": (
        lambda: attn.nn.MultiLayerPooling(16, layers=2, num_latents=3, num_heads=2, head_dim=8),
        [(2, 2, 16)],
    ),
    "MultisetPooling": (lambda: attn.nn.MultisetPooling(16, num_seeds=2, num_heads=2), [ROWS]),
    "PoNetMixer": (lambda: attn.nn.PoNetMixer(16, num_heads=2, segment_length=4), [ROWS]),
    "TokenPooling": (attn.nn.TokenPooling, [ROWS]),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_copy(name):
    torch.manual_seed(0)
    make, shapes = MODULES[name]
    module = make().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)  # some start as zeros
    inputs = [torch.randn(*shape) for shape in shapes]
    expected = module(*inputs)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(other) is type(module)
        assert torch.equal(other(*inputs), expected)
        assert list(other.state_dict()) == list(module.state_dict())
        for own in other.parameters():
            assert all(own.data_ptr() != theirs.data_ptr() for theirs in module.parameters())
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs), expected)


@pytest.mark.parametrize("rule", ["causal", "window", "documents"])
def test_block_mask(rule):
    """A FlexAttention BlockMask means here what it means there, gradients included."""
    documents = torch.tensor([0] * 37 + [1] * 50 + [2] * 73)
    rules = {
        "causal": lambda b, h, q, k: q >= k,
        "window": lambda b, h, q, k: (q - k).abs() <= 20 + 9 * h,
        "documents": lambda b, h, q, k: (documents[q] == documents[k]) & (q >= k),
    }
    mask = flex.create_block_mask(rules[rule], 2, 4, 160, 160, device="cpu", BLOCK_SIZE=32)
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, h, 160, 16, generator=g, dtype=torch.float64) for h in (4, 2, 2))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    layout = attn.BlockLayout.from_block_mask(mask)
    # It has no backward on the CPU: gradients are those of its mask, written out.
    expected = flex.flex_attention(*(x.detach() for x in leaves), block_mask=mask, enable_gqa=True)
    out = attn.block_sparse_attention(q, k, v, layout)
    torch.testing.assert_close(out.detach(), expected)
    dense = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=layout.to_token_mask(), enable_gqa=True
    )
    torch.testing.assert_close(dense.detach(), expected)
    assert_same(torch.autograd.grad(out.sin().sum(), leaves), torch.autograd.grad(dense.sin().sum(), leaves))
