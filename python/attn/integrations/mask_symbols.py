"""What a mask function of transformers lets through, read by calling it once with symbols for its indices.

transformers describes a mask as a function ``f(batch, head, q, kv) -> bool`` of indices, put together from
smaller ones. Called with the symbols of this file, ``kv <= q`` is no comparison but a :class:`Band`, and
``ids[batch, q] == ids[batch, kv]`` is a :class:`Segments`. What a function means is read this way, whoever
wrote it, and under torch.compile too, which can trace it but not look into closures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class NotARule(Exception):
    """The function does something that no rule says."""


@dataclass
class Band:
    """Keys at most `left` before and `right` after the row, None = any number."""

    left: Any = None
    right: Any = None


@dataclass
class Segments:
    """Keys whose number equals the row's: ``[B|1, Tq]`` and ``[B|1, keys]``."""

    rows: Tensor
    keys: Tensor


@dataclass
class Keys:
    """Keys that all rows may see: bool ``[B|1, keys]``."""

    kept: Tensor


@dataclass
class Shifted:
    """Positions that `tables` replaced: how far they are from the tokens' places, ``[B|1, Tq]`` and
    ``[B|1, keys]``. Bands mean the same only inside segments in which that is constant.
    """

    rows: Tensor
    keys: Tensor


class All:
    """A conjunction, and what a single condition becomes when the function passes it on."""

    device = None

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __and__(self, other: Any) -> All:
        if not isinstance(other, All):
            raise NotARule
        return All(*self.parts, *other.parts)

    def __bool__(self) -> bool:
        raise NotARule  # the function does one thing or another

    def to(self, device: Any) -> All:
        return self


class _Index:
    """The index of a batch entry or of a head."""

    def __init__(self, is_batch: bool) -> None:
        self.is_batch = is_batch


class _Place:
    """The index of a row or key, or what a table holds there, plus an offset."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, is_key: bool, at: Tensor, offset: Any = 0, table: Tensor | None = None) -> None:
        # at [n]: where the rows or keys are. table [B|1, n]: numbers that stand for it.
        self.is_key, self.at, self.offset, self.table = is_key, at, offset, table

    def __bool__(self) -> bool:
        raise NotARule

    def new_ones(self, shape: Any, dtype: Any = None) -> All:
        return All()

    def new_zeros(self, shape: Any, dtype: Any = None) -> All:
        raise NotARule  # a union

    def values(self) -> Tensor:
        return (self.at[None] if self.table is None else self.table) + self.offset

    def __add__(self, other: Any) -> _Place:
        return self._plus(other, 1)

    def __sub__(self, other: Any) -> Any:
        if isinstance(other, _Place):
            return _Distance(self, other)
        return self._plus(other, -1)

    def _plus(self, other: Any, sign: int) -> _Place:
        if isinstance(other, Tensor):
            return _Place(self.is_key, self.at, 0, self.values() + sign * other)
        return _Place(self.is_key, self.at, self.offset + sign * other, self.table)

    def __floordiv__(self, other: Any) -> _Place:
        return _Place(self.is_key, self.at, 0, self.values().div(other, rounding_mode="floor"))

    def __eq__(self, other: Any) -> All:  # type: ignore[override]
        if not isinstance(other, _Place) or self.is_key == other.is_key:
            raise NotARule
        keys, rows = (self, other) if self.is_key else (other, self)
        return All(Segments(rows.values(), keys.values()))

    def __le__(self, other: Any) -> All:
        return _bounded(self, other, 0)

    def __lt__(self, other: Any) -> All:
        return _bounded(self, other, 1)

    def __ge__(self, other: Any) -> All:
        return _at_least(self, other, 0)

    def __gt__(self, other: Any) -> All:
        return _at_least(self, other, 1)


class _Distance:
    """``a - b`` of a row and a key, or its absolute value."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, a: _Place, b: _Place, absolute: bool = False) -> None:
        self.a, self.b, self.absolute = a, b, absolute

    def __abs__(self) -> _Distance:
        return _Distance(self.a, self.b, True)

    def __le__(self, other: Any) -> All:
        return self._at_most(other, 0)

    def __lt__(self, other: Any) -> All:
        return self._at_most(other, 1)

    def __ge__(self, other: Any) -> All:
        if self.absolute:
            raise NotARule
        return _bounded(self.b + other, self.a, 0)

    def __gt__(self, other: Any) -> All:
        if self.absolute:
            raise NotARule
        return _bounded(self.b + other, self.a, 1)

    def _at_most(self, other: Any, more: int) -> All:
        one = _bounded(self.a, self.b + other, more)
        return one & _bounded(self.b, self.a + other, more) if self.absolute else one


def _at_least(place: _Place, other: Any, more: int) -> All:
    if isinstance(other, _Place):
        return _bounded(other, place, more)
    if isinstance(other, int) and place.table is None and place.offset == 0 and other + more <= 0:
        return All()  # places are not negative
    raise NotARule


def _bounded(low: _Place, high: Any, more: int) -> All:
    """``low + more <= high``"""
    if not isinstance(high, _Place) or low.is_key == high.is_key:
        raise NotARule
    room = high.offset - low.offset - more
    if room < 0:
        raise NotARule
    band = Band(right=room) if low.is_key else Band(left=room)
    if low.table is None and high.table is None:
        return All(band)
    keys, rows = (low, high) if low.is_key else (high, low)
    if keys.table is None or rows.table is None:
        raise NotARule
    return All(band, Shifted(rows.table - rows.at, keys.table - keys.at))


class _Lookups(TorchFunctionMode):
    """Makes ``table[batch, place]`` and ``table[batch]`` of plain tensors mean something."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("__getitem__", "getitem"):
            table, index = args
            if isinstance(index, _Index):
                return _column(table, index)
            if isinstance(index, tuple) and len(index) == 2 and isinstance(index[1], _Place):
                return _row_or_key(table, index[0], index[1])
        return func(*args, **(kwargs or {}))


def _column(table: Tensor, index: _Index) -> Tensor:
    if not index.is_batch or table.dim() != 1:
        raise NotARule
    return table[:, None]


def _row_or_key(table: Tensor, batch: Any, place: _Place) -> Any:
    if not isinstance(batch, _Index) or not batch.is_batch or table.dim() != 2 or place.table is not None:
        raise NotARule
    table = table.to(place.at.device)[:, place.at + place.offset]
    if table.dtype != torch.bool:
        return _Place(place.is_key, place.at, 0, table)
    if not place.is_key:
        raise NotARule
    return All(Keys(table))


def read(function: Callable[..., Any], rows: Tensor, keys: Tensor) -> list[Any] | None:
    """The conditions that `function` is made of, or None if there is one that no rule says.

    Args:
        function: ``f(batch, head, q, kv)`` of transformers.masking_utils.
        rows: ``[Tq]``, the places of the rows: what q stands for.
        keys: ``[keys]``, the places of the keys.
    """
    try:
        with _Lookups():
            result = function(_Index(True), _Index(False), _Place(False, rows), _Place(True, keys))
    except Exception:  # whatever a function may do to a symbol
        return None
    return list(result.parts) if isinstance(result, All) else None
