"""The result of HiP's selection, shared by the op, the reference and whoever edits it in between."""

from __future__ import annotations

from dataclasses import dataclass

import torch.utils._pytree as pytree
from torch import Tensor

PAD = 2**31 - 1


@dataclass(frozen=True, eq=False)
class HipSelection:
    """Key blocks chosen for each query block.

    Attributes:
        index: int32 ``[B, Hm, M, K]``: first key of each chosen block in tokens, ascending, padded with
            ``2**31 - 1``. ``Hm`` is H, Hkv or 1 for ``reduce_heads`` none, group or all;
            ``M = ceil(Tq / block_size_q)``; ``K = ceil(mask_k / block_size_k)``.
        count: int32 ``[B, Hm, M]``: entries in use.

    May be edited and passed back: duplicates and overlaps count once. A pytree node.
    """

    index: Tensor
    count: Tensor


pytree.register_pytree_node(
    HipSelection,
    lambda selection: ([selection.index, selection.count], None),
    lambda leaves, _: HipSelection(*leaves),
    serialized_type_name="attn.HipSelection",
)
