"""BlockLayout: which keys each query sees, as lists of key blocks, exact to the token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import bits, check, convert, entries
from .entries import WHOLE, Entries, Grid


class BlockLayout:
    """Key blocks that each query block attends to.

    Tokens are cut into query blocks of ``block_q`` rows and key blocks of ``block_k`` keys (any multiples of
    16; they may differ; the last ones may be short). For batch ``b``, head ``h`` and query block ``i``, the
    kept key blocks are ``kv_index[b, h, i, :kv_count[b, h, i]]`` together with ``full_index[b, h, i,
    :full_count[b, h, i]]``.

    Blocks of the first list may be cut by a bit tile (see :mod:`attn.layout.bits`); without one, and in the
    second list, every token of the block is kept. Flags of the attention call (``causal``, ``window``,
    ``segment_ids`` ...) apply on top.

    Args:
        kv_count: int32 ``[B|1, H|1, M]``, ``M = ceil(q_len / block_q)``. A size of 1 is shared by all batches
            or heads.
        kv_index: int32 ``[B|1, H|1, M, N]``, ``N <= ceil(kv_len / block_k)``; ascending in the first
            ``kv_count`` entries, the rest is ignored. A repeated block counts once (with tiles: a token is
            kept when any of the repeats keeps it).
        block_q, block_k: tokens per query and key block.
        q_len, kv_len: tokens. Rows and keys past them do not exist.
        full_count, full_index: as the first two (their own N); blocks disjoint from the first list.
        partial_slot: int32, shape of ``kv_index``: slot in ``partial_bits`` of that entry, -1 for a wholly
            kept block.
        partial_bits: int32 ``[P, block_q, ceil(block_k / 32)]``, the pool of bit tiles.
        validate: check the values too (one device synchronisation). Types and shapes are always checked.
            Values are not looked at while ``torch.compile`` traces, nor during CUDA graph capture; whoever
            passes False vouches for them.

    Raises:
        TypeError, ValueError: naming the argument, what was given and what is accepted.

    A layout is immutable by convention, a pytree node, and an ordinary argument of compiled functions. ``==``
    compares the kept tokens of two layouts of equal shape and block size.
    """

    kv_count: Tensor
    kv_index: Tensor
    full_count: Tensor | None
    full_index: Tensor | None
    partial_slot: Tensor | None
    partial_bits: Tensor | None

    def __init__(
        self,
        kv_count: Tensor,
        kv_index: Tensor,
        *,
        block_q: int,
        block_k: int,
        q_len: int,
        kv_len: int,
        full_count: Tensor | None = None,
        full_index: Tensor | None = None,
        partial_slot: Tensor | None = None,
        partial_bits: Tensor | None = None,
        validate: bool = True,
    ) -> None:
        check.check_sizes(block_q, block_k, q_len, kv_len)
        self.block_q, self.block_k, self.q_len, self.kv_len = block_q, block_k, q_len, kv_len
        self.kv_count, self.kv_index = kv_count, kv_index
        self.full_count, self.full_index = full_count, full_index
        self.partial_slot, self.partial_bits = partial_slot, partial_bits
        self._transposed: BlockLayout | None = None
        check.check_shapes(self)
        if (
            validate
            and not torch.compiler.is_compiling()
            and not _capturing(kv_count)
            and check.check_values(self)
        ):
            self._adopt(BlockLayout._from_entries(self._grid(), self._entries()))

    # Converters: see attn.layout.convert for what each accepts.
    from_mask = classmethod(convert.from_mask)
    from_token_mask = classmethod(convert.from_token_mask)
    from_block_mask = classmethod(convert.from_block_mask)
    from_bsr = classmethod(convert.from_bsr)

    @property
    def batch(self) -> int:
        """Batch size, or 1 when shared."""
        return self.kv_count.shape[0]

    @property
    def heads(self) -> int:
        """Number of heads, or 1 when shared."""
        return self.kv_count.shape[1]

    @property
    def num_q_blocks(self) -> int:
        """M = ceil(q_len / block_q)."""
        return -(-self.q_len // self.block_q)

    @property
    def num_kv_blocks(self) -> int:
        """ceil(kv_len / block_k)."""
        return -(-self.kv_len // self.block_k)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the token mask: ``(B|1, H|1, q_len, kv_len)``."""
        return (self.batch, self.heads, self.q_len, self.kv_len)

    @property
    def device(self) -> torch.device:
        return self.kv_count.device

    def to_block_state(self) -> Tensor:
        """int32 ``[B|1, H|1, M, ceil(kv_len / block_k)]``: -2 not kept, -1 wholly kept, else the block's slot
        in the tile pool.

        Static shapes, no synchronisation: usable while tracing.
        """
        cols = self.num_kv_blocks
        # One more column takes the unused entries of every list.
        state = torch.full((*self.kv_count.shape, cols + 1), -2, dtype=torch.int32, device=self.device)
        for count, index, slot in self._lists():
            used = torch.arange(index.shape[-1], device=self.device) < count.unsqueeze(-1)
            value = torch.full_like(index, WHOLE) if slot is None else slot
            state = state.scatter(-1, torch.where(used, index, cols).long(), torch.where(used, value, -2))
        return state[..., :cols]

    def to_token_mask(self) -> Tensor:
        """bool ``[B|1, H|1, q_len, kv_len]``, True = kept. The one method that costs ``q_len * kv_len``
        memory.
        """
        state = self.to_block_state()
        b, h, rows, cols = state.shape
        blocks = (state == WHOLE)[..., None, None].expand(b, h, rows, cols, self.block_q, self.block_k)
        if self.partial_bits is not None and self.partial_bits.shape[0]:
            tiles = bits.unpack(self.partial_bits, self.block_k)[state.clamp(min=0).long()]
            blocks = torch.where((state >= 0)[..., None, None], tiles, blocks)
        tokens = blocks.transpose(3, 4).reshape(b, h, rows * self.block_q, cols * self.block_k)
        return tokens[:, :, : self.q_len, : self.kv_len].contiguous()

    def transpose(self) -> BlockLayout:
        """The layout with queries and keys exchanged (which queries see each key), bit tiles transposed.
        Computed once. On a GPU and while tracing nobody waits for values: its lists have the greatest width.
        """
        if self._transposed is None:
            if torch.compiler.is_compiling():
                return self._transpose_unseen()
            if self.device.type == "cpu":
                kept = entries.transposed(self._grid(), self._entries())
                turned = BlockLayout._from_entries(self._grid().transposed, kept)
            else:
                turned = self._transpose_unseen()
            turned._transposed = self
            self._transposed = turned
        return self._transposed

    def _transpose_unseen(self) -> BlockLayout:
        """As :meth:`transpose` with lists of the greatest width, so that no shape depends on a value."""
        lists = (self.kv_count, self.kv_index, self.full_count, self.full_index, self.partial_slot)
        tensors = (*lists, self.partial_bits)
        count, index, full_count, full_index, slot, tiles = torch.ops.attn.layout_transpose(
            *(None if x is None else x.contiguous() for x in tensors),
            self.block_q,
            self.block_k,
            self.num_kv_blocks,
        )
        full, cut = self.full_count is not None, self.partial_bits is not None
        return BlockLayout(
            count,
            index,
            full_count=full_count if full else None,
            full_index=full_index if full else None,
            partial_slot=slot if cut else None,
            partial_bits=tiles if cut else None,
            **self._grid().transposed.sizes,
            validate=False,
        )

    def density(self, of: str = "tokens") -> float:
        """Kept fraction, averaged over batches and heads; 0 for an empty sequence. Synchronises the device.

        ``of="tokens"``: kept (row, key) pairs / (q_len * kv_len), exact. ``of="blocks"``: listed blocks / all
        blocks, which is the share of tiles a kernel visits.
        """
        grid, kept = self._grid(), self._entries()
        if of == "tokens":
            total, all_pairs = int(entries.kept_tokens(grid, kept).sum()), self.q_len * self.kv_len
        elif of == "blocks":
            total, all_pairs = kept.key.numel(), grid.rows * grid.cols
        else:
            raise ValueError(f'of must be "tokens" or "blocks", got {of!r}')
        all_pairs *= grid.batch * grid.heads
        return total / all_pairs if all_pairs else 0.0

    def __and__(self, other: BlockLayout) -> BlockLayout:
        """Tokens kept by both layouts; batch and heads broadcast."""
        return self._combine(other, entries.intersection)

    def __or__(self, other: BlockLayout) -> BlockLayout:
        """Tokens kept by either layout; batch and heads broadcast."""
        return self._combine(other, entries.union)

    def _combine(self, other: BlockLayout, rule: Any) -> BlockLayout:
        if not isinstance(other, BlockLayout):
            return NotImplemented
        for name in ("q_len", "kv_len", "block_q", "block_k", "device", "batch", "heads"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs and not (name in ("batch", "heads") and 1 in (mine, theirs)):
                raise ValueError(f"layouts to combine must have the same {name}, got {mine} and {theirs}")
        batch = other.batch if self.batch == 1 else self.batch
        heads = other.heads if self.heads == 1 else self.heads
        grid, left = entries.broadcast(self._grid(), self._entries(), batch, heads)
        _, right = entries.broadcast(other._grid(), other._entries(), batch, heads)
        return BlockLayout._from_entries(grid, rule(grid, left, right))

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> BlockLayout:
        """The layout on another device (itself when it is there already)."""
        if torch.empty(0, device=device).device == self.device:
            return self

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=non_blocking)

        return BlockLayout(
            self.kv_count.to(device, non_blocking=non_blocking),
            self.kv_index.to(device, non_blocking=non_blocking),
            full_count=moved(self.full_count),
            full_index=moved(self.full_index),
            partial_slot=moved(self.partial_slot),
            partial_bits=moved(self.partial_bits),
            **self._grid().sizes,
            validate=False,
        )

    def plot(self, path: Any = None, *, batch: int = 0, max_heads: int = 8) -> Any:
        """Picture of the layout: see :func:`attn.layout.plot.plot`. Needs matplotlib (``pip install
        attn[viz]``).
        """
        from .plot import plot

        return plot(self, path, batch=batch, max_heads=max_heads)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BlockLayout):
            return NotImplemented
        if self.shape != other.shape or (self.block_q, self.block_k) != (other.block_q, other.block_k):
            return False
        if self.device != other.device:
            return False
        grid = self._grid()
        return entries.same(grid, self._entries(), other._entries())

    def __hash__(self) -> int:
        return hash((self.shape, self.block_q, self.block_k, self.device))

    def __repr__(self) -> str:
        sizes = f"q_len={self.q_len}, kv_len={self.kv_len}, block_q={self.block_q}, block_k={self.block_k}"
        if type(self.kv_count) is not Tensor:  # while tracing, or as a pytree of something else
            return f"BlockLayout({sizes})"
        blocks = f"batch={self.batch}, heads={self.heads}, blocks={self.num_q_blocks}x{self.num_kv_blocks}"
        tiles = "" if self.partial_bits is None else f", tiles={self.partial_bits.shape[0]}"
        density = f", density={self.density():.4g}" if self.device.type == "cpu" else ""
        return f"BlockLayout({sizes}, {blocks}{tiles}{density}, device={str(self.device)!r})"

    # Internal forms.

    def _grid(self) -> Grid:
        return Grid(self.batch, self.heads, self.block_q, self.block_k, self.q_len, self.kv_len)

    def _lists(self) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """(count, index, slot) of the first list and, where there is one, the second."""
        lists: list[tuple[Tensor, Tensor, Tensor | None]]
        lists = [(self.kv_count, self.kv_index, self.partial_slot)]
        if self.full_count is not None and self.full_index is not None:
            lists.append((self.full_count, self.full_index, None))
        return lists

    def _entries(self) -> Entries:
        """All kept blocks, sorted, tiles clipped to the sequences."""
        grid = self._grid()
        tiles = entries.no_tiles(grid, self.device) if self.partial_bits is None else self.partial_bits
        keys, slots = zip(*(entries.from_list(grid, *one) for one in self._lists()), strict=True)
        key, slot = torch.cat(keys), torch.cat(slots)
        if len(keys) > 1:
            key, order = torch.sort(key)
            slot = slot[order]
        kept = entries.clip(grid, Entries(key, slot, tiles))
        if key.numel() and bool((key[1:] == key[:-1]).any()):
            return entries.simplify(grid, *kept)
        return kept

    @staticmethod
    def _from_entries(grid: Grid, kept: Entries) -> BlockLayout:
        """Whole blocks go to the second list when any block is cut, and to the first when none is."""
        cut = kept.slot != WHOLE
        if not bool(cut.any()):
            count, index, _ = entries.to_list(grid, kept.key, kept.slot)
            return BlockLayout(count, index, **grid.sizes, validate=False)
        count, index, slot = entries.to_list(grid, kept.key[cut], kept.slot[cut])
        full_count, full_index, _ = entries.to_list(grid, kept.key[~cut], kept.slot[~cut])
        return BlockLayout(
            count,
            index,
            full_count=full_count,
            full_index=full_index,
            partial_slot=slot,
            partial_bits=kept.tiles,
            **grid.sizes,
            validate=False,
        )

    def _adopt(self, other: BlockLayout) -> None:
        self.kv_count, self.kv_index = other.kv_count, other.kv_index
        self.full_count, self.full_index = other.full_count, other.full_index
        self.partial_slot, self.partial_bits = other.partial_slot, other.partial_bits


def _capturing(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
