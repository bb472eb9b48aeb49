"""Values and gradients of attn.attention on every row of the case table."""

from itertools import pairwise

import pytest
import torch

import attn
from cases import CASES, Case, with_dtypes
from oracle import check_attention


@pytest.mark.isa
@pytest.mark.parametrize(("case", "dtype"), with_dtypes(CASES))
def test_values_and_gradients(case: Case, dtype: torch.dtype):
    check_attention(attn.attention, case, dtype)


@pytest.mark.parametrize("by", ["keys", "blocks"])
def test_any_split_merges_to_the_whole(by):
    """out, lse and every gradient: of attention cut into parts of the keys, merged, and of attention."""
    g = torch.Generator().manual_seed(0)
    x = Case("", B=2, H=4, Hkv=2, Tq=70, Tk=90, D=12, Dv=20).inputs(torch.float64)
    leaves = [t.requires_grad_() for t in (x.q, x.k, x.v)]
    dout = torch.randn(2, 4, 70, 20, generator=g, dtype=torch.float64)
    dlse = torch.randn(2, 4, 70, generator=g, dtype=torch.float64)

    def keys(cuts):
        # A part of all rows: no mask, since causal alignment is of the whole.
        return [
            attn.attention(x.q, x.k[:, :, a:b], x.v[:, :, a:b], softcap=4.0, return_lse=True)
            for a, b in pairwise(cuts)
        ]

    def blocks(owner):
        # Parts of the layout's tokens at random; some rows are empty in a part.
        return [
            attn.attention(
                x.q,
                x.k,
                x.v,
                softcap=4.0,
                causal=True,
                layout=attn.BlockLayout.from_token_mask(owner == part, 16, 32),
                return_lse=True,
            )
            for part in range(4)
        ]

    owner = torch.randint(0, 4, (1, 4, 70, 90), generator=g)
    owner[:, :, 10:30] = 2
    whole = attn.attention(*leaves, softcap=4.0, causal=by == "blocks", return_lse=True)
    expected = (*whole, *torch.autograd.grad(whole, leaves, (dout, dlse)))
    for parts in (
        [blocks(owner)] if by == "blocks" else map(keys, ([0, 90], [0, 0, 90], [0, 1, 33, 64, 89, 90]))
    ):
        merged = attn.merge_states(*zip(*parts, strict=True))
        actual = (*merged, *torch.autograd.grad(merged, leaves, (dout, dlse)))
        for name, a, e in zip(("out", "lse", "dq", "dk", "dv"), actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
