"""attn.window_pool against its float64 oracle, max_pool1d and avg_pool1d."""

from itertools import pairwise

import pytest
import torch

import attn
from attn import reference
from attn.reference.segment import maximum
from pool_oracle import DTYPES, NAN, check_equal, check_pool, randn, results, same_for_any_threads

OPS = torch.ops.attn


def plain(x, *, window, reduce="max", dilation=1, mask=None, cu_seqlens=None, count_include_pad=False):
    """Shifted copies of each sequence, reduced by PyTorch in the dtype of x."""
    batch, length, _ = x.shape
    out = torch.zeros_like(x)
    reach = window // 2 * dilation
    for b in range(batch):
        for i, j in pairwise([0, length] if cu_seqlens is None else cu_seqlens.tolist()):
            if i == j:
                continue
            keep = (torch.ones(j - i, dtype=torch.bool) if mask is None else mask[b, i:j])[:, None]
            fill = -torch.inf if reduce == "max" else 0.0

            def shifts(y, fill, n=j - i):
                padded = torch.nn.functional.pad(y, (0, 0, reach, reach), value=fill)
                return torch.stack([padded[t * dilation : t * dilation + n] for t in range(window)])

            rows = shifts(x[b, i:j].masked_fill(~keep, fill), fill)
            if reduce == "max":
                pooled = maximum(rows, "first")
            else:
                count = shifts(keep.to(x.dtype), 0).sum(0).clamp(min=1)
                pooled = rows.sum(0) / (window if count_include_pad else count)
            out[b, i:j] = pooled.masked_fill(~keep, 0)
    return out


MASK = torch.rand(3, 30, generator=torch.Generator().manual_seed(7)) < 0.7
CU = torch.tensor([0, 0, 1, 9, 40, 40], dtype=torch.int32)
CASES = {
    "3": ((2, 37, 24), {"window": 3}),
    "1": ((2, 7, 5), {"window": 1}),
    "5": ((1, 40, 33), {"window": 5}),
    "9": ((1, 25, 16), {"window": 9}),
    "beyond": ((2, 4, 16), {"window": 31}),
    "dilated": ((2, 29, 17), {"window": 5, "dilation": 3}),
    "dilated beyond": ((1, 6, 8), {"window": 3, "dilation": 10}),
    "mask": ((3, 30, 16), {"window": 3, "mask": MASK}),
    "mask, dilated": ((3, 30, 8), {"window": 7, "dilation": 2, "mask": MASK}),
    "packed": ((1, 43, 16), {"window": 5, "cu_seqlens": CU}),
    "several chunks": ((1, 100, 1100), {"window": 5}),
}


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduce", ["max", "mean", "mean with pad"])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, reduce, dtype):
    shape, options = CASES[case]
    more = {"reduce": reduce[:4].strip(), "count_include_pad": "pad" in reduce}
    inputs = {"x": randn(*shape, dtype=dtype)}
    check_pool(attn.window_pool, plain, reference.window_pool, inputs, {**options, **more})


@pytest.mark.isa
@pytest.mark.parametrize("kind", ["constant", "relu", "negative", "few values"])
@pytest.mark.parametrize("case", ["3", "9", "dilated", "mask", "packed"])
def test_ties(kind, case):
    shape, options = CASES[case]
    x = randn(*shape)
    x = {
        "constant": torch.full_like(x, -0.25),
        "relu": (x - 1).relu(),
        "negative": -x.abs() - 1,
        "few values": x.round(),
    }[kind]
    check_pool(attn.window_pool, plain, reference.window_pool, {"x": x}, options)


@pytest.mark.parametrize("window", [1, 3, 5, 11])
@pytest.mark.parametrize("dilation", [1, 2])
def test_is_max_pool1d(window, dilation):
    """Ties included: the first of equal values wins."""

    def theirs(x):
        padding = window // 2 * dilation
        padded = torch.nn.functional.pad(x.mT, (padding, padding), value=-torch.inf)
        pooled = torch.nn.functional.max_pool1d(padded, window, stride=1, dilation=dilation)
        return pooled.mT

    x = randn(2, 30, 9).round()
    ours = results(attn.window_pool, {"x": x}, {"window": window, "dilation": dilation})
    for name, y in results(theirs, {"x": x}, {}).items():
        torch.testing.assert_close(ours[name], y)


def test_first_of_equal_values():
    x = torch.ones(1, 4, 1, requires_grad=True)
    (gradient,) = torch.autograd.grad(attn.window_pool(x, window=3).sum(), x)
    assert gradient.flatten().tolist() == [2, 1, 1, 0]


@pytest.mark.parametrize("include", [True, False])
def test_is_avg_pool1d(include):
    x = randn(2, 30, 9)

    def theirs(x):
        return torch.nn.functional.avg_pool1d(x.mT, 5, stride=1, padding=2, count_include_pad=include).mT

    ours = results(attn.window_pool, {"x": x}, {"window": 5, "reduce": "mean", "count_include_pad": include})
    for name, y in results(theirs, {"x": x}, {}).items():
        torch.testing.assert_close(ours[name], y)


