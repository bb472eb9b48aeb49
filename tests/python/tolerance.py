"""The criterion every comparison with an oracle uses: no worse than twice the plain PyTorch implementation in
the same dtype.
"""

import torch
from torch import Tensor


def largest_error(x: Tensor, exact: Tensor) -> float:
    """max |x - exact| where exact is finite."""
    difference = (x.double() - exact.double()).masked_fill(exact.isinf(), 0).abs()
    return float(difference.max()) if difference.numel() else 0.0


def assert_as_exact_as(
    actual: Tensor, plain: Tensor, exact: Tensor, name: str = "result", plain_error: float = 0.0
) -> None:
    """max |actual - exact| <= 2 max |plain - exact| + 1e-5 max |exact|.

    Args:
        actual: what is tested.
        plain: the obvious PyTorch implementation, computed in the dtype of `actual`.
        exact: the same in float64. Infinities must be at the same places in all three.
        plain_error: error of the plain implementation on other draws of the same call, where one draw has
            too few entries to tell.
    """
    assert actual.shape == exact.shape, f"{name}: shape {list(actual.shape)}, expected {list(exact.shape)}"
    assert actual.dtype == plain.dtype, f"{name}: dtype {actual.dtype}, expected {plain.dtype}"
    assert not actual.isnan().any(), f"{name} holds NaN"
    infinite = exact.isinf()
    assert torch.equal(actual.double()[infinite], exact.double()[infinite]), f"{name}: infinities differ"
    actual, plain, exact = (x.double().masked_fill(infinite, 0) for x in (actual, plain, exact))
    if exact.numel() == 0:
        return
    error, unit = (actual - exact).abs().max(), (plain - exact).abs().max().clamp(min=plain_error)
    allowed = 2 * unit + 1e-5 * exact.abs().max()
    assert error <= allowed, f"{name}: error {error:.3e} is above {allowed:.3e}"
