"""attn.prefix_softmax_pool and its step against the float64 reference."""

from functools import partial
from itertools import pairwise

import pytest
import torch

import attn
import eager_scan
from attn import reference
from scan_oracle import DTYPES, check, draw, results

OPS = torch.ops.attn
# B, H, Hv, T, D
SHAPES = [(2, 2, 2, 70, 6), (1, 4, 2, 300, 64), (1, 1, 1, 1200, 96), (1, 2, 2, 33, 320), (3, 1, 1, 1, 8)]


def inputs(shape, dtype, spread=3.0):
    b, h, hv, t, d = shape
    score, v = draw((b, h, t), (b, hv, t, d))
    return (spread * score).to(dtype), v.to(dtype)


def plain(score, v):
    return eager_scan.prefix_softmax_pool(score, v.repeat_interleave(score.shape[1] // v.shape[1], 1))


def exact(score, v, **options):
    return reference.prefix_softmax_pool(
        score, v.repeat_interleave(score.shape[1] // v.shape[1], 1), **options
    )


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_reference(shape, dtype):
    check(attn.prefix_softmax_pool, plain, exact, inputs(shape, dtype), str(shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packed(dtype):
    cu = torch.tensor([0, 300, 300, 301, 380], dtype=torch.int32)
    score, v = inputs((1, 2, 2, 400, 16), dtype)

    def by_sequence(function):
        def run(score, v):
            parts = [function(score[:, :, i:j], v[:, :, i:j]) for i, j in pairwise(cu.tolist()) if i < j]
            return torch.cat([*parts, torch.zeros_like(v[:, :, 380:])], 2)

        return run

    def ours(score, v):
        return attn.prefix_softmax_pool(score, v, cu_seqlens=cu)

    check(ours, by_sequence(plain), by_sequence(exact), (score, v), "packed")
    assert torch.equal(ours(score, v)[:, :, :300], attn.prefix_softmax_pool(score[:, :, :300], v[:, :, :300]))


def test_large_scores():
    """Scores beyond 1000, as trained models have them: e^score is infinite, results are not."""
    score, v = inputs((1, 2, 2, 600, 8), torch.float32, spread=2000.0)
    check(
        lambda x: attn.prefix_softmax_pool(score, x), *(partial(f, score) for f in (dense, exact)), (v,), "v"
    )
    # The softmax is saturated, so scores have next to no gradient: what a scan leaves of it is rounding of
    # sums that are as large as in any other case.
    found = results(attn.prefix_softmax_pool, (score, v), torch.float32)[1]
    truth = results(exact, (score.double(), v.double()), torch.float32)[1]
    usual = results(exact, (score.double() / 2000, v.double()), torch.float32)[1]
    assert (found - truth).abs().max() < 1e-5 * usual.abs().max()
    rising = torch.arange(600.0).expand(1, 1, 600) * 50
    out = attn.prefix_softmax_pool(rising, v[:, :1])
    torch.testing.assert_close(out, v[:, :1])


def dense(score, v):
    """The weights as a matrix, in the dtype of the arguments; rows before the first score are 0."""
    t = score.shape[2]
    hidden = torch.ones(t, t, dtype=torch.bool).triu(1) | (score == -torch.inf)[:, :, None, :]
    logits = score[:, :, None, :].expand(-1, -1, t, -1).masked_fill(hidden, -torch.inf)
    none = hidden.all(-1, keepdim=True)
    return logits.masked_fill(none, 0.0).softmax(-1).masked_fill(none, 0.0) @ v


def test_left_out_tokens():
    """A score of -inf leaves its token out, NaN or not; rows before the first other score are 0."""
    score, v = inputs((1, 1, 1, 400, 8), torch.float32)
    out_of = torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.3
    out_of[:3] = True
    score[..., out_of] = -torch.inf
    clean = v.masked_fill(out_of[:, None], 0.0)
    check(attn.prefix_softmax_pool, dense, exact, (score, clean), "-inf")
    poisoned = v.masked_fill(out_of[:, None], torch.nan)
    out, lse = attn.prefix_softmax_pool(score, poisoned, return_lse=True)
    assert torch.equal(out, attn.prefix_softmax_pool(score, clean))
    assert (out[:, :, :3] == 0).all()
    assert (lse[:, :, :3] == -torch.inf).all()


def test_lse():
    score, v = inputs((1, 2, 1, 500, 4), torch.float64)
    lse = attn.prefix_softmax_pool(score, v, return_lse=True)[1]
    torch.testing.assert_close(lse, torch.logcumsumexp(score, 2))


def test_gradcheck():
    score, v = (x.requires_grad_() for x in inputs((1, 2, 1, 9, 3), torch.float64, 1.0))
    assert torch.autograd.gradcheck(lambda s, x: attn.prefix_softmax_pool(s, x, return_lse=True), (score, v))
    score, v = (x.requires_grad_() for x in inputs((1, 2, 2, 1, 3), torch.float64, 1.0))
    before = (torch.randn(1, 2, 1, 3, dtype=torch.float64), torch.randn(1, 2, 1, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda s, x: attn.prefix_softmax_pool_step(s, x, before)[0], (score, v))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_steps(dtype):
    score, v = inputs((2, 3, 3, 50, 6), dtype)
    state, rows = None, []
    for t in range(50):
        out, state = attn.prefix_softmax_pool_step(score[:, :, t : t + 1], v[:, :, t : t + 1], state)
        rows.append(out)
    truth = exact(score, v)
    error = (plain(score, v).double() - truth).abs().max()
    assert (torch.cat(rows, 2).double() - truth).abs().max() <= 2 * error + 1e-5 * truth.abs().max()


def test_future_does_not_matter():
    score, v = inputs((1, 2, 2, 700, 8), torch.float32)
    out = attn.prefix_softmax_pool(score, v)
    for cut in (1, 256, 300):
        later = score.clone(), v.clone()
        later[0][:, :, cut:], later[1][:, :, cut:] = torch.nan, torch.nan
        assert torch.equal(attn.prefix_softmax_pool(*later)[:, :, :cut], out[:, :, :cut])


@pytest.mark.isa
@pytest.mark.parametrize("heads", [1, 3, 8])
def test_same_bits_with_any_number_of_threads(heads):
    score, v = (x.requires_grad_() for x in inputs((1, heads, heads, 900, 20), torch.float32))

    def run():
        out = attn.prefix_softmax_pool(score, v)
        return [out, *torch.autograd.grad(out.square().sum(), (score, v))]

    two = run()
    torch.set_num_threads(1)
    try:
        one = run()
    finally:
        torch.set_num_threads(2)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_long_and_wide():
    score, v = inputs((1, 1, 1, 1 << 20, 4), torch.float32, 1.0)
    out = attn.prefix_softmax_pool(score, v)
    truth = eager_scan.prefix_softmax_pool(score.double(), v.double())
    assert (out - truth).abs().max() < 1e-5 * truth.abs().max()
    score, v = inputs((64, 64, 64, 9, 6), torch.float32)
    out = attn.prefix_softmax_pool(score, v)
    assert torch.equal(out[3:4, 60:61], attn.prefix_softmax_pool(score[3:4, 60:61], v[3:4, 60:61]))


@pytest.mark.parametrize("shape", [(2, 2, 2, 0, 4), (0, 2, 2, 5, 4), (1, 2, 1, 5, 0)], ids=str)
def test_empty(shape):
    score, v = (x.requires_grad_() for x in inputs(shape, torch.float32))
    out = attn.prefix_softmax_pool(score, v)
    assert out.shape == (shape[0], shape[1], shape[3], shape[4])
    assert all((g == 0).all() for g in torch.autograd.grad(out.sum(), (score, v)))


@pytest.mark.parametrize("shape", [(1, 4, 2, 12, 8), (2, 2, 2, 12, 8)], ids=str)
def test_opcheck_and_compile(shape):
    score, v = inputs(shape, torch.float32)
    torch.library.opcheck(OPS.prefix_pool_forward.default, (score, v))
    out, lse = OPS.prefix_pool_forward(score, v)
    saved = (torch.randn_like(out), torch.randn_like(lse), score, v, out, lse)
    torch.library.opcheck(OPS.prefix_pool_backward.default, saved)
    leaves = (score.requires_grad_(), v.requires_grad_())
    compiled = torch.compile(attn.prefix_softmax_pool, fullgraph=True, dynamic=True, backend="aot_eager")
    for expected, found in zip(
        torch.autograd.grad(attn.prefix_softmax_pool(*leaves).sum(), leaves),
        torch.autograd.grad(compiled(*leaves).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("score", "v", "message"),
    [
        (torch.zeros(1, 2, 8), torch.zeros(1, 2, 8), "v must be"),
        (torch.zeros(1, 2, 9), torch.zeros(1, 2, 8, 4), r"score must be \[B, H, T\]"),
        (torch.zeros(1, 3, 8), torch.zeros(1, 2, 8, 4), "multiple of the heads of v, got 3 and 2"),
        (torch.zeros(1, 2, 8).double(), torch.zeros(1, 2, 8, 4), "dtype of v, float32, got float64"),
    ],
)
def test_refused(score, v, message):
    with pytest.raises(ValueError, match=message):
        attn.prefix_softmax_pool(score, v)
