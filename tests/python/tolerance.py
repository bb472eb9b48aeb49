"""The criterion every comparison with an oracle uses: no worse than twice the plain PyTorch implementation in
the same dtype.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# With a handful of entries the largest error of the plain implementation is a matter of luck: a gradient is
# the difference of two rounded terms (dout . v, and delta = dout . out with out rounded to the dtype, as in
# FlashAttention), and where they round the same way it is far below one unit of either. So many tell it.
ENTRIES = 512


def largest_error(x: Tensor, exact: Tensor) -> float:
    """max |x - exact| where exact is finite."""
    difference = (x.double() - exact.double()).masked_fill(exact.isinf(), 0).abs()
    return float(difference.max()) if difference.numel() else 0.0


def assert_as_exact_as(
    actual: Tensor,
    plain: Tensor,
    exact: Tensor,
    name: str = "result",
    plain_error: Callable[[int], float] | None = None,
) -> None:
    """max |actual - exact| <= 2 max |plain - exact| + 1e-5 max |exact|, or the least number above 0.

    Args:
        actual: what is tested.
        plain: the obvious PyTorch implementation, computed in the dtype of `actual`.
        exact: the same in float64. Infinities must be at the same places in all three.
        plain_error: error of the plain implementation on another draw of the same call, by its seed. Where
            one draw has fewer than ENTRIES entries, as many are looked at as it takes to have them.
    """
    assert actual.shape == exact.shape, f"{name}: shape {list(actual.shape)}, expected {list(exact.shape)}"
    assert actual.dtype == plain.dtype, f"{name}: dtype {actual.dtype}, expected {plain.dtype}"
    assert not actual.isnan().any(), f"{name} holds NaN"
    infinite, dtype = exact.isinf(), plain.dtype
    assert torch.equal(actual.double()[infinite], exact.double()[infinite]), f"{name}: infinities differ"
    actual, plain, exact = (x.double().masked_fill(infinite, 0) for x in (actual, plain, exact))
    if exact.numel() == 0:
        return
    error, unit = float((actual - exact).abs().max()), float((plain - exact).abs().max())
    least = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    slack = 1e-5 * float(exact.abs().max()) + least
    if error > 2 * unit + slack and plain_error is not None:
        unit = max([unit, *(plain_error(seed) for seed in range(1, -(-ENTRIES // exact.numel())))])
    allowed = 2 * unit + slack
    assert error <= allowed, f"{name}: error {error:.3e} is above {allowed:.3e}"
