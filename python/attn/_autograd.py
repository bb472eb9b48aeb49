"""The base of our autograd Functions, and the cheapest way to call one."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import forward_ad


class _Positional(inspect.Signature):
    """The signature of a ``forward``, to which ``apply`` binds its arguments: at 100 us for a dozen of them,
    though all are given by position and none has a default.
    """

    def bind(self, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        return _Bound(args)  # type: ignore[return-value]


class _Bound:
    kwargs: ClassVar[dict[str, Any]] = {}

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.args = args

    def apply_defaults(self) -> None:
        pass


class Function(torch.autograd.Function):
    """A Function in ``setup_context`` style: positional arguments, no jvp (forward mode raises), vmap by
    batching the ops.
    """

    generate_vmap_rule = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        parameters = inspect.signature(cls.forward).parameters.values()
        cls.forward.__signature__ = _Positional(list(parameters))  # type: ignore[attr-defined]


def call(function: type[Function], *args: Any) -> Any:
    """``function.apply(*args)``, or just its forward where nothing can ask for a gradient."""
    if torch.compiler.is_compiling():
        return function.apply(*args)
    if forward_ad._current_level >= 0:
        try:
            return function.apply(*args)
        except NotImplementedError as error:  # PyTorch's speaks to the author of a Function
            if "jvp" not in str(error):
                raise
            raise NotImplementedError(
                "attn has no forward-mode derivatives (torch.func.jvp, jacfwd, hessian, dual tensors); "
                "use torch.func.vjp, jacrev or backward()"
            ) from error
    if torch.is_grad_enabled():
        for x in args:
            if isinstance(x, Tensor) and x.requires_grad:
                return function.apply(*args)
    return function.forward(*args)


def only(wanted: Sequence[bool], gradients: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Backward ops return a tensor without elements for what isn't wanted."""
    return tuple(g if want else None for want, g in zip(wanted, gradients, strict=True))


def no_forward_mode(name: str, *args: Any) -> None:
    """For functions without a gradient: a tangent that would be dropped is refused, as :func:`call` does."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    for x in args:
        if isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None:
            raise RuntimeError(
                f"{name} has no gradient and does not support forward AD; detach its arguments"
            )
