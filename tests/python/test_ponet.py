"""attn.ponet_mix against its float64 oracle and against the released layer's arithmetic."""

from itertools import pairwise

import pytest
import torch

import attn
from attn import reference
from attn.reference.segment import maximum
from pool_oracle import DTYPES, NAN, check_equal, check_pool, randn, results, same_for_any_threads

OPS = torch.ops.attn
NAMES = ("q", "k", "o", "segment", "local")


def plain(q, k, o, segment, local, *, num_heads, segment_ids=None, segment_length=None, window=3, mask=None,
          special_mask=None, cu_seqlens=None, pooled_query=None, tie="first"):  # fmt: skip
    """PyTorch ops in the dtype of k, sequence after sequence."""
    batch, length, _ = k.shape
    out = torch.zeros_like(k)
    bounds = [0, length] if cu_seqlens is None else cu_seqlens.tolist()
    for n, (b, i, j) in enumerate((b, i, j) for b in range(batch) for i, j in pairwise(bounds)):
        keep = torch.ones(j - i, dtype=torch.bool) if mask is None else mask[b, i:j]
        special = torch.zeros_like(keep) if special_mask is None else special_mask[b, i:j]
        if not keep.any():
            continue
        g = q[b, i:j][keep].mean(0) if pooled_query is None else pooled_query[n].to(k.dtype)
        keys = k[b, i:j][keep].unflatten(-1, (num_heads, -1)).transpose(0, 1)  # [H, n, D]
        weights = (keys @ g.view(num_heads, -1, 1) / keys.shape[-1] ** 0.5).softmax(1)
        aggregate = (weights.mT @ keys).flatten()
        ids = torch.zeros(j - i, dtype=torch.int64) if segment_ids is None else segment_ids[b, i:j]
        if segment_length is not None:
            ids = torch.arange(j - i) // segment_length
        rows = segment[b, i:j]
        of_segment = torch.stack([maximum(rows[keep & (ids == ids[t])], tie) if keep[t] else rows[t] for t in
                                  range(j - i)])  # fmt: skip
        half = window // 2
        skipped = (~keep | special)[:, None]
        padded = torch.nn.functional.pad(
            local[b, i:j].masked_fill(skipped, -torch.inf), (0, 0, half, half), value=-torch.inf
        )
        of_window = maximum(torch.stack([padded[t : t + j - i] for t in range(window)]), "first")
        of_segment, of_window = (x.masked_fill(skipped, 0) for x in (of_segment, of_window))
        mixed = (aggregate + of_segment) * o[b, i:j] + of_window
        out[b, i:j] = mixed.masked_fill(~keep[:, None], 0)
    return out


def tensors(*shape, dtype=torch.float32, scale=1.0):
    return {name: scale * randn(*shape, seed=n, dtype=dtype) for n, name in enumerate(NAMES)}


def sorted_ids(batch, length, top):
    return torch.randint(top, (batch, length), generator=torch.Generator().manual_seed(5)).sort().values.int()


def random_mask(batch, length, seed, share=0.7):
    return torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < share


