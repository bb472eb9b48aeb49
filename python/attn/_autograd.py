"""The base of our autograd Functions, and the cheapest way to call one."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

# torch binds the arguments of `apply` to the signature of `forward`, at 100 us for a dozen named ones. They
# are all given by position, which this says.
_POSITIONAL = inspect.Signature([inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)])


class Function(torch.autograd.Function):
    """A Function in ``setup_context`` style: positional arguments, no jvp (forward mode raises), vmap by
    batching the ops.
    """

    generate_vmap_rule = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.forward.__signature__ = _POSITIONAL  # type: ignore[attr-defined]


def call(function: type[Function], *args: Any) -> Any:
    """``function.apply(*args)``, or just its forward where nothing can ask for a gradient."""
    if torch.compiler.is_compiling() or forward_ad._current_level >= 0:
        return function.apply(*args)
    if torch.is_grad_enabled():
        for x in args:
            if isinstance(x, Tensor) and x.requires_grad:
                return function.apply(*args)
    return function.forward(*args)
