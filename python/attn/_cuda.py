"""Ops that have no CUDA kernel: called with CUDA tensors, they say so and what to do.

Known to the dispatcher as CUDA implementations; nothing here touches CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def _refusal(name: str) -> Callable[..., Any]:
    def refuse(*arguments: Any, **named: Any) -> Any:
        raise NotImplementedError(
            f"attn::{name}: has no CUDA kernel; move the tensors to the CPU with .cpu(). "
            "attn.info() lists what runs where"
        )

    return refuse


def _without_kernel() -> list[str]:
    return [
        name.removeprefix("attn::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("attn::") and not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
    ]


WITHOUT_KERNEL = frozenset(_without_kernel())
# Implementations last as long as the object that registered them.
_library = torch.library.Library("attn", "IMPL", "CUDA")
for _name in WITHOUT_KERNEL:
    _library.impl(_name, _refusal(_name))