CU = torch.tensor([0, 0, 1, 9, 40, 40], dtype=torch.int32)
CASES = {
    "positional": ((2, 37, 24), {"num_heads": 3, "segment_length": 5}),
    "ids": ((2, 41, 32), {"num_heads": 2, "segment_ids": sorted_ids(2, 41, 9)}),
    "one segment": ((1, 23, 16), {"num_heads": 16}),
    "odd": ((1, 19, 33), {"num_heads": 3, "segment_length": 4, "window": 5}),
    "window 1": ((1, 9, 8), {"num_heads": 1, "segment_length": 2, "window": 1}),
    "window beyond": ((1, 6, 8), {"num_heads": 1, "segment_length": 2, "window": 21}),
    "mask": ((3, 30, 16), {"num_heads": 4, "segment_length": 7, "mask": random_mask(3, 30, 1)}),
    "special": (
        (2, 31, 16),
        {"num_heads": 4, "segment_ids": sorted_ids(2, 31, 6), "mask": random_mask(2, 31, 1),
         "special_mask": random_mask(2, 31, 2, 0.2)},
    ),
    "packed": ((1, 43, 16), {"num_heads": 2, "segment_length": 6, "cu_seqlens": CU}),
    "packed ids": (
        (1, 43, 16),
        {"num_heads": 2, "cu_seqlens": CU, "segment_ids": sorted_ids(1, 43, 8),
         "mask": random_mask(1, 43, 3)},
    ),
    "even": ((1, 26, 8), {"num_heads": 2, "segment_length": 9, "tie": "even"}),
    # Longer than a chunk of tokens: maxima and sums are put together from parts.
    "split": ((1, 140, 1100), {"num_heads": 4, "segment_length": 70}),
    "split ids": ((1, 120, 1100), {"num_heads": 4, "segment_ids": sorted_ids(1, 120, 3), "tie": "even"}),
}  # fmt: skip


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, dtype):
    shape, options = CASES[case]
    check_pool(attn.ponet_mix, plain, reference.ponet_mix, tensors(*shape, dtype=dtype), options)


@pytest.mark.isa
@pytest.mark.parametrize("tie", ["first", "even"])
@pytest.mark.parametrize("kind", ["constant", "relu", "negative", "few values"])
def test_ties(kind, tie):
    inputs = tensors(2, 48, 16)
    for name in ("segment", "local"):
        x = inputs[name]
        inputs[name] = {
            "constant": torch.full_like(x, 0.5),
            "relu": (x - 1).relu(),  # most maxima are exactly 0
            "negative": -x.abs() - 1,
            "few values": x.round(),
        }[kind]
    options = {"num_heads": 2, "segment_length": 6, "tie": tie}
    check_pool(attn.ponet_mix, plain, reference.ponet_mix, inputs, options)


def released(q, k, o, segment, local, *, num_heads, index):
    """The released layer without padding: scatter_reduce and max_pool1d."""
    batch, length, width = k.shape
    q, k, o = (x.view(batch, length, num_heads, -1).transpose(1, 2) for x in (q, k, o))
    weights = (q.mean(2, keepdim=True) @ k.mT / k.shape[-1] ** 0.5).softmax(-1)
    spread = index[:, :, None].expand(batch, length, width)
    maxima = segment.new_zeros(batch, int(index.max()) + 1, width)
    maxima = maxima.scatter_reduce(1, spread, segment, "amax", include_self=False).gather(1, spread)
    fused = (weights @ k + maxima.view(batch, length, num_heads, -1).transpose(1, 2)) * o
    pooled = torch.nn.functional.max_pool1d(local.mT, 3, stride=1, padding=1).mT
    return fused.transpose(1, 2).reshape(batch, length, width) + pooled


def test_is_the_released_layer():
    """Ties included: even in segments, first in windows."""
    inputs = {name: x.double() for name, x in tensors(2, 50, 12).items()}
    for name in ("segment", "local"):
        inputs[name] = inputs[name].round() + 5  # many ties, none of them at 0 (there scatter_reduce errs)
    index = (torch.arange(50) // 7).expand(2, 50)
    ours = results(attn.ponet_mix, inputs, {"num_heads": 3, "segment_length": 7, "tie": "even"})
    theirs = results(released, inputs, {"num_heads": 3, "index": index})
    for name, x in theirs.items():
        torch.testing.assert_close(ours[name], x, rtol=1e-10, atol=1e-10)


def test_special_tokens_as_released():
    """Special rows are G * o; windows skip them; an id of their own keeps them out of other maxima."""
    inputs = {name: x.double() for name, x in tensors(1, 12, 4).items()}
    special = torch.zeros(1, 12, dtype=torch.bool)
    special[0, [0, 5, 11]] = True
    ids = (
        special.int().cumsum(1) + torch.nn.functional.pad(special.int(), (1, 0))[:, :-1].cumsum(1) - 1
    ).int()
    assert ids.tolist() == [[0, 1, 1, 1, 1, 2, 3, 3, 3, 3, 3, 4]]
    out = attn.ponet_mix(**inputs, num_heads=1, segment_ids=ids, special_mask=special)
    hidden = {name: inputs[name].masked_fill(special[..., None], -10000.0) for name in ("segment", "local")}
    theirs = released(**{**inputs, **hidden}, num_heads=1, index=ids.long())
    aggregate = released(**{**inputs, **{n: torch.zeros_like(x) for n, x in hidden.items()}}, num_heads=1,
                         index=ids.long())  # fmt: skip
    expected = torch.where(special[..., None], aggregate, theirs)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)


