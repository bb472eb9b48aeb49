"""Errors of the package. Wrong arguments raise ValueError or TypeError that name the argument; this is for
the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class BackendError(RuntimeError):
    """No backend supports a call whose arguments are valid. Lists every backend with its reasons.

    Attributes:
        op: name of the function called.
        given: the facts that decided, e.g. ``{"device": "cuda", "dtype": "float32"}``.
        reasons: for every backend, why it cannot serve the call.
    """

    def __init__(self, op: str, given: Mapping[str, Any], reasons: Mapping[str, Sequence[str]]) -> None:
        self.op = op
        self.given = dict(given)
        self.reasons = {backend: list(why) for backend, why in reasons.items()}
        lines = [f"attn.{op}: no backend supports this call"]
        lines.append("  given: " + ", ".join(f"{name}={value}" for name, value in self.given.items()))
        for backend, why in self.reasons.items():
            lines += [f"  {backend}: {reason}" for reason in why]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.op, self.given, self.reasons)
