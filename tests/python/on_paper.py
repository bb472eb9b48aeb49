"""CUDA tensors without a GPU: shapes, strides, dtype and device, and no memory. The C++ ops check their
arguments and then fail for want of a kernel or of memory, whatever the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class _OnPaper(Tensor):
    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError(f"{function} was called on a tensor that has no memory")


def on_paper(x: Tensor) -> Tensor:
    """`x` as a tensor on cuda:0. One that is expanded far beyond its memory stays so."""
    return Tensor._make_wrapper_subclass(
        _OnPaper,
        x.size(),
        strides=x.stride(),
        storage_offset=x.storage_offset(),
        dtype=x.dtype,
        device=torch.device("cuda", 0),
        storage_size=x.untyped_storage().nbytes(),
    )


def call_on_paper(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls an op's CUDA implementation with every tensor on paper."""
    args, kwargs = pytree.tree_map_only(Tensor, on_paper, (args, kwargs))
    with torch._C._DisableTorchDispatch():
        return function(*args, **kwargs)
