"""attn.segment_pool against its float64 oracle and torch's reductions."""

from itertools import pairwise

import pytest
import torch

import attn
from attn import reference
from attn.reference.segment import reduce_rows
from pool_oracle import DTYPES, NAN, check_equal, check_pool, randn, results, same_for_any_threads

OPS = torch.ops.attn
REDUCTIONS = ("max", "mean", "sum", "first", "last")
TIES = ("first", "even")


def plain(x, *, segment_ids=None, cu_seqlens=None, reduce="max", tie="first", mask=None, num_segments=None):
    """Each segment's rows gathered and reduced by PyTorch in the dtype of x."""
    keep = torch.ones(x.shape[:-1], dtype=torch.bool) if mask is None else mask
    if cu_seqlens is not None:
        spans = pairwise(cu_seqlens.tolist())
        return torch.stack([reduce_rows(x[i:j][keep[i:j]], reduce, tie) for i, j in spans])
    if segment_ids is None:
        segment_ids, num_segments = torch.zeros(x.shape[:-1], dtype=torch.int32), 1
    if num_segments is None:
        num_segments = int(torch.where(keep, segment_ids, -1).max()) + 1
    rows = [
        reduce_rows(x[b][(segment_ids[b] == s) & keep[b]], reduce, tie)
        for b in range(x.shape[0])
        for s in range(num_segments)
    ]
    return torch.stack(rows).unflatten(0, (x.shape[0], num_segments))


def sorted_ids(batch, length, top):
    return torch.randint(top, (batch, length), generator=torch.Generator().manual_seed(5)).sort().values.int()


def random_mask(*shape, share=0.7):
    return torch.rand(shape, generator=torch.Generator().manual_seed(7)) < share


CU = torch.tensor([0, 0, 1, 9, 40, 40], dtype=torch.int32)
CASES = {
    "ids": ((2, 41, 32), {"segment_ids": sorted_ids(2, 41, 9)}),
    "more segments": ((2, 13, 7), {"segment_ids": sorted_ids(2, 13, 4), "num_segments": 6}),
    "mask": ((2, 41, 33), {"segment_ids": sorted_ids(2, 41, 9), "mask": random_mask(2, 41)}),
    "packed": ((43, 24), {"cu_seqlens": CU}),
    "packed mask": ((43, 24), {"cu_seqlens": CU, "mask": random_mask(43)}),
    "batch entries": ((3, 20, 8), {"mask": random_mask(3, 20)}),
    # Longer than a work item: put together from parts.
    "split": ((130, 1100), {"cu_seqlens": torch.tensor([0, 3, 110, 130], dtype=torch.int32)}),
    "split ids": ((2, 90, 1100), {"segment_ids": sorted_ids(2, 90, 2), "mask": random_mask(2, 90)}),
}


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, reduce, dtype):
    shape, options = CASES[case]
    x = randn(*shape, dtype=dtype)
    check_pool(attn.segment_pool, plain, reference.segment_pool, {"x": x}, {"reduce": reduce, **options})


@pytest.mark.isa
@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize("shape", [(60, 24), (90, 1100)], ids=str)
@pytest.mark.parametrize("kind", ["constant", "zero", "relu", "negative", "few values", "-0"])
def test_ties(kind, shape, tie):
    x = randn(*shape)
    x = {
        "constant": torch.full_like(x, -0.25),
        "zero": torch.zeros_like(x),
        "relu": (x - 1).relu(),
        "negative": -x.abs() - 1,
        "few values": x.round(),
        "-0": torch.where(x > 0, 0.0, -0.0),
    }[kind]
    cu = torch.tensor([0, 5, 6, shape[0] - 4, shape[0]], dtype=torch.int32)
    options = {"cu_seqlens": cu, "tie": tie}
    check_pool(attn.segment_pool, plain, reference.segment_pool, {"x": x}, options)


def test_a_maximum_of_zero_keeps_its_gradient():
    """scatter_reduce without self loses part of it: the excluded 0 counts as a winner."""
    x = torch.tensor([[-1.0], [0.0], [-2.0]], requires_grad=True)
    cu = torch.tensor([0, 3], dtype=torch.int32)
    for tie in TIES:
        (gradient,) = torch.autograd.grad(attn.segment_pool(x, cu_seqlens=cu, tie=tie).sum() * 3, x)
        assert gradient.tolist() == [[0.0], [3.0], [0.0]]


