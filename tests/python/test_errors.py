"""Wrong calls of the attend family: every one is refused with a sentence that names the argument, in Python
and again by the op, which users call directly. Nothing here may crash or read outside a tensor.
"""

import math

import pytest
import torch

import attn
from cases import Case

INT = torch.int32


def call(**changes):
    """Arguments of a small valid call, with some replaced."""
    q, k, v = (torch.zeros(2, n, 32, 8) for n in (4, 2, 2))
    return {"q": q, "k": k, "v": v, **changes}


def ints(*values):
    return torch.tensor(values, dtype=INT)


def layout(q_len=32, kv_len=32, batch=1, heads=1):
    blocks = torch.ones(batch, heads, -(-q_len // 16), -(-kv_len // 16), dtype=torch.bool)
    return attn.BlockLayout.from_mask(blocks, block_q=16, block_k=16, q_len=q_len, kv_len=kv_len)


def packed(**changes):
    q, k, v = (torch.zeros(1, n, 32, 8) for n in (4, 2, 2))
    return {"q": q, "k": k, "v": v, "cu_seqlens_q": ints(0, 10, 32), **changes}


F = torch.zeros
ATTENTION = {
    "q type": (call(q=[1.0]), TypeError, "q must be a torch.Tensor, got list"),
    "k type": (call(k=None), TypeError, "k must be a torch.Tensor, got NoneType"),
    "v type": (call(v="v"), TypeError, "v must be a torch.Tensor, got str"),
    "q rank": (call(q=F(4, 32, 8)), ValueError, r"q must be \[B, H, Tq, D\], got shape \[4, 32, 8\]"),
    "k rank": (call(k=F(32, 8)), ValueError, r"k must be \[B, Hkv, Tk, D\], got shape \[32, 8\]"),
    "v rank": (call(v=F(2, 2, 32)), ValueError, r"v must be \[B, Hkv, Tk, Dv\]"),
    "batch": (call(k=F(1, 2, 32, 8)), ValueError, "k must have the batch size of q, 2"),
    "head dim": (call(k=F(2, 2, 32, 9)), ValueError, "k must have the head dimension of q, 8"),
    "no head dim": (call(q=F(2, 4, 32, 0), k=F(2, 2, 32, 0)), ValueError, "head dimension of at least 1"),
    "heads": (call(k=F(2, 3, 32, 8), v=F(2, 3, 32, 8)), ValueError, "multiple of the heads .* got 4 and 3"),
    "no kv heads": (call(k=F(2, 0, 32, 8), v=F(2, 0, 32, 8)), ValueError, "multiple of the heads .* 4 and 0"),
    "v batch": (call(v=F(1, 2, 32, 8)), ValueError, "v must be .* batch size, heads and tokens of k"),
    "v heads": (call(v=F(2, 1, 32, 8)), ValueError, "v must be .* batch size, heads and tokens of k"),
    "v tokens": (call(v=F(2, 2, 31, 8)), ValueError, "v must be .* batch size, heads and tokens of k"),
    "k dtype": (
        call(k=F(2, 2, 32, 8).half()),
        ValueError,
        "k must have the dtype of q, float32, got float16",
    ),
    "v dtype": (call(v=F(2, 2, 32, 8).double()), ValueError, "v must have the dtype of q, float32"),
    "integers": (
        {name: x.long() for name, x in call().items()},
        attn.BackendError,
        "supports dtypes float32, bfloat16, float16, float64, got int64",
    ),
    "device": (call(k=F(2, 2, 32, 8, device="meta")), ValueError, "k is on meta but q is on cpu"),
    "causal": (call(causal=1), TypeError, "causal must be a bool, got int"),
    "window type": (call(window=5), TypeError, r"window must be a pair \(left, right\)"),
    "window length": (call(window=(1, 2, 3)), TypeError, "window must be a pair"),
    "window value": (call(window=(-2, 0)), ValueError, r"window\[0\] must be >= -1, got -2"),
    "window float": (call(window=(1, 2.5)), TypeError, r"window\[1\] must be an int, got float"),
    "window huge": (call(window=(2**40, 0)), ValueError, r"window\[0\]"),
    "sinks": (call(sink_tokens=-1), ValueError, "sink_tokens must be >= 0, got -1"),
    "sinks type": (call(sink_tokens=True), TypeError, "sink_tokens must be an int, got bool"),
    "scale nan": (call(scale=math.nan), ValueError, "scale must be finite, got nan"),
    "scale inf": (call(scale=-math.inf), ValueError, "scale must be finite, got -inf"),
    "scale type": (call(scale="1"), TypeError, "scale must be a float, got str"),
    "softcap zero": (call(softcap=0.0), ValueError, "softcap must be positive, or None .* got 0.0"),
    "softcap negative": (call(softcap=-2.0), ValueError, "softcap must be positive"),
    "softcap inf": (call(softcap=math.inf), ValueError, "softcap must be finite"),
    "weight shape": (
        call(key_log_weight=F(2, 4, 32)),
        ValueError,
        r"key_log_weight must be broadcastable to \[B, Hkv, Tk\] = \[2, 2, 32\], got shape \[2, 4, 32\]",
    ),
    "weight dtype": (
        call(key_log_weight=F(32).int()),
        TypeError,
        "key_log_weight must be float32, got int32",
    ),
    "weight rank": (call(key_log_weight=F(1, 2, 2, 32)), ValueError, "key_log_weight must be broadcastable"),
    "gate shape": (
        call(head_gate=F(2, 4, 31)),
        ValueError,
        r"head_gate must be .* \[B, H, Tq\] = \[2, 4, 32\]",
    ),
    "gate type": (call(head_gate=1.0), TypeError, "head_gate must be a torch.Tensor, got float"),
    "sink shape": (call(sink_logits=F(3)), ValueError, r"sink_logits must be broadcastable to \[H\] = \[4\]"),
    "sink rank": (call(sink_logits=F(4, 1)), ValueError, r"sink_logits must be \[H\] = \[4\], got shape"),
    "segment dtype": (call(segment_ids=F(2, 32).long()), TypeError, "must be int32, got int64; convert"),
    "segment shape": (
        call(segment_ids=F(2, 31).int()),
        ValueError,
        r"\[B, T\] = \[2, 32\], got shape \[2, 31\]",
    ),
    "segment type": (call(segment_ids=[1, 2, 3]), TypeError, "segment_ids must be a tensor .* or a pair"),
    "segment pair": (
        call(q=F(2, 4, 16, 8), segment_ids=F(2, 32).int()),
        ValueError,
        r"segment_ids must be a pair \(q_ids, k_ids\) where q and k differ",
    ),
    "segment second": (
        call(segment_ids=(F(2, 32).int(), F(3, 32).int())),
        ValueError,
        r"segment_ids of k must be \[B, T\]",
    ),
    "cu batch": (call(cu_seqlens_q=ints(0, 32)), ValueError, "cu_seqlens_q needs a batch size of 1"),
    "cu start": (packed(cu_seqlens_q=ints(1, 32)), ValueError, "cu_seqlens_q must start at 0, got 1"),
    "cu falls": (packed(cu_seqlens_q=ints(0, 20, 10)), ValueError, "must not decrease, got 20 before 10"),
    "cu past": (
        packed(cu_seqlens_q=ints(0, 33)),
        ValueError,
        "must not exceed the number of tokens, 32, got 33",
    ),
    "cu negative": (packed(cu_seqlens_q=ints(0, -5, 3)), ValueError, "cu_seqlens_q must not decrease"),
    "cu dtype": (packed(cu_seqlens_q=ints(0, 32).long()), TypeError, "cu_seqlens_q must be int32, got int64"),
    "cu rank": (packed(cu_seqlens_q=F(1, 2).int()), ValueError, r"cu_seqlens_q must be \[N \+ 1\]"),
    "cu empty": (packed(cu_seqlens_q=F(0).int()), ValueError, r"cu_seqlens_q must be \[N \+ 1\]"),
    "cu type": (packed(cu_seqlens_q=[0, 32]), TypeError, "cu_seqlens_q must be a torch.Tensor, got list"),
    "cu numbers": (
        packed(cu_seqlens_k=ints(0, 32)),
        ValueError,
        "must describe the same number of sequences",
    ),
    "cu k alone": (call(cu_seqlens_k=ints(0, 32)), ValueError, "cu_seqlens_k needs cu_seqlens_q"),
    "cu k past": (
        packed(cu_seqlens_k=ints(0, 10, 40)),
        ValueError,
        "cu_seqlens_k must not exceed .* 32, got 40",
    ),
    "max alone": (call(max_seqlen_q=32), ValueError, "max_seqlen_q needs cu_seqlens_q"),
    "max small": (
        packed(max_seqlen_q=10),
        ValueError,
        "max_seqlen_q must be at least the longest .* 22, got 10",
    ),
    "max type": (packed(max_seqlen_q=22.0), TypeError, "max_seqlen_q must be an int, got float"),
    "layout type": (call(layout=F(2, 2)), TypeError, "layout must be an attn.BlockLayout, got Tensor"),
    "layout length": (
        call(layout=layout(48)),
        ValueError,
        "layout must be for the tokens of q and k, 32 and 32, got 48 and 32",
    ),
    "layout keys": (call(layout=layout(32, 33)), ValueError, "layout must be .* 32 and 32, got 32 and 33"),
    "layout batch": (
        call(layout=layout(batch=3)),
        ValueError,
        "layout must have a batch size of 1 or that of q, 2",
    ),
    "layout heads": (
        call(layout=layout(heads=2)),
        ValueError,
        "layout must have 1 head or the heads of q, 4, got 2",
    ),
    "layout packed": (packed(layout=layout()), ValueError, "layout cannot be combined with cu_seqlens_q"),
    "return_lse": (call(return_lse=None), TypeError, "return_lse must be a bool"),
}


@pytest.mark.parametrize(("arguments", "error", "text"), ATTENTION.values(), ids=ATTENTION)
def test_attention(arguments, error, text):
    with pytest.raises(error, match=text):
        attn.attention(**arguments)


MECHANISMS = {
    "layout missing": (
        attn.block_sparse_attention,
        call(layout=None),
        TypeError,
        "layout must be .* got None",
    ),
    "s2 block": (
        attn.s2_attention,
        call(block_size=24),
        ValueError,
        "block_size must be a multiple of 16, got 24",
    ),
    "s2 no block": (attn.s2_attention, call(block_size=0), ValueError, "block_size must be >= 16, got 0"),
    "s2 local": (attn.s2_attention, call(local_blocks=0), ValueError, "local_blocks must be >= 1, got 0"),
    "s2 stride": (attn.s2_attention, call(vert_stride=0), ValueError, "vert_stride must be >= 1, got 0"),
    "s2 dense": (
        attn.s2_attention,
        call(dense_heads=3),
        ValueError,
        r"dense_heads must be in \[0, 2\], got 3",
    ),
    "s2 both ways": (
        attn.s2_attention,
        call(q=F(2, 4, 16, 8), causal=False),
        ValueError,
        "same number of tokens where causal is False, got 16 and 32",
    ),
    "s2 step": (attn.s2_attention, call(head_step=1.5), TypeError, "head_step must be an int, got float"),
    "hip mask_k": (
        attn.hip_attention,
        call(mask_k=1, block_size_k=2),
        ValueError,
        r"mask_k must be in \[2, 1073741824\], got 1",
    ),
    "hip no mask_k": (attn.hip_attention, call(mask_k=0), ValueError, "mask_k must be in"),
    "hip block": (attn.hip_attention, call(block_size_q=0), ValueError, "block_size_q must be >= 1, got 0"),
    "hip block k": (attn.hip_attention, call(block_size_k=0), ValueError, "block_size_k must be >= 1, got 0"),
    "hip stride": (attn.hip_attention, call(block_stride_q=0), ValueError, "block_stride_q must be >= 1"),
    "hip window": (attn.hip_attention, call(sliding_window=-1), ValueError, "sliding_window must be >= 0"),
    "hip sinks": (attn.hip_attention, call(sink_tokens=-1), ValueError, "sink_tokens must be >= 0"),
    "hip representative": (
        attn.hip_attention,
        call(representative="middle"),
        ValueError,
        "representative must be one of 'center', 'first', got 'middle'",
    ),
    "hip reduce": (
        attn.hip_attention,
        call(reduce_heads=None),
        ValueError,
        "reduce_heads must be one of 'none'",
    ),
    "hip selection": (
        attn.hip_attention,
        call(selection=(1, 2)),
        TypeError,
        "selection must be an attn.HipSelection",
    ),
}


@pytest.mark.parametrize(("function", "arguments", "error", "text"), MECHANISMS.values(), ids=MECHANISMS)
def test_mechanisms(function, arguments, error, text):
    with pytest.raises(error, match=text):
        function(**arguments)


def selection(index, count):
    return attn.HipSelection(index.int(), count.int())


SELECTIONS = {
    "count shape": (selection(F(2, 4, 2, 3), F(2, 4, 3)), r"selection.count must be .* = \[2, Hm, 2\]"),
    "heads": (selection(F(2, 3, 2, 3), F(2, 3, 2)), "selection.count must have H = 4, Hkv = 2 or 1 heads"),
    "index shape": (selection(F(2, 4, 1, 3), F(2, 4, 2)), "selection.index must be"),
    "count": (selection(F(2, 4, 2, 3), F(2, 4, 2) + 4), r"selection.count must be in \[0, 3\]"),
    "count negative": (selection(F(2, 4, 2, 3), F(2, 4, 2) - 1), r"selection.count must be in \[0, 3\]"),
    "past": (selection(F(2, 4, 2, 3) + 32, F(2, 4, 2) + 1), r"selection.index must hold keys in \[0, 32\)"),
    "negative": (
        selection(F(2, 4, 2, 3) - 1, F(2, 4, 2) + 1),
        r"selection.index must hold keys in \[0, 32\)",
    ),
    "order": (
        selection(torch.tensor([4, 2, 0]).expand(2, 4, 2, 3), F(2, 4, 2) + 2),
        "selection.index must be ascending",
    ),
}


@pytest.mark.parametrize(("kept", "text"), SELECTIONS.values(), ids=SELECTIONS)
def test_selection(kept, text):
    with pytest.raises(ValueError, match=text):
        attn.hip_attention(**call(), block_size_q=16, selection=kept)
    with pytest.raises(RuntimeError, match="attn::hip_attend: (count|index)"):
        torch.ops.attn.hip_attend(**call(), index=kept.index, count=kept.count, block_size_q=16)


# The op itself: attend_forward(**arguments).
OP = {
    "q rank": (call(q=F(4, 32, 8)), r"q must be \[B, H, Tq, D\] \(4 dimensions\), got shape \[4, 32, 8\]"),
    "k rank": (call(k=F(4, 32, 8)), r"k must be \[B, Hkv, Tk, D\]"),
    "v rank": (call(v=F(4, 32, 8)), r"v must be \[B, Hkv, Tk, Dv\]"),
    "scalar": (call(q=F(())), "q must be"),
    "batch": (call(k=F(1, 2, 32, 8)), r"k must have the batch size of q \(2\)"),
    "head dim": (call(k=F(2, 2, 32, 9)), r"k must have the head dimension of q \(8\)"),
    "no head dim": (call(q=F(2, 4, 32, 0), k=F(2, 2, 32, 0)), "head dimension of at least 1"),
    "heads": (call(k=F(2, 3, 32, 8), v=F(2, 3, 32, 8)), r"heads of q \(4\) must be a multiple .* \(3\)"),
    "no kv heads": (
        call(k=F(2, 0, 32, 8), v=F(2, 0, 32, 8)),
        r"heads of q \(4\) must be a multiple .* \(0\)",
    ),
    "v tokens": (call(v=F(2, 2, 31, 8)), "v must have the batch size, heads and tokens of k"),
    "k dtype": (call(k=F(2, 2, 32, 8).half()), r"k must have the dtype of q \(float32\), got float16"),
    "q dtype": (call(q=F(2, 4, 32, 8).int()), "q must be float32, bfloat16, float16 or float64, got int32"),
    "complex": (
        call(q=F(2, 4, 32, 8, dtype=torch.complex64)),
        "q must be float32, bfloat16, float16 or float64",
    ),
    "strides": (call(v=F(2, 2, 8, 32).mT), "v must be contiguous in its last dimension"),
    "tokens": (call(q=F(8).expand(2, 4, 2**31, 8)), r"q must have at most 2\*\*30 tokens"),
    "window": (call(window_left=-2), "window_left must be -1 .unlimited. or a number of keys, got -2"),
    "window right": (call(window_right=-(2**60)), "window_right must be -1"),
    "sinks": (call(sink_tokens=-1), "sink_tokens must be >= 0, got -1"),
    "scale": (call(scale=math.nan), "scale must be finite"),
    "scale inf": (call(scale=math.inf), "scale must be finite"),
    "scale past float": (call(scale=1e39), "scale must be finite and at most"),
    "softcap": (call(softcap=-1.0), "softcap must be positive and finite, or 0 for none, got -1"),
    "softcap nan": (call(softcap=math.nan), "softcap must be positive and finite"),
    "softcap tiny": (call(softcap=1e-50), "softcap must be positive and finite"),
    "weight shape": (
        call(key_log_weight=F(2, 2, 31)),
        r"key_log_weight must be \[B, Hkv, Tk\] = \[2, 2, 32\]",
    ),
    "weight dtype": (
        call(key_log_weight=F(2, 2, 32).double()),
        "key_log_weight must be float32, got float64",
    ),
    "gate shape": (call(head_gate=F(2, 2, 32)), r"head_gate must be \[B, H, Tq\] = \[2, 4, 32\]"),
    "sink shape": (call(sink_logits=F(2)), r"sink_logits must be \[H\] = \[4\], got shape \[2\]"),
    "sink strides": (call(sink_logits=F(8)[::2]), "sink_logits must be contiguous"),
    "one segment": (call(segment_q=F(2, 32).int()), "segment_q and segment_k must be given together"),
    "segment shape": (
        call(segment_q=F(2, 32).int(), segment_k=F(2, 16).int()),
        r"segment_k must be \[B, Tk\] = \[2, 32\], got shape \[2, 16\]",
    ),
    "segment dtype": (call(segment_q=F(2, 32).long(), segment_k=F(2, 32).int()), "segment_q must be int32"),
    "cu alone": (packed(), "cu_seqlens_q and cu_seqlens_k must be given together"),
    "cu batch": (call(cu_seqlens_q=ints(0), cu_seqlens_k=ints(0)), "cu_seqlens_q needs a batch size of 1"),
    "cu start": (
        packed(cu_seqlens_q=ints(3, 4), cu_seqlens_k=ints(0, 4)),
        "cu_seqlens_q must start at 0, got 3",
    ),
    "cu falls": (
        packed(cu_seqlens_q=ints(0, 9, 4), cu_seqlens_k=ints(0, 4, 9)),
        "cu_seqlens_q must not decrease, got 9 before 4 at entry 2",
    ),
    "cu past": (
        packed(cu_seqlens_q=ints(0, 4), cu_seqlens_k=ints(0, 33)),
        r"cu_seqlens_k must not exceed the number of tokens \(32\), got 33",
    ),
    "cu empty": (
        packed(cu_seqlens_q=ints(), cu_seqlens_k=ints()),
        "cu_seqlens_q must hold at least the entry 0",
    ),
    "cu numbers": (packed(cu_seqlens_k=ints(0, 32)), "must describe the same number of sequences"),
    "cu dtype": (packed(cu_seqlens_k=ints(0, 1, 2).long()), "cu_seqlens_k must be int32, got int64"),
}


@pytest.mark.parametrize(("arguments", "text"), OP.values(), ids=OP)
def test_op(arguments, text):
    with pytest.raises(RuntimeError, match="attn::attend_forward: .*" + text):
        torch.ops.attn.attend_forward(**arguments)
    shape = (2, 4, 32, 8)
    lse = F(2, 4, 32)
    with pytest.raises(RuntimeError, match="attn::attend_backward: .*" + text):
        torch.ops.attn.attend_backward(F(shape), None, out=F(shape), lse=lse, wanted=[True] * 6, **arguments)


BACKWARD = {
    "dout": (
        F(2, 4, 32, 9),
        None,
        F(2, 4, 32, 8),
        F(2, 4, 32),
        r"dout must be \[B, H, Tq, Dv\] = \[2, 4, 32, 8\]",
    ),
    "dout dtype": (F(2, 4, 32, 8).half(), None, F(2, 4, 32, 8), F(2, 4, 32), "dout must have the dtype of q"),
    "out": (F(2, 4, 32, 8), None, F(2, 4, 31, 8), F(2, 4, 32), r"out must be \[B, H, Tq, Dv\]"),
    "lse": (F(2, 4, 32, 8), None, F(2, 4, 32, 8), F(2, 4), r"lse must be \[B, H, Tq\] = \[2, 4, 32\]"),
    "lse dtype": (
        F(2, 4, 32, 8),
        None,
        F(2, 4, 32, 8),
        F(2, 4, 32).double(),
        "lse must be float32, got float64",
    ),
    "dlse": (F(2, 4, 32, 8), F(2, 4, 1), F(2, 4, 32, 8), F(2, 4, 32), r"dlse must be \[B, H, Tq\]"),
    "dlse strides": (
        F(2, 4, 32, 8),
        F(1).expand(2, 4, 32),
        F(2, 4, 32, 8),
        F(2, 4, 32),
        "dlse must be contiguous",
    ),
}


@pytest.mark.parametrize(("dout", "dlse", "out", "lse", "text"), BACKWARD.values(), ids=BACKWARD)
def test_backward_op(dout, dlse, out, lse, text):
    with pytest.raises(RuntimeError, match="attn::attend_backward: .*" + text):
        torch.ops.attn.attend_backward(dout, dlse, out=out, lse=lse, wanted=[True] * 6, **call())


def lists(**changes):
    """Arguments of block_sparse_forward for 32 x 32 tokens in blocks of 16, with some replaced."""
    return {
        **call(),
        "kv_count": ints(2, 1).reshape(1, 1, 2),
        "kv_index": ints(0, 1, 1, 99).reshape(1, 1, 2, 2),
        "full_count": None,
        "full_index": None,
        "partial_slot": None,
        "partial_bits": None,
        "block_q": 16,
        "block_k": 16,
        **changes,
    }


def index(*values):
    return ints(*values).reshape(1, 1, 2, 2)


def count(*values):
    return ints(*values).reshape(1, 1, 2)


LISTS = {
    "block_q": (lists(block_q=24), "block_q must be a positive multiple of 16, .* got 24"),
    "block_k": (lists(block_k=0), "block_k must be a positive multiple of 16, .* got 0"),
    "block huge": (lists(block_k=2**40), "block_k must be a positive multiple of 16, at most"),
    "rows": (
        lists(block_q=32),
        r"kv_count must have M = ceil\(Tq / block_q\) = 1 rows, got shape \[1, 1, 2\]",
    ),
    "count rank": (lists(kv_count=ints(2, 1)), r"kv_count must be \[B\|1, H\|1, M\]"),
    "index rank": (lists(kv_index=ints(2, 1)), r"kv_index must be \[B\|1, H\|1, M, N\]"),
    "count dtype": (lists(kv_count=count(2, 1).long()), "kv_count must be int32, got int64"),
    "batch": (
        lists(kv_count=count(1, 1).expand(3, 1, 2)),
        "kv_count must have a batch size of 1 or 2 and 1 or 4",
    ),
    "heads": (
        lists(kv_index=index(0, 1, 0, 1).expand(1, 2, 2, 2)),
        "kv_index must have a batch size of 1 or 2",
    ),
    "mixed heads": (
        lists(kv_index=index(0, 1, 0, 1).expand(1, 4, 2, 2)),
        "kv_index must have the batch size and",
    ),
    "count past": (lists(kv_count=count(2, 3)), r"kv_count must be in \[0, 2\] .* got 3 at \[0, 0, 1\]"),
    "count negative": (
        lists(kv_count=count(-1, 1)),
        r"kv_count must be in \[0, 2\] .* got -1 at \[0, 0, 0\]",
    ),
    "index past": (
        lists(kv_index=index(0, 2, 1, 0)),
        r"kv_index must hold key blocks in \[0, 2\) .* got 2 at",
    ),
    "index negative": (
        lists(kv_index=index(-1, 1, 1, 0)),
        r"kv_index must hold key blocks in \[0, 2\) .* got -1",
    ),
    "index huge": (lists(kv_index=index(0, 2**31 - 1, 1, 0)), "kv_index must hold key blocks"),
    "order": (
        lists(kv_index=index(1, 0, 1, 0)),
        "kv_index must be ascending without repeats .* got 1 before 0",
    ),
    "repeat": (
        lists(kv_index=index(1, 1, 1, 0)),
        "kv_index must be ascending without repeats .* got 1 before 1",
    ),
    "full alone": (lists(full_count=count(0, 0)), "full_count and full_index must be given together"),
    "full twice": (
        lists(full_count=count(1, 0), full_index=index(1, 0, 0, 0)),
        r"full_index and kv_index must be disjoint, but block 1 of row \[0, 0, 0\]",
    ),
    "full past": (
        lists(full_count=count(1, 0), full_index=index(5, 0, 0, 0)),
        "full_index must hold key blocks",
    ),
    "slot alone": (
        lists(partial_slot=index(0, 0, 0, 0)),
        "partial_slot and partial_bits must be given together",
    ),
    "slot past": (
        lists(partial_slot=index(-1, 0, 1, 0), partial_bits=F(1, 16, 1).int()),
        r"partial_slot must be -1 .wholly kept. or a tile in \[0, 1\), got 1 at \[0, 0, 1\] entry 0",
    ),
    "slot negative": (
        lists(partial_slot=index(-2, 0, 0, 0), partial_bits=F(1, 16, 1).int()),
        "partial_slot must be -1 .* got -2",
    ),
    "bits shape": (
        lists(partial_slot=index(-1, -1, -1, -1), partial_bits=F(1, 16, 2).int()),
        r"partial_bits must be \[P, block_q, ceil\(block_k / 32\)\] = \[1, 16, 1\]",
    ),
    "slot shape": (
        lists(partial_slot=count(-1, -1)[..., None], partial_bits=F(1, 16, 1).int()),
        "partial_slot must be shaped like kv_index",
    ),
}


@pytest.mark.parametrize(("arguments", "text"), LISTS.values(), ids=LISTS)
def test_block_sparse_op(arguments, text):
    with pytest.raises(RuntimeError, match="attn::block_sparse_forward: .*" + text):
        torch.ops.attn.block_sparse_forward(**arguments)


def test_unused_entries_are_never_looked_at():
    torch.ops.attn.block_sparse_forward(**lists())  # holds 99 after the last used entry


OTHER_OPS = {
    "s2 block": ("s2_forward", call(block_size=8), "block_size must be a positive multiple of 16"),
    "s2 local": ("s2_forward", call(local_blocks=0), "local_blocks must be >= 1"),
    "s2 stride": ("s2_forward", call(vert_stride=-1), "vert_stride must be >= 1, got -1"),
    "s2 dense": ("s2_forward", call(dense_heads=3), r"dense_heads must be in \[0, Hkv\] = \[0, 2\], got 3"),
    "s2 offset": ("s2_forward", call(head_offset=2**62), "head_offset must fit in int32"),
    "s2 step": ("s2_forward", call(head_step=-(2**62)), "head_step must fit in int32"),
    "s2 both ways": ("s2_forward", call(q=F(2, 4, 16, 8), causal=False), "the same number of tokens"),
    "hip mask_k": ("hip_forward", call(mask_k=1), r"mask_k must be in \[block_size_k, 2\*\*30\] .* got 1"),
    "hip mask_k huge": ("hip_forward", call(mask_k=2**40), "mask_k must be in"),
    "hip block": ("hip_forward", call(block_size_q=0), "block_size_q must be in"),
    "hip block k": ("hip_forward", call(block_size_k=-2), "block_size_k must be in"),
    "hip stride": ("hip_forward", call(block_stride_q=0), "block_stride_q must be >= 1"),
    "hip window": ("hip_forward", call(sliding_window=-1), "sliding_window must be in"),
    "hip sinks": ("hip_forward", call(sink_tokens=-1), "sink_tokens must be in"),
    "hip representative": (
        "hip_forward",
        call(representative="x"),
        "representative must be 'center' or 'first', got 'x'",
    ),
    "hip reduce": (
        "hip_forward",
        call(reduce_heads=""),
        "reduce_heads must be 'none', 'group' or 'all', got ''",
    ),
}


@pytest.mark.parametrize(("name", "arguments", "text"), OTHER_OPS.values(), ids=OTHER_OPS)
def test_other_ops(name, arguments, text):
    with pytest.raises(RuntimeError, match=f"attn::{name}: .*{text}"):
        getattr(torch.ops.attn, name)(**arguments)


def test_backend_error_lists_every_backend():
    q = F(1, 1, 4, 8).to(torch.complex64)
    with pytest.raises(attn.BackendError) as caught:
        attn.attention(q, q, q)
    assert caught.value.op == "attention"
    assert "cpu" in caught.value.reasons


def test_forward_mode_and_second_derivatives_are_refused():
    x = Case("", Tq=8, D=4).inputs(torch.float64)
    q, k, v = x.q, x.k, x.v
    for function in (
        attn.attention,
        attn.s2_attention,
        attn.hip_attention,
        lambda *t: attn.block_sparse_attention(*t, layout(8, 8)),
    ):
        with pytest.raises(NotImplementedError, match="jvp"):
            torch.func.jvp(function, (q, k, v), (q, k, v))
        leaf = q.clone().requires_grad_()
        (grad,) = torch.autograd.grad(function(leaf, k, v).square().sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()
