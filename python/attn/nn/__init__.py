"""Layers over the functions: projections and parameters under the names that released checkpoints use."""

from .lama import LamaPooling
from .latents import LatentPooling, MultiLayerPooling
from .multiset import MultisetPooling
from .ponet import PoNetMixer
from .tokens import TokenPooling

__all__ = [
    "LamaPooling",
    "LatentPooling",
    "MultiLayerPooling",
    "MultisetPooling",
    "PoNetMixer",
    "TokenPooling",
]
