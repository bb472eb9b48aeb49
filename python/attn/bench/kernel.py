"""One way to compute a case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .masks import Mask

Call = Callable[[Tensor, Tensor, Tensor], Tensor]
Oracle = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Kernel:
    """Attributes:
    make: for a mask, the function of (q, k, v).
    cannot: for (mask, stage, heads), why it takes no part, or None.
    oracle: for an approximation, its own visible keys ``[1, H, T, T]`` from (q, k); None: the mask.
    ours: an attn kernel.
    compiles: the first call compiles, and needs its own warm-up before memory is measured.
    reference: for a mechanism that is no softmax attention, for a mask, what it should compute; it has no
        error from attention.
    """

    name: str
    make: Callable[[Mask], Call]
    cannot: Callable[[Mask, str, int], str | None]
    oracle: Oracle | None = None
    ours: bool = False
    compiles: bool = False
    reference: Callable[[Mask], Call] | None = None

    @property
    def exact(self) -> bool:
        return self.oracle is None and self.reference is None


def only_attention(stage: str) -> str | None:
    return "not a decode kernel" if stage == "decode" else None
