"""attn.tap_pool against its float64 oracle and the released form with unfolded neighbourhoods."""

import pytest
import torch

import attn
from attn import reference
from pool_oracle import DTYPES, check_equal, check_pool, randn, results, same_for_any_threads

OPS = torch.ops.attn


def released(x, weights, *, height, width, dilations=(0, 1, 2, 3)):
    """Neighbourhoods unfolded, averaged and stacked, in the dtype of x."""
    batch, _, channels = x.shape
    image = x.mT.reshape(batch, channels, height, width)
    pooled = []
    for d in dilations:
        if d == 0:
            pooled.append(image)
        else:
            columns = torch.nn.functional.unfold(image, 3, dilation=d, padding=d)
            pooled.append(columns.view(batch, channels, 9, height, width).mean(2))
    mixed = torch.stack(pooled, -1) * weights.view(batch, 1, height, width, len(dilations))
    return mixed.sum(-1).flatten(2).mT


CASES = {
    "square": ((2, 9, 9, 16), (0, 1, 2, 3)),
    "wide": ((1, 5, 17, 33), (0, 1, 2, 3)),
    "one row": ((2, 1, 11, 8), (0, 1, 2, 3)),
    "one pixel": ((3, 1, 1, 5), (0, 1, 2, 3)),
    "far": ((1, 6, 7, 8), (5, 0, 2)),
    "beyond": ((1, 4, 4, 8), (9, 1)),
    "same twice": ((1, 4, 5, 8), (1, 1)),
    "deep": ((1, 8, 8, 600), (0, 1, 2, 3)),
}


def tensors(case, dtype=torch.float32):
    (batch, height, width, channels), dilations = CASES[case]
    x = randn(batch, height * width, channels, dtype=dtype)
    weights = randn(batch, height * width, len(dilations), seed=3).softmax(-1).to(dtype)
    return {"x": x, "weights": weights}, {"height": height, "width": width, "dilations": dilations}


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, dtype):
    inputs, options = tensors(case, dtype)
    check_pool(attn.tap_pool, released, reference.tap_pool, inputs, options)


def test_padding_counts():
    """A corner sees 4 of 9 neighbours and still divides by 9."""
    out = attn.tap_pool(torch.ones(1, 49, 1), torch.ones(1, 49, 1), height=7, width=7, dilations=(2,))
    assert out[0, 0, 0].item() == pytest.approx(4 / 9)
    assert out[0, 24, 0].item() == pytest.approx(1)


@pytest.mark.isa
def test_deterministic_and_batch_invariant():
    x = randn(3, 40 * 30, 96, dtype=torch.bfloat16)
    weights = randn(3, 1200, 4, seed=1).softmax(-1).bfloat16()
    options = {"height": 40, "width": 30}
    same_for_any_threads(lambda: results(attn.tap_pool, {"x": x, "weights": weights}, options))
    together = attn.tap_pool(x, weights, **options)
    assert torch.equal(attn.tap_pool(x[1:2], weights[1:2], **options), together[1:2])


def test_strides():
    inputs, options = tensors("wide")
    x = randn(85, 1, 70)[..., 5:38].transpose(0, 1)
    weights = inputs["weights"].repeat_interleave(2, 1)[:, ::2]
    check_equal(
        results(attn.tap_pool, {"x": x, "weights": weights}, options),
        results(attn.tap_pool, {"x": x.contiguous(), "weights": weights.contiguous()}, options),
    )


def test_empty():
    for batch, side, channels in ((0, 2, 3), (2, 0, 3), (2, 2, 0)):
        x, weights = torch.randn(batch, side * side, channels), torch.rand(batch, side * side, 4)
        found = results(attn.tap_pool, {"x": x, "weights": weights}, {"height": side, "width": side})
        assert found["out"].shape == x.shape
        assert (found["dweights"] == 0).all()


@pytest.mark.parametrize("case", ["square", "far", "same twice"])
def test_gradcheck(case):
    inputs, options = tensors(case, torch.float64)
    leaves = [x.requires_grad_() for x in inputs.values()]
    torch.autograd.gradcheck(lambda *x: attn.tap_pool(*x, **options), leaves, fast_mode=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    utils = {} if dtype == torch.float32 else {"test_utils": ("test_schema", "test_faketensor")}
    inputs, options = tensors("far", dtype)
    image = (options["height"], options["width"], list(options["dilations"]))
    torch.library.opcheck(OPS.tap_pool_forward.default, (*inputs.values(), *image), **utils)
    dout = torch.randn_like(inputs["x"])
    for wanted in ([True, True], [True, False], [False, True]):
        torch.library.opcheck(
            OPS.tap_pool_backward.default, (dout, *inputs.values(), wanted, *image), **utils
        )


def test_compile():
    inputs, options = tensors("square")
    leaves = [x.requires_grad_() for x in inputs.values()]

    def pool(*x):
        return attn.tap_pool(*x, **options)

    found, expected = torch.compile(pool, fullgraph=True, backend="aot_eager")(*leaves), pool(*leaves)
    assert torch.equal(found, expected)
    gradients = [torch.autograd.grad(y.square().sum(), leaves) for y in (found, expected)]
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


WRONG = {
    "x must be": {"x": torch.randn(12, 8)},
    r"height \* width must be": {"height": 5},
    "height must be": {"height": -1},
    "dilations must be a sequence": {"dilations": 3},
    "dilations must be": {"dilations": (0, -1, 2, 3)},
    "dilations must hold 1 to 8": {"dilations": ()},
    r"weights must be \[B, height \* width, dilations\]": {"dilations": (0, 1)},
    "weights must have the dtype of x": {"weights": torch.rand(2, 12, 4).bfloat16()},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments(message):
    given = {"x": torch.randn(2, 12, 8), "weights": torch.rand(2, 12, 4), "height": 3, "width": 4}
    given |= WRONG[message]
    with pytest.raises((TypeError, ValueError), match=message):
        attn.tap_pool(given.pop("x"), given.pop("weights"), **given)