@pytest.mark.parametrize("reduce", ["max", "mean", "sum"])
def test_even_ties_are_scatter_reduces(reduce):
    x = randn(50, 8, dtype=torch.float64).round() + 5  # ties, and no maximum at 0
    lengths = torch.tensor([3, 1, 20, 26])
    index = torch.repeat_interleave(torch.arange(4), lengths)[:, None].expand(-1, 8)
    cu = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()

    def theirs(x):
        name = {"max": "amax"}.get(reduce, reduce)
        return x.new_zeros(4, 8).scatter_reduce(0, index, x, name, include_self=False)

    ours = results(attn.segment_pool, {"x": x}, {"cu_seqlens": cu, "reduce": reduce, "tie": "even"})
    for name, y in results(theirs, {"x": x}, {}).items():
        torch.testing.assert_close(ours[name], y)


def test_first_ties_are_maxs_by_dimension():
    x = randn(3, 17, 6).round()
    ours = results(attn.segment_pool, {"x": x}, {})
    first = x.max(1, keepdim=True).values.eq(x).int().argmax(1, keepdim=True)
    expected = torch.zeros_like(x).scatter(1, first, randn(3, 1, 6, seed=1))
    assert torch.equal(ours["dx"], expected)


@pytest.mark.isa
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_padded_batch_is_each_sequence_alone(reduce):
    lengths = [9, 0, 1, 70, 3]
    mask = torch.arange(70) < torch.tensor(lengths)[:, None]
    x = randn(5, 70, 600).masked_fill(~mask[..., None], NAN)
    cu = torch.nn.functional.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()
    together = results(attn.segment_pool, {"x": x}, {"reduce": reduce, "mask": mask})
    packed = results(lambda x, **o: attn.segment_pool(x, **o)[:, None], {"x": x[mask]},
                     {"reduce": reduce, "cu_seqlens": cu})  # fmt: skip
    assert torch.equal(together["out"], packed["out"])
    assert torch.equal(together["dx"][mask], packed["dx"])
    assert (together["dx"][~mask] == 0).all()
    assert (together["out"][1] == 0).all()
    for n, length in enumerate(lengths):
        assert torch.equal(
            attn.segment_pool(x[n : n + 1, :length], reduce=reduce), together["out"][n : n + 1]
        )


def test_ids_of_masked_tokens_do_not_matter():
    ids = torch.tensor([[0, 0, 2, 2]], dtype=torch.int32)
    wild = torch.tensor([[0, 0, 99, 2]], dtype=torch.int32)
    keep = torch.tensor([[True, True, False, True]])
    x = randn(1, 4, 5)
    assert torch.equal(
        attn.segment_pool(x, segment_ids=wild, mask=keep), attn.segment_pool(x, segment_ids=ids, mask=keep)
    )


def test_rows_past_the_last_segment():
    x = randn(20, 8)
    x[12:] = NAN
    for reduce in REDUCTIONS:
        options = {"cu_seqlens": torch.tensor([0, 7, 12], dtype=torch.int32), "reduce": reduce}
        found = results(attn.segment_pool, {"x": x}, options)
        assert not found["out"].isnan().any()
        assert (found["dx"][12:] == 0).all()


def test_nan_shows():
    x = randn(6, 4)
    x[2, 1] = NAN
    out = attn.segment_pool(x, cu_seqlens=torch.tensor([0, 3, 6], dtype=torch.int32))
    assert out.isnan().tolist() == [[False, True, False, False], [False] * 4]


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_small_shapes(reduce):
    for shape in ((0, 4, 3), (2, 0, 3), (2, 4, 0), (1, 1, 1)):
        found = results(attn.segment_pool, {"x": randn(*shape)}, {"reduce": reduce})
        assert found["out"].shape == (shape[0], 1, shape[2])
        assert found["dx"].shape == shape
    assert attn.segment_pool(randn(5, 3), cu_seqlens=torch.zeros(1, dtype=torch.int32)).shape == (0, 3)
    none = torch.zeros(2, 0, dtype=torch.int32)
    assert attn.segment_pool(randn(2, 0, 3), segment_ids=none).shape == (2, 0, 3)


@pytest.mark.isa
@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_deterministic(reduce):
    x = randn(700, 520, dtype=torch.bfloat16)
    cu = torch.tensor([0, 300, 301, 340, 700], dtype=torch.int32)
    options = {"cu_seqlens": cu, "reduce": reduce, "tie": "even"}
    same_for_any_threads(lambda: results(attn.segment_pool, {"x": x}, options))
    alone = results(attn.segment_pool, {"x": x[301:]}, {**options, "cu_seqlens": cu[2:] - 301})
    assert torch.equal(alone["out"], results(attn.segment_pool, {"x": x}, options)["out"][2:])


