"""attn.merge_states against the definition in float64, and the contract every op of the package has to
meet.
"""

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

import attn
from tolerance import assert_as_exact_as

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
INF = float("inf")


def statistics(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def plain(outs, lses):
    """The definition, in the dtype of its arguments."""
    lse = torch.logsumexp(lses, 0)
    weights = torch.exp(lses - torch.where(lse.isinf(), 0, lse)).to(outs.dtype)
    return (weights[..., None] * outs).sum(0), lse


def make(shape, dtype, generator, parts=3):
    outs = torch.randn(parts, *shape, generator=generator, dtype=torch.float64).to(dtype)
    lses = (3 * torch.randn(parts, *shape[:-1], generator=generator, dtype=torch.float64)).to(
        statistics(dtype)
    )
    return outs, lses


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(8,), (5, 7), (2, 3, 33), (2, 3, 17, 64), (1, 2, 2, 9, 40), (1, 1, 300)], ids=str
)
def test_values_and_gradients(shape, dtype, generator):
    outs, lses = make(shape, dtype, generator)
    if outs.dim() > 2:
        lses[1, 0] = -INF
    dout = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    dlse = torch.randn(shape[:-1], generator=generator, dtype=torch.float64).to(lses.dtype)

    def run(function, outs, lses):
        outs, lses = outs.clone().requires_grad_(), lses.clone().requires_grad_()
        out, lse = function(outs, lses)
        grads = torch.autograd.grad((out, lse), (outs, lses), (dout.to(out.dtype), dlse.to(lse.dtype)))
        return out, lse, *grads

    actual = run(attn.merge_states, outs, lses)
    low = run(plain, outs, lses)
    exact = run(plain, outs.double(), lses.double())
    for name, a, p, e in zip(("out", "lse", "douts", "dlses"), actual, low, exact, strict=True):
        assert_as_exact_as(a, p, e, name)


def test_is_attention_over_the_union(generator):
    q, k, v = (torch.randn(2, 4, 50, 16, generator=generator) for _ in range(3))

    def attend(k, v):
        s = q @ k.mT / 4
        return s.softmax(-1) @ v, s.logsumexp(-1)

    pieces = [attend(k[:, :, a:b], v[:, :, a:b]) for a, b in [(0, 10), (10, 11), (11, 50)]]
    out, lse = attn.merge_states([o for o, _ in pieces], [l for _, l in pieces])
    torch.testing.assert_close((out, lse), attend(k, v))


def test_empty_rows(generator):
    outs, lses = make((2, 3, 6, 8), torch.float32, generator)
    lses[:, 0, 1] = -INF
    lses[0, 1] = -INF
    outs[lses == -INF] = float("nan")
    outs.requires_grad_()
    lses.requires_grad_()
    out, lse = attn.merge_states(outs, lses)
    assert not out.isnan().any()
    assert (out[0, 1] == 0).all()
    assert (lse[0, 1] == -INF).all()
    (out.sum() + lse[~lse.isinf()].sum()).backward()
    for grad in (outs.grad, lses.grad):
        assert not grad.isnan().any()
        assert (grad[:, 0, 1] == 0).all()
        assert (grad[0, 1] == 0).all()


@pytest.mark.parametrize("which", ["out", "lse"])
def test_gradient_of_one_result(which, generator):
    outs, lses = (x.requires_grad_() for x in make((2, 5), torch.float64, generator))
    index = ("out", "lse").index(which)
    grads = torch.autograd.grad(attn.merge_states(outs, lses)[index].square().sum(), (outs, lses))
    expected = torch.autograd.grad(plain(outs, lses)[index].square().sum(), (outs, lses), allow_unused=True)
    for grad, reference in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, torch.zeros_like(grad) if reference is None else reference)


@pytest.mark.isa
@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 2, 3, 7)], ids=str)
def test_gradcheck(shape, generator):
    outs, lses = (x.requires_grad_() for x in make(shape, torch.float64, generator))
    assert torch.autograd.gradcheck(attn.merge_states, (outs, lses))


def test_strides_without_copy(generator):
    outs, lses = make((2, 3, 10, 16), torch.float32, generator)
    expected = attn.merge_states(outs, lses)
    token_major = outs.transpose(2, 3).contiguous().transpose(2, 3)
    parts_last = lses.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    wide = torch.full((3, 2, 3, 10, 40), float("nan"))
    wide[..., 8:24] = outs
    for o, l in [(token_major, lses), (outs, parts_last), (wide[..., 8:24], lses)]:
        torch.testing.assert_close(attn.merge_states(o, l), expected, rtol=0, atol=0)
    shared = lses[:1].expand(3, -1, -1, -1)
    torch.testing.assert_close(
        attn.merge_states(outs, shared), attn.merge_states(outs, shared.contiguous()), rtol=0, atol=0
    )
    scattered = outs.mT.contiguous().mT  # last dimension not contiguous: copied, not refused
    torch.testing.assert_close(attn.merge_states(scattered, lses), expected, rtol=0, atol=0)


