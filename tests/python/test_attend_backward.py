"""Values and gradients of attn.attention on every row of the case table."""

import pytest
import torch

import attn
from cases import CASES, Case, with_dtypes
from oracle import check_attention


@pytest.mark.isa
@pytest.mark.parametrize(("case", "dtype"), with_dtypes(CASES))
def test_values_and_gradients(case: Case, dtype: torch.dtype):
    check_attention(attn.attention, case, dtype)