def test_sums_are_kept_in_float32():
    ones = torch.full((1, 131072, 1), 0.5)
    for dtype in (torch.bfloat16, torch.float16):
        assert attn.segment_pool(ones.to(dtype), reduce="mean").item() == 0.5
    assert attn.segment_pool(ones.bfloat16(), reduce="sum").item() == 65536


def test_strides():
    x = randn(15, 2, 40)[..., 3:20].transpose(0, 1)
    options = {"segment_ids": sorted_ids(2, 15, 4)}
    check_equal(
        results(attn.segment_pool, {"x": x}, options),
        results(attn.segment_pool, {"x": x.contiguous()}, options),
    )
    mask = random_mask(15, 2).T
    ids = sorted_ids(2, 15, 4).T.contiguous().T
    found = attn.segment_pool(x, segment_ids=ids, mask=mask)
    assert torch.equal(found, attn.segment_pool(x, segment_ids=ids.contiguous(), mask=mask.contiguous()))


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_gradcheck(reduce):
    for shape, options in (CASES["mask"], CASES["packed"]):
        x = randn(*shape, dtype=torch.float64).requires_grad_()
        torch.autograd.gradcheck(
            lambda x, o=options: attn.segment_pool(x, reduce=reduce, **o), [x], fast_mode=True
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    utils = {} if dtype == torch.float32 else {"test_utils": ("test_schema", "test_faketensor")}
    x, mask = randn(2, 20, 8, dtype=dtype), random_mask(2, 20)
    ids = sorted_ids(2, 20, 5)
    for places in ((ids, None, 5), (None, None, 1)):
        torch.library.opcheck(OPS.segment_pool_forward.default, (x, *places, "mean", mask), **utils)
        dout = OPS.segment_pool_forward(x, *places)
        torch.library.opcheck(
            OPS.segment_pool_backward.default, (dout, x, *places, "max", mask, "even"), **utils
        )
    packed = (None, torch.tensor([0, 7, 18], dtype=torch.int32), 1)
    torch.library.opcheck(OPS.segment_pool_forward.default, (x[0], *packed), **utils)
    dout = OPS.segment_pool_forward(x[0], *packed)
    torch.library.opcheck(OPS.segment_pool_backward.default, (dout, x[0], *packed), **utils)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck_max(dtype):
    utils = {} if dtype == torch.float32 else {"test_utils": ("test_schema", "test_faketensor")}
    x, mask = randn(2, 20, 8, dtype=dtype), random_mask(2, 20)
    cu = torch.tensor([0, 7, 18], dtype=torch.int32)
    for rows, places in ((x, (sorted_ids(2, 20, 5), None, 5)), (x, (None, None, 1)), (x[0], (None, cu, 1))):
        kept = mask if rows is x else mask[0]
        torch.library.opcheck(OPS.segment_max_forward.default, (rows, *places, kept), **utils)
        dout, token = OPS.segment_max_forward(rows, *places, kept)
        options = ("max", kept, "first", token, 20)
        torch.library.opcheck(OPS.segment_pool_backward.default, (dout, None, *places, *options), **utils)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_noted_tokens(dtype):
    x = randn(2, 900, 37, dtype=dtype).round()
    x[0, 5, 3], x[1, 400:, 4], x[0, :, 6], x[1, :3, 7] = NAN, NAN, -torch.inf, torch.inf
    out, token = OPS.segment_max_forward(x, None, None, 1)
    torch.testing.assert_close(
        out, OPS.segment_pool_forward(x, None, None, 1), rtol=0, atol=0, equal_nan=True
    )
    top = x.amax(1, keepdim=True)
    assert torch.equal(token, torch.where(top.isnan(), -1, x.eq(top).int().argmax(1, keepdim=True)).int())
    # Any token at all: those that there are get the gradient, others nobody.
    wild = torch.randint(-(2**31), 2**31 - 1, token.shape).int()
    wild[0] = torch.randint(0, 900, token.shape[1:]).int()
    dout = torch.rand(out.shape).to(dtype) + 1
    dx = OPS.segment_pool_backward(dout, None, None, None, 1, token=wild, tokens=900)
    assert torch.equal(dx, torch.where(torch.arange(900)[None, :, None] == wild, dout, 0))


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("tie", TIES)
def test_what_is_kept_for_the_gradient(reduce, tie):
    x, ids = randn(2, 50, 16).requires_grad_(), sorted_ids(2, 50, 4)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda y: kept.append(y) or y, lambda y: y):
        out = attn.segment_pool(x + 1, segment_ids=ids, num_segments=4, reduce=reduce, tie=tie)
    maximum = [(x.shape, x.dtype)] if tie == "even" else [(out.shape, torch.int32)]
    expected = [*(maximum if reduce == "max" else []), (ids.shape, ids.dtype)]
    assert [(y.shape, y.dtype) for y in kept] == expected


