"""Layers over the functions: projections and parameters under the names that released checkpoints use."""

from .agent import AgentAttention
from .flow import FlowAttention
from .lama import LamaPooling
from .latents import LatentPooling, MultiLayerPooling
from .linear import LinearAttention
from .multiset import MultisetPooling
from .ponet import PoNetMixer
from .relu_features import FrozenReluAttention
from .tokens import TokenPooling

__all__ = [
    "AgentAttention",
    "FlowAttention",
    "FrozenReluAttention",
    "LamaPooling",
    "LatentPooling",
    "LinearAttention",
    "MultiLayerPooling",
    "MultisetPooling",
    "PoNetMixer",
    "TokenPooling",
]
