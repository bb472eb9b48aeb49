"""What can be known of ops on CUDA without a GPU: every one has an implementation, and the C++ ones refuse
what the CPU refuses, in the same words and before anything is allocated or launched.
"""

import random
import re

import pytest
import torch

import attn
import test_errors as errors
from on_paper import call_on_paper, on_paper
from recorded import recorded_calls
from test_ops_robust import all_ops, mutated

# Ops whose CUDA implementation is in C++; a row here with the kernel.
CUDA_OPS = {
    "attend_backward",
    "attend_forward",
    "axis_gate_backward",
    "axis_gate_forward",
    "block_sparse_backward",
    "block_sparse_forward",
    "decode_forward",
    "flow_backward",
    "flow_causal_backward",
    "flow_causal_forward",
    "flow_forward",
    "flow_step",
    "hip_attend",
    "hip_forward",
    "hip_select",
    "hip_backward",
    "layout_build",
    "layout_transpose",
    "linear_backward",
    "linear_forward",
    "merge_states",
    "merge_states_backward",
    "ponet_backward",
    "ponet_forward",
    "prefix_pool_backward",
    "prefix_pool_forward",
    "query_pool_backward",
    "query_pool_forward",
    "s2_backward",
    "s2_forward",
    "topk_nodes",
    "segment_pool_backward",
    "segment_pool_forward",
    "tap_pool_backward",
    "tap_pool_forward",
    "window_pool_backward",
    "window_pool_forward",
}
# What an op says to arguments that are right: no such kernel, no kernels in this build, or no GPU.
NOT_SERVED = r"CUDA|empty.* API call failed"
# Errors that need values of a tensor. On a GPU nobody looks: kernels skip what is out of range.
ABOUT_VALUES = (
    "cu_seqlens(_[qk])? must (start|not decrease|not exceed)|(kv|full)_count must be in .|disjoint|"
    "(kv|full)_index must (hold|be ascending)|partial_slot must be -1|"
    "(count|index) must (be in .|hold|be asc)|seqlens must be in .|block_table must hold|"
    "cu_seqlens must (start|not decrease|not exceed)|segment_ids must (not decrease|be >= 0|be below)"
)


CALLS = recorded_calls()
IDS = [f"{call.name}-{i}" for i, call in enumerate(CALLS)]


def message(call, *args, **kwargs):
    """The first line of the error; empty without one."""
    try:
        call(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        return re.sub(", line .*", "", str(error).splitlines()[0])
    return ""


def test_every_op_has_a_cuda_implementation():
    ops = {name.removeprefix("attn::") for name in all_ops() if name.startswith("attn::")}
    assert ops - attn._cuda.WITHOUT_KERNEL == CUDA_OPS
    assert all(torch._C._dispatch_has_kernel_for_dispatch_key(f"attn::{name}", "CUDA") for name in ops)


@pytest.mark.parametrize("call", CALLS, ids=IDS)
def test_right_arguments(call):
    """Without a GPU no call gets further than its checks."""
    if call.name in CUDA_OPS:
        assert re.search(NOT_SERVED, message(call_on_paper, call.op, *call.arguments))
        return
    with pytest.raises(NotImplementedError, match=f"attn::{call.name}: has no CUDA kernel; move the tensors"):
        call_on_paper(call.op, *call.arguments)


def test_one_tensor_elsewhere():
    q = torch.zeros(1, 2, 16, 8)
    for order, text in ((0, "k must be on cuda:0 like"), (1, "k must be on the CPU like")):
        mixed = [q, on_paper(q), on_paper(q)] if order else [on_paper(q), q, q]
        with torch._C._DisableTorchDispatch(), pytest.raises(RuntimeError, match=text):
            torch.ops.attn.attend_forward(*mixed)


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        *(pytest.param("attend_forward", *row, id=f"attend {id}") for id, row in errors.OP.items()),
        *(pytest.param("block_sparse_forward", *row, id=f"lists {id}") for id, row in errors.LISTS.items()),
        *(pytest.param(*row, id=id) for id, row in errors.OTHER_OPS.items() if row[0] in CUDA_OPS),
    ],
)
def test_the_errors_of_the_cpu(name, arguments, text):
    op = getattr(torch.ops.attn, name)
    if re.search(ABOUT_VALUES, message(op, **arguments)):
        text = NOT_SERVED
    with pytest.raises(RuntimeError, match=f"(?s)attn::{name}: .*{text}|{NOT_SERVED}") as caught:
        call_on_paper(op, **arguments)
    assert re.search(text, str(caught.value))


@pytest.mark.parametrize(
    "number", [i for i, call in enumerate(CALLS) if call.name in CUDA_OPS], ids=lambda i: IDS[i]
)
def test_wrong_arguments_are_refused_as_on_the_cpu(number):
    call = CALLS[number]
    r = random.Random(number)
    compared = 0
    for _ in range(100):
        arguments = list(call.arguments)
        at = r.randrange(len(arguments))
        arguments[at] = mutated(arguments[at], r)
        here, there = message(call.op, *arguments), message(call_on_paper, call.op, *arguments)
        if re.search(ABOUT_VALUES, here):
            continue
        if there != here and re.search(NOT_SERVED, there):
            assert not here, f"not refused on CUDA: {here}"
        else:
            assert there == here
            compared += 1
    assert compared > 5
