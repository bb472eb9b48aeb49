"""Tensors whose memory ends where a page that can't be read begins: an access past the end is a crash."""

from __future__ import annotations

import ctypes
import mmap

import torch

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_PAGE = mmap.PAGESIZE
_PROT_NONE = 0


def guarded(x: torch.Tensor) -> torch.Tensor:
    """A copy of x, same strides, between two unreadable pages; its last element is the last readable one."""
    if x.numel() == 0 or x.device.type != "cpu":
        return x
    span = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    size = span * x.element_size()
    pages = -(-size // _PAGE) * _PAGE
    area = mmap.mmap(-1, pages + 2 * _PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for page in (address, address + _PAGE + pages):
        if _libc.mprotect(page, _PAGE, _PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    base = torch.frombuffer(area, dtype=x.dtype, count=span, offset=_PAGE + pages - size)
    copy = base.as_strided(x.shape, x.stride())
    if _overlaps(x):
        base.copy_(x.as_strided((span,), (1,)))
    else:
        copy.copy_(x)
    return copy


def _overlaps(x: torch.Tensor) -> bool:
    return any(s == 0 and n > 1 for n, s in zip(x.shape, x.stride(), strict=True))
