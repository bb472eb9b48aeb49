"""Block layouts: which keys each query sees. See :class:`BlockLayout`."""

from . import tree
from .block_layout import BlockLayout

tree.register()

__all__ = ["BlockLayout"]