@pytest.mark.isa
@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_padded_batch_is_each_sequence_alone(reduce):
    lengths = [9, 0, 1, 31, 3]
    mask = torch.arange(31) < torch.tensor(lengths)[:, None]
    x = randn(5, 31, 24).masked_fill(~mask[..., None], NAN)
    cu = torch.nn.functional.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()
    options = {"window": 5, "reduce": reduce}

    def run(x, **more):
        x = x.detach().clone().requires_grad_()
        out = attn.window_pool(x, **options, **more)
        return out, torch.autograd.grad(out, x, torch.ones_like(out))[0]

    together = run(x, mask=mask)
    packed = run(x[mask][None], cu_seqlens=cu)
    for a, b in zip(together, packed, strict=True):
        assert torch.equal(a[mask], b[0])
        assert (a[~mask] == 0).all()
    for n, length in enumerate(lengths):
        for a, b in zip(together, run(x[n : n + 1, :length]), strict=True):
            assert torch.equal(a[n, :length], b[0])


def test_nan_shows_in_its_windows_only():
    x = randn(1, 12, 3)
    x[0, 5, 1] = NAN
    for reduce in ("max", "mean"):
        out = attn.window_pool(x, window=3, reduce=reduce)
        expected = torch.zeros_like(x, dtype=torch.bool)
        expected[0, 4:7, 1] = True
        assert torch.equal(out.isnan(), expected)


def test_small_shapes():
    for shape in ((0, 4, 3), (2, 0, 3), (2, 4, 0), (1, 1, 1)):
        for reduce in ("max", "mean"):
            found = results(attn.window_pool, {"x": randn(*shape)}, {"window": 3, "reduce": reduce})
            assert found["out"].shape == found["dx"].shape == shape
    x = randn(6, 3)
    assert torch.equal(attn.window_pool(x, window=3), attn.window_pool(x[None], window=3)[0])


@pytest.mark.isa
@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_deterministic(reduce):
    x = randn(2, 300, 520, dtype=torch.bfloat16)
    options = {"window": 5, "reduce": reduce}
    same_for_any_threads(lambda: results(attn.window_pool, {"x": x}, options))
    assert torch.equal(attn.window_pool(x[1:], **options), attn.window_pool(x, **options)[1:])


def test_strides():
    x = randn(15, 2, 40)[..., 3:20].transpose(0, 1)
    mask = (torch.arange(30) % 4 > 0).view(15, 2).T
    options = {"window": 3, "mask": mask}
    check_equal(
        results(attn.window_pool, {"x": x}, options),
        results(attn.window_pool, {"x": x.contiguous()}, {**options, "mask": mask.contiguous()}),
    )


@pytest.mark.parametrize("reduce", ["max", "mean"])
@pytest.mark.parametrize("case", ["dilated", "mask", "packed"])
def test_gradcheck(case, reduce):
    shape, options = CASES[case]
    x = randn(*shape, dtype=torch.float64).requires_grad_()
    torch.autograd.gradcheck(lambda x: attn.window_pool(x, reduce=reduce, **options), [x], fast_mode=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    utils = {} if dtype == torch.float32 else {"test_utils": ("test_schema", "test_faketensor")}
    x = randn(1, 43, 8, dtype=dtype)
    for reduce in ("max", "mean"):
        rule = (3, reduce, 2, None, CU, True)
        torch.library.opcheck(OPS.window_pool_forward.default, (x, *rule), **utils)
        torch.library.opcheck(OPS.window_pool_backward.default, (torch.randn_like(x), x, *rule), **utils)


def test_compile():
    def pool(x):
        return attn.window_pool(x, window=3)

    compiled = torch.compile(pool, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (20, 13):
        x = randn(2, length, 8).requires_grad_()
        found, expected = compiled(x), pool(x)
        assert torch.equal(found, expected)
        assert torch.equal(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected)))


WRONG = {
    "x must be": {"x": torch.randn(10)},
    "window must be odd": {"window": 2},
    "window must be": {"window": 0},
    "dilation must be": {"dilation": 0},
    "reduce must be": {"reduce": "sum"},
    "mask must be bool": {"mask": torch.ones(2, 10)},
    r"mask must be \[B, L\]": {"mask": torch.ones(10, dtype=torch.bool)},
    "cu_seqlens needs a batch size of 1": {"cu_seqlens": torch.tensor([0, 10]).int()},
    "count_include_pad": {"count_include_pad": 3},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments(message):
    given = {"x": torch.randn(2, 10, 8), "window": 3, **WRONG[message]}
    with pytest.raises((TypeError, ValueError), match=message):
        attn.window_pool(given.pop("x"), **given)