def test_pooled_query():
    inputs = tensors(2, 21, 12)
    mask = random_mask(2, 21, 1)
    kept = (inputs["q"] * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    options = {"num_heads": 3, "segment_length": 4, "mask": mask}
    rest = {name: inputs[name] for name in NAMES[1:]}

    def call(pooled_query, **kw):
        return attn.ponet_mix(None, kw.pop("k"), kw.pop("o"), kw.pop("segment"), kw.pop("local"),
                              pooled_query=pooled_query, **kw)  # fmt: skip

    given = results(call, {"pooled_query": kept, **rest}, options)
    from_q = results(attn.ponet_mix, inputs, options)
    for name in ("out", "dk", "do", "dsegment", "dlocal"):
        torch.testing.assert_close(given[name], from_q[name], rtol=1e-5, atol=1e-5)
    expected = given["dpooled_query"][:, None] * mask[..., None] / mask.sum(1)[:, None, None]
    torch.testing.assert_close(from_q["dq"], expected, rtol=1e-5, atol=1e-6)
    low = attn.ponet_mix(None, *(x.bfloat16() for x in rest.values()), pooled_query=kept, **options)
    assert low.dtype == torch.bfloat16


@pytest.mark.isa
def test_padded_batch_is_each_sequence_alone():
    lengths = [17, 0, 1, 40, 5]
    longest = max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    inputs = {n: x.masked_fill(~mask[..., None], NAN) for n, x in tensors(5, longest, 16).items()}
    special = random_mask(5, longest, 4, 0.1)
    options = {"num_heads": 2, "segment_length": 6}
    batch = results(attn.ponet_mix, inputs, {**options, "mask": mask, "special_mask": special})
    packed = {n: x[mask][None] for n, x in inputs.items()}
    cu = torch.nn.functional.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()
    # results() draws dout by shape, so gradients are compared on calls with a dout of ones
    for name, x in batch.items():
        assert not x.isnan().any(), name
        assert (x[~mask] == 0).all(), name

    def ones(inputs, **more):
        leaves = [x.detach().clone().requires_grad_() for x in inputs.values()]
        out = attn.ponet_mix(*leaves, **options, **more)
        return out, *torch.autograd.grad(out, leaves, torch.ones_like(out))

    together = ones(inputs, mask=mask, special_mask=special)
    joined = ones(packed, cu_seqlens=cu, special_mask=special[mask][None])
    for a, b in zip(together, joined, strict=True):
        assert torch.equal(a[mask], b[0])
    for n, length in enumerate(lengths):
        alone = ones(
            {m: x[n : n + 1, :length] for m, x in inputs.items()}, special_mask=special[n : n + 1, :length]
        )
        for a, b in zip(together, alone, strict=True):
            assert torch.equal(a[n, :length], b[0])


@pytest.mark.parametrize("shape", [(0, 5, 8), (2, 0, 8), (2, 5, 0), (2, 1, 8), (1, 1, 1)], ids=str)
def test_small_shapes(shape):
    inputs = tensors(*shape)
    found = results(attn.ponet_mix, inputs, {"num_heads": 1, "segment_length": 3})
    assert all(x.shape == shape and not x.isnan().any() for x in found.values())
    empty = {"num_heads": 1, "cu_seqlens": torch.zeros(1, dtype=torch.int32)}
    if shape[0] == 1:
        assert (results(attn.ponet_mix, inputs, empty)["out"] == 0).all()


def test_rows_past_the_last_sequence_are_zero():
    inputs = {name: x.clone() for name, x in tensors(1, 20, 8).items()}
    for x in inputs.values():
        x[:, 12:] = NAN
    options = {"num_heads": 2, "segment_length": 4, "cu_seqlens": torch.tensor([0, 7, 12], dtype=torch.int32)}
    for name, x in results(attn.ponet_mix, inputs, options).items():
        assert not x.isnan().any(), name
        assert (x[:, 12:] == 0).all(), name


def test_nan_of_a_kept_token_shows():
    inputs = tensors(1, 20, 8)
    inputs["segment"][0, 3, 2] = inputs["local"][0, 9, 4] = NAN
    out = attn.ponet_mix(**inputs, num_heads=2, segment_length=5)
    expected = torch.zeros_like(out, dtype=torch.bool)
    expected[0, :5, 2] = expected[0, 8:11, 4] = True
    assert torch.equal(out.isnan(), expected)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_deterministic_and_batch_invariant(dtype):
    inputs = tensors(3, 150, 512, dtype=dtype)
    options = {"num_heads": 8, "segment_length": 40}
    same_for_any_threads(lambda: results(attn.ponet_mix, inputs, options))
    together = attn.ponet_mix(**inputs, **options)
    for n in range(3):
        alone = attn.ponet_mix(**{m: x[n : n + 1] for m, x in inputs.items()}, **options)
        assert torch.equal(together[n : n + 1], alone)


def test_strides():
    """Slices of one fused projection, and reversed roles of batch and tokens, without a copy."""
    fused = randn(2, 15, 5 * 12)
    views = dict(zip(NAMES, fused.chunk(5, -1), strict=True))
    options = {"num_heads": 3, "segment_length": 4}
    check_equal(
        results(attn.ponet_mix, views, options),
        results(attn.ponet_mix, {n: x.contiguous() for n, x in views.items()}, options),
    )
    out = attn.ponet_mix(*(x.transpose(0, 1).contiguous().transpose(0, 1) for x in views.values()), **options)
    assert torch.equal(out, attn.ponet_mix(*views.values(), **options))


@pytest.mark.parametrize("case", ["positional", "special", "packed"])
def test_gradcheck(case):
    shape, options = CASES[case]
    inputs = [x[..., : shape[1], :].double().requires_grad_() for x in tensors(*shape).values()]
    torch.autograd.gradcheck(lambda *x: attn.ponet_mix(*x, **options), inputs, fast_mode=True)
    pooled = randn(3, 4, dtype=torch.float64).requires_grad_()
    rest = [randn(3, 7, 4, seed=n, dtype=torch.float64).requires_grad_() for n in range(4)]
    torch.autograd.gradcheck(
        lambda g, *x: attn.ponet_mix(None, *x, num_heads=2, pooled_query=g), [pooled, *rest]
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ["positional", "special", "packed ids"])
def test_opcheck(case, dtype):
    shape, options = CASES[case]
    utils = {} if dtype == torch.float32 else {"test_utils": ("test_schema", "test_faketensor")}
    inputs = list(tensors(*shape, dtype=dtype).values())
    places = [options.get(n) for n in ("mask", "special_mask", "cu_seqlens")]
    rest = (options["num_heads"], options.get("segment_ids"), options.get("segment_length") or 0, 3, *places)
    torch.library.opcheck(OPS.ponet_forward.default, (*inputs, None, *rest), **utils)
    out, *saved = OPS.ponet_forward(*inputs, None, *rest)
    torch.library.opcheck(OPS.ponet_forward.default, (None, *inputs[1:], saved[0], *rest), **utils)
    for wanted in ([True] * 6, [False, True, False, True, False, False], [True, *[False] * 5]):
        arguments = (torch.randn_like(out), *inputs[1:], *saved, wanted, *rest, "even")
        torch.library.opcheck(OPS.ponet_backward.default, arguments, **utils)


def test_some_gradients_only():
    inputs = tensors(1, 30, 16)
    options = {"num_heads": 2, "segment_length": 50}
    every = results(attn.ponet_mix, inputs, options)
    for name in NAMES:
        given = {n: x for n, x in inputs.items() if n != name}
        leaf = inputs[name].clone().requires_grad_()
        out = attn.ponet_mix(**given, **{name: leaf}, **options)
        (gradient,) = torch.autograd.grad(out, leaf, randn(*out.shape, seed=1))
        assert torch.equal(gradient, every["d" + name]), name


def test_compile():
    inputs = [x.requires_grad_() for x in tensors(2, 20, 8).values()]

    def mix(*x):
        return attn.ponet_mix(*x, num_heads=2, segment_length=4)

    compiled = torch.compile(mix, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (20, 13):
        x = [y[:, :length] for y in inputs]
        found, expected = compiled(*x), mix(*x)
        assert torch.equal(found, expected)
        for a, b in zip(*(torch.autograd.grad(y.sum(), inputs) for y in (found, expected)), strict=True):
            assert torch.equal(a, b)


WRONG = {
    "k must be": {"k": torch.randn(4, 8)},
    "o must have the shape of k": {"o": torch.randn(2, 9, 8)},
    "segment must have the dtype of k": {"segment": torch.randn(2, 10, 8).bfloat16()},
    "num_heads must divide": {"num_heads": 3},
    "num_heads must be": {"num_heads": 0},
    "window must be odd": {"window": 4},
    "window must be": {"window": -1},
    "exclude each other": {"segment_length": 3, "segment_ids": torch.zeros(2, 10, dtype=torch.int32)},
    "segment_length must be": {"segment_length": 0},
    "segment_ids must be int32": {"segment_ids": torch.zeros(2, 10)},
    r"segment_ids must be \[B, L\]": {"segment_ids": torch.zeros(2, 9, dtype=torch.int32)},
    "segment_ids must be >= 0": {"segment_ids": torch.full((2, 10), -1, dtype=torch.int32)},
    "mask must be bool": {"mask": torch.ones(2, 10)},
    r"mask must be \[B, L\]": {"mask": torch.ones(2, 11, dtype=torch.bool)},
    "special_mask must be bool": {"special_mask": torch.ones(2, 10)},
    "cu_seqlens needs a batch size of 1": {"cu_seqlens": torch.tensor([0, 10], dtype=torch.int32)},
    "cu_seqlens must be int32": {"cu_seqlens": torch.tensor([0, 10])},
    "tie must be": {"tie": "last"},
    "q may be None only": {"q": None},
    "pooled_query replaces": {"pooled_query": torch.randn(2, 8)},
    r"pooled_query must be \[sequences, C\]": {"q": None, "pooled_query": torch.randn(3, 8)},
    "pooled_query must be a floating point": {"q": None, "pooled_query": torch.ones(2, 8).int()},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments(message):
    given = {**tensors(2, 10, 8), "num_heads": 2, **WRONG[message]}
    with pytest.raises((TypeError, ValueError), match=message):
        attn.ponet_mix(**given)


def test_descending_ids():
    ids = torch.tensor([[0, 2, 1, 3]], dtype=torch.int32)
    with pytest.raises((ValueError, RuntimeError), match="segment_ids must not decrease.*2 before 1"):
        attn.ponet_mix(**tensors(1, 4, 8), num_heads=2, segment_ids=ids)
    keep = torch.tensor([[True, True, False, True]])
    attn.ponet_mix(**tensors(1, 4, 8), num_heads=2, segment_ids=ids, mask=keep)
