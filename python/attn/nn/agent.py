"""Agent attention as a layer for images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..mechanisms.agent import agent_attention, pool_agents


class AgentAttention(nn.Module):
    """Multi-head :func:`attn.agent_attention` of image tokens with the parameters of the released Agent-DeiT
    and Agent-Swin layers: ``qkv``, ``proj``, ``dwc``, and the position biases ``an_bias``, ``na_bias``,
    ``ah_bias``, ``aw_bias``, ``ha_bias``, ``wa_bias``, with a class token also ``ac_bias`` and ``ca_bias``.

    Agents are means of the queries over a grid. To the result a depthwise 3 x 3 convolution of the values
    is added (not at the class token).

    The biases are kept in separable form, a coarse map (interpolated) plus rows plus columns; their sum,
    ``[H, r, n]``, is built for a call from them, and in evaluation kept until parameters change. Attention
    takes it as r further components of its dot products.

    Args:
        dim: features of the tokens.
        num_heads: heads; they divide dim.
        window: ``(height, width)`` of the image in tokens.
        agent_num: r, the number of agents, a square.
        cls_token: whether a class token precedes the image.
        qkv_bias: of the projection.
        value_shortcut: times the values, added to the result (AgentSD uses 0.075 and no convolution).
        convolution: whether there is a ``dwc``.
        position_bias: whether there are the biases.
        agent_scale: of the logits between queries and agents; default ``(dim / num_heads) ** -0.5``.
        attn_drop: must be 0: the weights of the attention are never stored.
        proj_drop: dropout of the result.
        coarse: extent of the coarse bias maps (7 as released).
    """

    an_bias: nn.Parameter
    na_bias: nn.Parameter
    ah_bias: nn.Parameter
    aw_bias: nn.Parameter
    ha_bias: nn.Parameter
    wa_bias: nn.Parameter
    ac_bias: nn.Parameter
    ca_bias: nn.Parameter

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        window: tuple[int, int] = (14, 14),
        agent_num: int = 49,
        cls_token: bool = False,
        qkv_bias: bool = True,
        value_shortcut: float = 0.0,
        convolution: bool = True,
        position_bias: bool = True,
        agent_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        coarse: int = 7,
    ) -> None:
        super().__init__()
        side = round(agent_num**0.5)
        if side * side != agent_num:
            raise ValueError(f"agent_num must be a square (agents lie on a grid), got {agent_num}")
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got {dim} and {num_heads}")
        if side > min(window):
            raise ValueError(
                f"agent_num must not exceed the tokens along a side, got {agent_num} for {window}"
            )
        if attn_drop != 0:
            raise ValueError(
                f"attn_drop must be 0, got {attn_drop}: attention weights are never stored, so none can be "
                "dropped; use proj_drop"
            )
        self.num_heads, self.window, self.grid = num_heads, tuple(window), (side, side)
        self.cls_token, self.value_shortcut, self.agent_scale = cls_token, value_shortcut, agent_scale
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.dwc = nn.Conv2d(dim, dim, 3, padding=1, groups=dim) if convolution else None
        self.position_bias = position_bias
        self._kept: tuple[tuple[object, ...], tuple[Tensor, Tensor]] | None = None
        if position_bias:
            height, width = window
            shapes = {
                "an_bias": (num_heads, agent_num, coarse, coarse),
                "na_bias": (num_heads, agent_num, coarse, coarse),
                "ah_bias": (1, num_heads, agent_num, height, 1),
                "aw_bias": (1, num_heads, agent_num, 1, width),
                "ha_bias": (1, num_heads, height, 1, agent_num),
                "wa_bias": (1, num_heads, 1, width, agent_num),
            }
            if cls_token:
                shapes |= {"ac_bias": (1, num_heads, agent_num, 1), "ca_bias": (1, num_heads, 1, agent_num)}
            for name, shape in shapes.items():
                setattr(self, name, nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02)))

    def forward(self, x: Tensor, *, key_mask: Tensor | None = None) -> Tensor:
        """``[B, n, dim]`` of the tokens of B images in row-major order, the class token first.

        Args:
            x: ``[B, n, dim]``, n = height x width, one more with a class token.
            key_mask: bool ``[B, n]``, True = keep: tokens that agents gather from. The convolution takes the
                others for 0.
        """
        height, width = self.window
        skip = int(self.cls_token)
        if x.dim() != 3 or x.shape[1] != height * width + skip:
            raise ValueError(
                f"x must be [B, {height * width + skip}, dim] for a window of {self.window}"
                f"{' and a class token' if skip else ''}, got shape {list(x.shape)}"
            )
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        agents = pool_agents(q, self.window, self.grid, skip=skip)
        to_agents, to_queries = self._biases(q.dtype) if self.position_bias else (None, None)
        out = agent_attention(
            q,
            k,
            v,
            agents,
            agent_bias=to_agents,
            query_bias=to_queries,
            agent_scale=self.agent_scale,
            key_mask=key_mask,
        )
        merged = out.transpose(1, 2).flatten(2)
        values = v.transpose(1, 2).flatten(2)
        if key_mask is not None:
            values = values.masked_fill(~key_mask[..., None], 0.0)
        if self.dwc is not None:
            image = values[:, skip:].mT.unflatten(2, self.window)
            local = self.dwc(image).flatten(2).mT
            merged = torch.cat([merged[:, :skip], merged[:, skip:] + local], 1)
        if self.value_shortcut:
            merged = merged + self.value_shortcut * values
        dropped: Tensor = self.proj_drop(self.proj(merged))
        return dropped

    def _biases(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """``[H, r, n]`` and ``[H, n, r]``."""
        parameters = [p for name, p in self.named_parameters(recurse=False) if name.endswith("_bias")]
        keep = not self.training and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        key = (dtype, *((id(p), p._version) for p in parameters)) if keep else ()
        if keep and self._kept is not None and self._kept[0] == key:
            return self._kept[1]
        coarse = [
            nn.functional.interpolate(b, size=self.window, mode="bilinear")
            for b in (self.an_bias, self.na_bias)
        ]
        to_agents = (coarse[0] + self.ah_bias[0] + self.aw_bias[0]).flatten(2)
        to_queries = (coarse[1].permute(0, 2, 3, 1) + self.ha_bias[0] + self.wa_bias[0]).flatten(1, 2)
        if self.cls_token:
            to_agents = torch.cat([self.ac_bias[0], to_agents], 2)
            to_queries = torch.cat([self.ca_bias[0], to_queries], 1)
        found = to_agents.to(dtype), to_queries.to(dtype)
        self._kept = (key, found) if keep else None
        return found