@pytest.mark.parametrize("reduce", REDUCTIONS[1:])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_without_x(dtype, reduce):
    """The op gives what it gives with x, which it doesn't read."""
    x, mask = randn(2, 300, 40, dtype=dtype), random_mask(2, 300)
    for rows, kept, *places in (
        (x, mask, sorted_ids(2, 300, 5), None, 5),
        (x, None, None, None, 1),
        (x[0], mask[0], None, torch.tensor([0, 7, 250], dtype=torch.int32), 1),
    ):
        dout = OPS.segment_pool_forward(rows, *places, reduce, kept)
        found = OPS.segment_pool_backward(dout, None, *places, reduce, kept, tokens=300)
        wild = torch.full_like(rows, NAN)
        assert torch.equal(found, OPS.segment_pool_backward(dout, wild, *places, reduce, kept))


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("a maximum needs x, or token from segment_max_forward", {"tokens": 9}),
        ("tokens must be >= 0 where x isn't given, got -1", {"reduce": "mean"}),
        ("token goes with reduce='max' and tie='first'", {"reduce": "mean", "tokens": 9, "token": True}),
        ("token goes with reduce='max' and tie='first'", {"tie": "even", "tokens": 9, "token": True}),
        ("token must be .*the result of segment_max_forward", {"tokens": 9, "token": False}),
    ],
)
def test_wrong_arguments_of_backward(message, options):
    dout = torch.ones(2, 1, 8)
    if "token" in options:
        right = options["token"]
        options = {**options, "token": torch.zeros((2, 1, 8) if right else (2, 1, 7), dtype=torch.int32)}
    with pytest.raises(RuntimeError, match=message):
        OPS.segment_pool_backward(dout, None, None, None, 1, **options)


def test_compile():
    x = randn(2, 20, 8).requires_grad_()
    ids = sorted_ids(2, 20, 5)

    def pool(x, ids):
        return attn.segment_pool(x, segment_ids=ids, num_segments=5, reduce="mean")

    compiled = torch.compile(pool, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (20, 13):
        y = x.detach()[:, :length].clone().requires_grad_()
        found, expected = compiled(y, ids[:, :length]), pool(y, ids[:, :length])
        assert torch.equal(found, expected)
        gradients = [torch.autograd.grad(out.square().sum(), y)[0] for out in (found, expected)]
        assert torch.equal(*gradients)


WRONG = {
    r"x must be \[B, L, C\]": {"x": torch.randn(10)},
    r"x must be \[N, C\] with cu_seqlens": {"cu_seqlens": CU},
    "exclude each other": {"cu_seqlens": CU, "segment_ids": torch.zeros(2, 10, dtype=torch.int32)},
    "segment_ids must be int32": {"segment_ids": torch.zeros(2, 10, dtype=torch.int64)},
    r"segment_ids must be \[B, L\]": {"segment_ids": torch.zeros(3, 10, dtype=torch.int32)},
    "segment_ids must be >= 0": {"segment_ids": torch.full((2, 10), -3, dtype=torch.int32)},
    "reduce must be": {"reduce": "median"},
    "tie must be": {"tie": "last"},
    "mask must be bool": {"mask": torch.ones(2, 10)},
    "num_segments needs segment_ids": {"num_segments": 4},
    "num_segments must be": {"num_segments": -1, "segment_ids": torch.zeros(2, 10, dtype=torch.int32)},
    "segment_ids must be below num_segments": {
        "num_segments": 3,
        "segment_ids": torch.full((2, 10), 3, dtype=torch.int32),
    },
    "segment_ids must not decrease": {
        "segment_ids": torch.arange(9, -1, -1, dtype=torch.int32).expand(2, 10).contiguous()
    },
    "cu_seqlens must start at 0": {"x": torch.randn(5, 3), "cu_seqlens": torch.tensor([1, 5]).int()},
    "cu_seqlens must not decrease": {"x": torch.randn(5, 3), "cu_seqlens": torch.tensor([0, 4, 3]).int()},
    "cu_seqlens must not exceed": {"x": torch.randn(5, 3), "cu_seqlens": torch.tensor([0, 6]).int()},
    "float": {"x": torch.ones(2, 10, 8).int()},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments(message):
    given = {"x": torch.randn(2, 10, 8), **WRONG[message]}
    with pytest.raises((TypeError, ValueError, RuntimeError), match=message):
        attn.segment_pool(given.pop("x"), **given)
