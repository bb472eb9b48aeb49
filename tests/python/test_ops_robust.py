"""Ops called directly, past every check of the Python functions: whatever the arguments, the answer is a
result or an exception, never a crash and never a read outside the tensors.
"""

import random

import pytest
import torch

import attn  # noqa: F401  (registers the ops)
from guarded import guarded
from recorded import recorded_calls

CALLS = recorded_calls()
IDS = [f"{call.name}-{i}" for i, call in enumerate(CALLS)]
# Mutated calls for each recorded one. Each takes well under a millisecond.
MUTATIONS = 200
INTEGERS = (-(2**63), -(2**31), -2, -1, 0, 1, 3, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1)
FLOATS = (float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 1e300, 1e-300)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32, torch.int64, torch.bool)


def all_ops():
    return torch._C._dispatch_get_all_op_names()


def flat(result):
    return result if isinstance(result, tuple | list) else (result,)


def protect(arguments):
    return tuple(guarded(a) if isinstance(a, torch.Tensor) else a for a in arguments)


def test_every_op_is_called():
    registered = {name.split("::")[1].split(".")[0] for name in all_ops() if name.startswith("attn::")}
    assert registered - {call.name for call in CALLS} == set()


@pytest.mark.isa
@pytest.mark.parametrize("call", CALLS, ids=IDS)
def test_nothing_outside_is_read(call):
    expected = flat(call())
    actual = flat(call(protect(call.arguments)))
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a.nan_to_num(7.0), e.nan_to_num(7.0)), "memory around the arguments matters"


def mutated_tensor(x: torch.Tensor, r: random.Random) -> torch.Tensor | None:
    kinds = ["dtype", "rank", "size", "empty", "transposed", "expanded", "none", "scalar"]
    kinds += ["values"] * (8 if not x.dtype.is_floating_point else 2)
    kind = r.choice(kinds)
    if kind == "dtype":
        return x.to(r.choice(DTYPES))
    if kind == "rank":
        return x[0] if r.random() < 0.5 and x.dim() and x.shape[0] else x[None]
    if kind == "scalar":
        return torch.zeros((), dtype=x.dtype)
    if kind == "none":
        return None
    if not x.dim():
        return x
    dim = r.randrange(x.dim())
    if kind == "size":
        wanted = r.choice((1, max(0, x.shape[dim] - 1), x.shape[dim] + 1, 2 * x.shape[dim]))
        index = torch.arange(wanted) % max(1, x.shape[dim])
        return x.index_select(dim, index) if x.shape[dim] else x
    if kind == "empty":
        return x.narrow(dim, 0, 0)
    if kind == "transposed":
        return x.transpose(dim, -1).contiguous().transpose(dim, -1)
    if kind == "expanded":
        return x.narrow(dim, 0, min(1, x.shape[dim])).expand(x.shape) if x.shape[dim] else x
    y = x.clone(memory_format=torch.contiguous_format)
    if y.numel():
        at = r.randrange(y.numel())
        count = r.choice((1, 1, y.numel() - at))
        if y.dtype.is_floating_point:
            y.view(-1)[at : at + count] = torch.tensor(r.choice(FLOATS), dtype=torch.float64).to(y.dtype)
        elif y.dtype == torch.bool:
            y.view(-1)[at : at + count] ^= True
        else:
            y.view(-1)[at : at + count] = r.choice((-(2**31), -1, 0, 1, 7, 1000, 2**31 - 2, 2**31 - 1))
    return y


def mutated(value, r: random.Random):
    if isinstance(value, torch.Tensor):
        return mutated_tensor(value, r)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return r.choice((*INTEGERS, value + 1, value - 1, 2 * value))
    if isinstance(value, float):
        return r.choice(FLOATS)
    if isinstance(value, str):
        return r.choice(("", "no such mode", "first", "max", "mean", "none"))
    if isinstance(value, list | tuple):
        return list(value)[: r.randrange(len(value) + 1)] + list(value)[: r.randrange(2)]
    return value


@pytest.mark.parametrize("number", range(len(CALLS)), ids=IDS)
def test_any_arguments(number):
    call = CALLS[number]
    r = random.Random(number)
    texts = []
    for _ in range(MUTATIONS):
        arguments = list(call.arguments)
        for at in r.sample(range(len(arguments)), min(len(arguments), r.choice((1, 1, 2)))):
            arguments[at] = mutated(arguments[at], r)
        try:
            call(protect(tuple(arguments)))
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            texts.append(str(error))
    assert texts, "every mutation was accepted"
    assert all(texts), "an error without a text"