@hypothesis.given(
    parts=st.integers(1, 6),
    shape=st.lists(st.integers(0, 5), min_size=0, max_size=5),
    dim=st.integers(0, 70),
    dtype=st.sampled_from(DTYPES),
    empty=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_any_shape(parts, shape, dim, dtype, empty, seed):
    generator = torch.Generator().manual_seed(seed)
    outs, lses = make((*shape, dim), dtype, generator, parts)
    lses[torch.rand(lses.shape, generator=generator) < empty] = -INF
    out, lse = attn.merge_states(outs, lses)
    exact_out, exact_lse = plain(outs.double(), lses.double())
    low_out, low_lse = plain(outs, lses)
    assert_as_exact_as(out, low_out, exact_out, "out")
    assert_as_exact_as(lse, low_lse, exact_lse, "lse")


def test_deterministic_and_batch_invariant(generator):
    outs, lses = make((4, 3, 200, 64), torch.bfloat16, generator, parts=5)
    first = attn.merge_states(outs, lses)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.testing.assert_close(attn.merge_states(outs, lses), first, rtol=0, atol=0)
    finally:
        torch.set_num_threads(threads)
    alone = attn.merge_states(outs[:, 2:3], lses[:, 2:3])
    torch.testing.assert_close(alone, tuple(x[2:3] for x in first), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype, generator):
    outs, lses = make((2, 3, 5, 8), dtype, generator)
    torch.library.opcheck(torch.ops.attn.merge_states.default, (outs, lses))
    out, lse = attn.merge_states(outs, lses)
    for dlse in (None, torch.randn_like(lse)):
        arguments = (torch.randn_like(out), dlse, outs, lses, lse)
        torch.library.opcheck(torch.ops.attn.merge_states_backward.default, arguments)


def test_transforms(generator):
    outs, lses = make((2, 5, 8), torch.float64, generator)

    def loss(outs, lses):
        out, lse = attn.merge_states(outs, lses)
        return out.square().sum() + lse.sin().sum()

    def reference(outs, lses):
        out, lse = plain(outs, lses)
        return out.square().sum() + lse.sin().sum()

    expected = torch.func.grad(reference, (0, 1))(outs, lses)
    torch.testing.assert_close(torch.func.grad(loss, (0, 1))(outs, lses), expected)
    batched = torch.func.vmap(torch.func.grad(loss), in_dims=1)(outs, lses)
    torch.testing.assert_close(batched, expected[0].movedim(1, 0))


def test_compile_fullgraph_dynamic(generator):
    def step(outs, lses):
        out, lse = attn.merge_states(outs * 2, lses)
        return out.sum() + lse.sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (5, 9):
        outs, lses = (x.requires_grad_() for x in make((2, tokens, 8), torch.float32, generator))
        expected = torch.autograd.grad(step(outs, lses), (outs, lses))
        torch.testing.assert_close(torch.autograd.grad(compiled(outs, lses), (outs, lses)), expected)


def test_export(generator):
    class Merge(torch.nn.Module):
        def forward(self, outs, lses):
            return attn.merge_states(outs, lses)

    arguments = make((2, 5, 8), torch.float32, generator)
    tokens = torch.export.Dim("tokens", min=2, max=4096)
    exported = torch.export.export(
        Merge(), arguments, dynamic_shapes={"outs": {2: tokens}, "lses": {2: tokens}}
    )
    other = make((2, 11, 8), torch.float32, generator)
    torch.testing.assert_close(exported.module()(*other), attn.merge_states(*other))


def test_forward_mode_and_second_derivative_are_refused(generator):
    outs, lses = make((2, 5), torch.float64, generator)
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(attn.merge_states, (outs, lses), (outs, lses))
    outs.requires_grad_()
    (grad,) = torch.autograd.grad(attn.merge_states(outs, lses)[0].square().sum(), outs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_meta(generator):
    outs, lses = make((2, 3, 5, 8), torch.bfloat16, generator)
    out, lse = attn.merge_states(outs.to("meta"), lses.to("meta"))
    assert (out.shape, out.dtype, lse.shape, lse.dtype) == (
        (2, 3, 5, 8),
        torch.bfloat16,
        (2, 3, 5),
        torch.float32,
    )


WRONG = {
    "outs rank": (lambda o, l: (o.new_zeros(3), l), ValueError, r"outs must be \[N, \.\.\., D\]"),
    "no part": (lambda o, l: (o[:0], l[:0]), ValueError, "outs must hold at least one part"),
    "lses shape": (
        lambda o, l: (o, l[:, :1]),
        ValueError,
        r"lses must have the shape of outs .* \[3, 2, 5\], got \[3, 1, 5\]",
    ),
    "lses dtype": (
        lambda o, l: (o, l.double()),
        ValueError,
        "lses must be float32 for float32 outs, got float64",
    ),
    "outs type": (lambda o, l: (7, l), TypeError, "outs must be a tensor or a sequence of tensors, got int"),
    "mixed parts": (lambda o, l: ([o[0], o[1, :1]], l[:2]), ValueError, "outs must be tensors of one shape"),
    "integers": (
        lambda o, l: (o.int(), l),
        attn.BackendError,
        "supports dtypes float32, bfloat16, float16, float64, got int32",
    ),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_wrong_arguments(case, generator):
    change, error, text = case
    with pytest.raises(error, match=text):
        attn.merge_states(*change(*make((2, 5, 8), torch.float32, generator)))


WRONG_OP = {
    "rank": (lambda o, l: (o[0, 0, 0], l), r"outs must be \[N, \.\.\., D\]"),
    "dtype": (lambda o, l: (o.int(), l), "outs must be float32, bfloat16, float16 or float64, got int32"),
    "lses dtype": (lambda o, l: (o, l.half()), "lses must be float32, got float16"),
    "lses shape": (lambda o, l: (o, l.mT), r"lses must be .* = \[3, 2, 5\], got shape \[3, 5, 2\]"),
    "strides": (lambda o, l: (o.mT.contiguous().mT, l), "outs must be contiguous in its last dimension"),
}


@pytest.mark.parametrize("case", WRONG_OP.values(), ids=WRONG_OP)
def test_op_refuses_by_itself(case, generator):
    change, text = case
    with pytest.raises(RuntimeError, match="attn::merge_states: " + text):
        torch.ops.attn.merge_states(*change(*make((2, 5, 8), torch.float32, generator)))
