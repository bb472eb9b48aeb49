"""Every public function of attn with small arguments, for the tests of what PyTorch does with functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import attn
from attn import HipSelection

HIP = {"mask_k": 8, "block_size_q": 16, "sliding_window": 6, "sink_tokens": 2}


@dataclass(frozen=True)
class Row:
    """A public function: `tensors` makes its arguments for so many tokens, by name; `call` calls it."""

    tensors: Callable[[int, torch.Generator], dict[str, Tensor]]
    call: Callable[..., object]
    gradient: bool = True  # else its results are constants to autograd

    def arguments(self, tokens: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        made = self.tensors(tokens, torch.Generator().manual_seed(tokens))
        floats = self.floats(made)
        return {n: x.to(dtype).requires_grad_() if n in floats else x for n, x in made.items()}

    def floats(self, arguments: dict[str, Tensor]) -> list[str]:
        return [name for name, x in arguments.items() if x.is_floating_point()]

    def results(self, arguments: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return flat(self.call(**arguments))


def flat(result: object) -> tuple[Tensor, ...]:
    if isinstance(result, Tensor):
        return (result,)
    if isinstance(result, HipSelection):
        return (result.index, result.count)
    assert isinstance(result, tuple)
    return tuple(x for part in result for x in flat(part))


def heads(*names: str) -> Callable[..., dict[str, Tensor]]:
    """Tensors ``[2, 2, tokens, 8]``; q has twice the heads."""

    def make(tokens: int, g: torch.Generator) -> dict[str, Tensor]:
        return {n: torch.randn(2, 4 if n == "q" else 2, tokens, 8, generator=g) for n in names}

    return make


def same_heads(*names: str, tokens: int | None = None) -> Callable[..., dict[str, Tensor]]:
    """The same with two heads everywhere, of a number of tokens that is always the same if given."""

    def make(count: int, g: torch.Generator) -> dict[str, Tensor]:
        return {n: torch.randn(2, 2, tokens or count, 8, generator=g) for n in names}

    return make


def channels(*names: str) -> Callable[..., dict[str, Tensor]]:
    """Tensors ``[2, tokens, 8]``."""

    def make(tokens: int, g: torch.Generator) -> dict[str, Tensor]:
        return {n: torch.randn(2, tokens, 8, generator=g) for n in names}

    return make


def more(
    make: Callable[..., dict[str, Tensor]], **others: Callable[[int, torch.Generator], Tensor]
) -> Callable[..., dict[str, Tensor]]:
    def both(tokens: int, g: torch.Generator) -> dict[str, Tensor]:
        return {**make(tokens, g), **{name: other(tokens, g) for name, other in others.items()}}

    return both


def normal(*shape: int | None) -> Callable[[int, torch.Generator], Tensor]:
    """A tensor of a shape in which None stands for the tokens."""
    return lambda tokens, g: torch.randn(*(tokens if n is None else n for n in shape), generator=g)


def bounds(tokens: int, g: torch.Generator) -> Tensor:
    return torch.tensor([0, 5, 5, tokens], dtype=torch.int32)


def ids(tokens: int, g: torch.Generator) -> Tensor:
    return (torch.arange(tokens, dtype=torch.int32) % 4).sort().values.repeat(2, 1)


def keep(tokens: int, g: torch.Generator) -> Tensor:
    return torch.arange(tokens).repeat(2, 1) < torch.tensor([[tokens], [tokens - 5]])


SURFACE: dict[str, Row] = {
    "agent_attention": Row(
        more(same_heads("q", "k", "v"), agents=normal(2, 2, 5, 8), key_mask=keep),
        lambda q, k, v, agents, key_mask: attn.agent_attention(q, k, v, agents, key_mask=key_mask),
    ),
    "attention": Row(
        more(heads("q", "k", "v"), weight=normal(None), sink=normal(4), gate=normal(2, 4, None), ids=ids),
        lambda q, k, v, weight, sink, gate, ids: attn.attention(
            q,
            k,
            v,
            causal=True,
            window=(20, 0),
            softcap=4.0,
            key_log_weight=weight,
            sink_logits=sink,
            head_gate=gate,
            segment_ids=ids,
            return_lse=True,
        ),
    ),
    "axis_gate": Row(
        more(lambda n, g: {}, x=normal(2, 8, None), channel=normal(2, 8), time=normal(2, None)),
        lambda x, channel, time: attn.axis_gate(x, channel, time),
    ),
    "block_sparse_attention": Row(
        more(
            heads("q", "k", "v"),
            kv_count=lambda n, g: torch.ones(1, 1, -(-n // 16), dtype=torch.int32),
            kv_index=lambda n, g: torch.arange(-(-n // 16), dtype=torch.int32).view(1, 1, -1, 1),
        ),
        lambda q, k, v, kv_count, kv_index: attn.block_sparse_attention(
            q,
            k,
            v,
            attn.BlockLayout(kv_count, kv_index, block_q=16, block_k=16, q_len=q.shape[2], kv_len=k.shape[2]),
            causal=True,
        ),
    ),
    "decode_attention": Row(
        more(
            heads("k", "v"),
            q=normal(2, 4, 2, 8),
            seqlens=lambda n, g: torch.tensor([n, n - 3], dtype=torch.int32),
        ),
        lambda q, k, v, seqlens: attn.decode_attention(q, k, v, seqlens=seqlens, window=(9, 0)),
        gradient=False,
    ),
    "flow_attention": Row(
        more(same_heads("q", "k", "v"), mask=keep),
        lambda q, k, v, mask: (
            attn.flow_attention(q, k, v, query_mask=mask, key_mask=mask),
            attn.flow_attention(q, k, v, causal=True),
        ),
    ),
    "flow_attention_step": Row(
        same_heads("q", "k", "v", tokens=1),
        lambda q, k, v: attn.flow_attention_step(q, k, v, attn.flow_attention_step(k, q, v)[1]),
        gradient=False,
    ),
    "hip_attention": Row(
        heads("q", "k", "v"), lambda q, k, v: attn.hip_attention(q, k, v, **HIP, return_lse=True)
    ),
    "hip_select": Row(heads("q", "k"), lambda q, k: attn.hip_select(q, k, **HIP), gradient=False),
    "linear_attention": Row(
        same_heads("q", "k", "v"),
        lambda q, k, v: attn.linear_attention(q, k, v, causal=True, return_state=True),
    ),
    "linear_attention_step": Row(
        same_heads("q", "k", "v", tokens=1),
        lambda q, k, v: attn.linear_attention_step(q, k, v, attn.linear_attention_step(k, q, v)[1]),
    ),
    "merge_states": Row(
        more(lambda n, g: {}, outs=normal(3, 2, 2, None, 8), lses=normal(3, 2, 2, None)),
        lambda outs, lses: attn.merge_states(outs, lses),
    ),
    "ponet_mix": Row(
        more(channels("q", "k", "o", "segment", "local"), ids=ids, mask=keep),
        lambda q, k, o, segment, local, ids, mask: attn.ponet_mix(
            q, k, o, segment, local, num_heads=2, segment_ids=ids, mask=mask
        ),
    ),
    "pool_agents": Row(
        lambda n, g: {"q": torch.randn(2, 2, 24, 8, generator=g)},
        lambda q: attn.pool_agents(q, (4, 6), (2, 3)),
    ),
    "prefix_softmax_pool": Row(
        more(same_heads("v"), score=normal(2, 2, None)),
        lambda score, v: attn.prefix_softmax_pool(score, v, return_lse=True),
    ),
    "prefix_softmax_pool_step": Row(
        more(same_heads("v", tokens=1), score=normal(2, 2, 1)),
        lambda score, v: attn.prefix_softmax_pool_step(score, v, attn.prefix_softmax_pool_step(score, v)[1]),
    ),
    "query_pool": Row(
        more(same_heads("k", "v"), q=normal(1, 2, 3, 8), mask=keep),
        lambda q, k, v, mask: attn.query_pool(q, k, v, key_mask=mask),
    ),
    "random_feature_attention": Row(
        more(same_heads("q", "k", "v"), omega=normal(6, 8)),
        lambda q, k, v, omega: attn.random_feature_attention(q, k, v, omega, causal=True),
    ),
    "random_features": Row(
        more(same_heads("x"), omega=normal(6, 8)), lambda x, omega: attn.random_features(x, omega)
    ),
    "s2_attention": Row(
        heads("q", "k", "v"),
        lambda q, k, v: attn.s2_attention(q, k, v, block_size=16, local_blocks=1, vert_stride=3),
    ),
    "segment_pool": Row(
        more(channels("x"), ids=ids), lambda x, ids: attn.segment_pool(x, segment_ids=ids, num_segments=4)
    ),
    "tap_pool": Row(
        lambda n, g: {"x": torch.randn(2, n, 8, generator=g), "weights": torch.rand(2, n, 4, generator=g)},
        lambda x, weights: attn.tap_pool(x, weights, height=x.shape[1], width=1),
    ),
    "topk_nodes": Row(
        more(lambda n, g: {}, score=normal(None), cu_seqlens=bounds),
        lambda score, cu_seqlens: attn.topk_nodes(score, ratio=0.5, cu_seqlens=cu_seqlens),
        gradient=False,
    ),
    "window_pool": Row(
        more(channels("x"), mask=keep),
        lambda x, mask: (
            attn.window_pool(x, window=5),
            attn.window_pool(x, window=3, reduce="mean", mask=mask),
        ),
    ),
}

# Public functions that have no tensor to transform.
WITHOUT_TENSORS = {
    "draw_omega": "draws a constant",
    "info": "describes the installation",
}
