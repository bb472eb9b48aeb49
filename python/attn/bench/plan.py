"""What is run: cases of mask, length, dtype and pass."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from .masks import DENSITIES, NAMES

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Case:
    """All kernels of a case compute the same thing and are timed in turn.

    Attributes:
        mask: name in :mod:`attn.bench.masks`.
        length: tokens; for decode, keys in the cache.
        stage: "forward", "backward" (the backward pass alone) or "decode" (one new token, batch of 4).
        flex: whether FlexAttention, which compiles for every mask, takes part.
    """

    mask: str
    length: int
    dtype: str
    stage: str
    flex: bool = True

    @property
    def name(self) -> str:
        """Identifies the case in results; what ``--only`` looks in."""
        return f"{self.stage} {self.mask} T={self.length} {self.dtype}"


def plan(
    *,
    quick: bool = False,
    only: tuple[str, ...] = (),
    dtypes: tuple[str, ...] = DTYPES,
    lengths: tuple[int, ...] = (),
) -> list[Case]:
    """Cases in order: all masks forward and backward at every length, densities at the middle length, decode.

    quick: 512 tokens for all masks, three lengths for causal, few backward cases, FlexAttention for one mask.
    """
    chosen = lengths or ((512, 1024, 2048) if quick else (1024, 2048, 4096, 8192, 16384))
    densities = [f"block_sparse_{d}" for d in DENSITIES if f"block_sparse_{d}" not in NAMES]
    middle = chosen[0] if quick else chosen[len(chosen) // 2]
    cases = []
    for dtype in dtypes:
        for length in chosen:
            for mask in NAMES:
                if quick and length != chosen[0] and mask not in ("causal",):
                    continue
                flex = not quick or (mask == "causal_document" and dtype == "float32")
                cases.append(Case(mask, length, dtype, "forward", flex))
                if not quick or (length == chosen[0] and mask in ("causal", "causal_document")):
                    cases.append(Case(mask, length, dtype, "backward", flex))
        cases += [Case(mask, middle, dtype, "forward", not quick) for mask in densities]
        cases += [Case("full", length, dtype, "decode") for length in (chosen[-1:] if quick else chosen)]
    return [case for case in cases if not only or any(fnmatchcase(case.name, f"*{text}*") for text in only)]
