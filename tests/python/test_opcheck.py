"""torch.library.opcheck of the attend family: schemas, fake implementations with exact strides, dynamic
shapes."""

import pytest
import torch

import attn
from attn import patterns
from cases import Case

OPS = torch.ops.attn
# Without tracing, which takes seconds a call and learns nothing new from another dtype.
QUICK = ("test_schema", "test_faketensor")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def opcheck(op, args, kwargs=None, quick=False):
    torch.library.opcheck(op, args, kwargs, **({"test_utils": QUICK} if quick else {}))


def tensors(memory="contiguous", dtype=torch.float32, **shape):
    sizes = {"B": 2, "H": 4, "Hkv": 2, "Tq": 24, "Tk": 40, "D": 8, "Dv": 12, **shape}
    x = Case("", **sizes, memory=memory).inputs(dtype)
    return x.q, x.k, x.v


def saved(forward, *arguments):
    """What a backward op starts with."""
    out, lse = forward(*arguments)[:2]
    dout, dlse = torch.randn_like(out), torch.zeros_like(lse)
    return dout, dlse, *arguments[:3], out, lse


def tiles(q_len, kv_len, heads=1):
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(1, heads, q_len, kv_len, generator=generator) < 0.5
    mask[..., :16, :16] = True
    layout = attn.BlockLayout.from_token_mask(mask, 16, 16)
    return (
        layout.kv_count,
        layout.kv_index,
        layout.full_count,
        layout.full_index,
        layout.partial_slot,
        layout.partial_bits,
        layout.block_q,
        layout.block_k,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory", ["contiguous", "BTHD"])
def test_attend(dtype, memory):
    q, k, v = tensors(memory, dtype)
    quick = dtype != torch.float32
    opcheck(OPS.attend_forward.default, (q, k, v), quick=quick)
    rule = (True, 10, -1, 2, 0.3, 5.0)
    modifiers = (
        torch.randn(40).expand(2, 2, 40),
        torch.zeros(2, 24, dtype=torch.int32),
        torch.zeros(2, 40, dtype=torch.int32),
        None,
        None,
        torch.randn(4),
        torch.rand(2, 4, 24),
    )
    opcheck(OPS.attend_forward.default, (q, k, v, *rule, *modifiers, True), quick=quick)
    start = saved(OPS.attend_forward, q, k, v, *rule, *modifiers)
    for wanted in ([True] * 6, [False, True, False, False, True, False]):
        opcheck(OPS.attend_backward.default, (*start, wanted, *rule, *modifiers), quick=quick)


@pytest.mark.parametrize(
    "shape", [{"Tq": 0}, {"Tk": 0}, {"B": 0}, {"Dv": 0}, {"Tq": 1}, {"H": 1, "Hkv": 1}], ids=str
)
def test_edge_shapes(shape):
    for memory in ("contiguous", "BTHD"):
        q, k, v = tensors(memory, **shape)
        opcheck(OPS.attend_forward.default, (q, k, v), quick=True)
        start = saved(OPS.attend_forward, q, k, v)
        backward = (*start, [True] * 6)
        opcheck(OPS.attend_backward.default, backward, quick=True)


def test_packed():
    q, k, v = tensors(B=1)
    cu_q, cu_k = torch.tensor([0, 10, 20], dtype=torch.int32), torch.tensor([0, 33, 40], dtype=torch.int32)
    named = {"causal": True, "cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k}
    opcheck(OPS.attend_forward.default, (q, k, v), named)
    out, lse = OPS.attend_forward(q, k, v, **named)
    backward = (torch.randn_like(out), None, q, k, v, out, lse, [True, True, True])
    opcheck(OPS.attend_backward.default, backward, named)


@pytest.mark.parametrize("heads", [1, 4])
def test_block_sparse(heads):
    q, k, v = tensors()
    layout = tiles(24, 40, heads)
    opcheck(OPS.block_sparse_forward.default, (q, k, v, *layout, True))
    start = saved(OPS.block_sparse_forward, q, k, v, *layout)
    opcheck(OPS.block_sparse_backward.default, (*start, [True] * 6, *layout))
    whole = patterns.sliding_window(24, 40, window=40, block_q=16, block_k=16)
    plain = (whole.kv_count, whole.kv_index, None, None, None, None, 16, 16)
    opcheck(OPS.block_sparse_forward.default, (q, k, v, *plain))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_s2(dtype):
    q, k, v = tensors(dtype=dtype)
    rule = (16, 1, 2, 1, None, 1, False, True, 0.5)
    opcheck(OPS.s2_forward.default, (q, k, v, *rule))
    opcheck(OPS.s2_backward.default, (*saved(OPS.s2_forward, q, k, v, *rule), [True, False, True], *rule))


@pytest.mark.parametrize("reduce_heads", ["none", "group", "all"])
def test_hip(reduce_heads):
    q, k, v = tensors("BTHD")
    search = (6, 8, 2, 2, 5)
    opcheck(OPS.hip_select.default, (q, k, *search, "center", reduce_heads))
    opcheck(OPS.hip_forward.default, (q, k, v, *search, 1, "center", reduce_heads))
    index, count = OPS.hip_select(q, k, *search, "center", reduce_heads)
    options = (index, count, 8, 2, 5, 1)
    opcheck(OPS.hip_attend.default, (q, k, v, *options))
    opcheck(OPS.hip_backward.default, (*saved(OPS.hip_attend, q, k, v, *options), [True] * 3, *options))


def test_defaults():
    q, k, v = tensors()
    for name in ("attend_forward", "s2_forward", "hip_forward"):
        opcheck(getattr(OPS, name).default, (q, k, v), quick=True)
