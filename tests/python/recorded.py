"""Every op of the library with arguments that it accepts: what the public functions pass on, forward and
backward, recorded as they call.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import attn


@dataclass(frozen=True)
class Call:
    """One call of an op; `arguments` are in the order of its schema, defaults filled in."""

    op: torch._ops.OpOverload
    arguments: tuple

    @property
    def name(self) -> str:
        return self.op._schema.name.split("::")[1]

    def __call__(self, arguments: tuple | None = None):
        return self.op(*(self.arguments if arguments is None else arguments))


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.namespace == "attn":
            declared = function._schema.arguments
            rest = tuple(kwargs.get(a.name, a.default_value) for a in declared[len(args) :])
            detached = tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in (*args, *rest))
            self.calls.append(Call(function, detached))
        return function(*args, **kwargs)


def _public_calls() -> list:
    """Small calls of the public functions: each option that has its own path at least once."""
    g = torch.Generator().manual_seed(5)

    def x(*shape, dtype=torch.float32):
        return torch.randn(*shape, generator=g).to(dtype).requires_grad_()

    def ints(*values):
        return torch.tensor(values, dtype=torch.int32)

    q, k, v = x(2, 4, 37, 12), x(2, 2, 53, 12), x(2, 2, 53, 20)
    b = [x(1, 2, 40, 16, dtype=torch.bfloat16) for _ in range(3)]
    p = [x(1, 2, 30, 8) for _ in range(3)]
    cu = ints(0, 11, 11, 30)
    layout = attn.patterns.sink_window(40, 40, window=9, sink_tokens=3, block_q=16, block_k=16)
    cut = attn.patterns.document(ints(0, 30, 90), block_q=16, block_k=32)
    keep = torch.arange(53).repeat(2, 1) < ints(53, 20)[:, None]
    f = [x(2, 2, 53, 12), x(2, 2, 53, 12), x(2, 2, 53, 20)]
    rows = x(2, 30, 24)
    packed = x(30, 24)
    ids = (torch.arange(30, dtype=torch.int32) // 7).repeat(2, 1)
    calls = [
        lambda: attn.attention(q, k, v, causal=True, return_lse=True),
        lambda: attn.attention(
            q,
            k,
            v,
            window=(9, 4),
            sink_tokens=2,
            softcap=3.0,
            key_log_weight=x(2, 2, 53),
            sink_logits=x(4),
            head_gate=x(2, 4, 37),
            segment_ids=(ints(*range(37)).repeat(2, 1) // 9, ints(*range(53)).repeat(2, 1) // 9),
        ),
        lambda: attn.attention(*p, cu_seqlens_q=cu, cu_seqlens_k=cu, causal=True),
        lambda: attn.attention(*b, causal=True),
        lambda: attn.block_sparse_attention(*b, layout, causal=True),
        lambda: attn.s2_attention(*b, block_size=16, local_blocks=1, vert_stride=2),
        lambda: attn.hip_attention(
            *b, mask_k=16, block_size_q=16, block_size_k=2, sliding_window=4, sink_tokens=2
        ),
        lambda: torch.ops.attn.hip_forward(*(t.detach() for t in b), 16, 16, 2, 2, 4, 2),
        lambda: attn.merge_states(x(3, 2, 4, 5, 6), x(3, 2, 4, 5)),
        lambda: attn.linear_attention(*f, key_mask=keep),
        lambda: attn.linear_attention(*p, causal=True, cu_seqlens=cu, return_state=True)[0],
        lambda: attn.ponet_mix(*(x(2, 30, 24) for _ in range(5)), num_heads=3, segment_ids=ids),
        lambda: attn.segment_pool(rows, segment_ids=ids),
        lambda: attn.segment_pool(packed, cu_seqlens=cu, reduce="mean"),
        lambda: attn.window_pool(rows, window=5),
        lambda: attn.window_pool(rows, window=3, reduce="mean", mask=torch.ones(2, 30, dtype=torch.bool)),
        lambda: attn.tap_pool(x(1, 30, 24), x(1, 30, 4), height=5, width=6),
        lambda: attn.query_pool(x(1, 2, 3, 12), f[0], f[2], key_mask=keep),
        lambda: attn.query_pool(x(1, 2, 3, 8), p[0], p[1], cu_seqlens=cu, axis="queries"),
        lambda: attn.axis_gate(x(2, 24, 30), x(2, 24), x(2, 30)),
        lambda: attn.topk_nodes(x(30).detach(), ratio=0.5, cu_seqlens=cu),
    ]
    calls += [
        lambda: attn.BlockLayout.from_mask(torch.rand(2, 3, 5, 7, generator=g) < 0.5).kv_index,
        lambda: cut._transpose_unseen().kv_index,
        lambda: (
            attn.patterns.sink_window(90, 130, window=60, sink_tokens=3, block_q=16, block_k=48)
            ._transpose_unseen()
            .kv_index
        ),
    ]
    calls += [
        lambda: attn.flow_attention(*f),
        lambda: attn.flow_attention(*p, causal=True, cu_seqlens=cu),
        lambda: attn.flow_attention_step(*(t.detach()[:, :, :1] for t in f)),
        lambda: attn.prefix_softmax_pool(x(1, 2, 30), p[0], cu_seqlens=cu),
        lambda: attn.decode_attention(
            q.detach()[:, :, :2], k.detach(), v.detach(), seqlens=ints(53, 20), window=(9, 0), sink_tokens=2
        ),
        lambda: attn.decode_attention(
            q.detach()[:, :, :1],
            x(5, 2, 16, 12).detach(),
            x(5, 2, 16, 20).detach(),
            seqlens=ints(33, 12),
            block_table=torch.tensor([[4, 1, 0], [2, 2, 2]], dtype=torch.int32),
        ),
    ]
    return calls


@functools.cache
def recorded_calls() -> tuple[Call, ...]:
    """At least one call of every op that has a CPU kernel."""
    recorder = Recorder()
    for call in _public_calls():
        with recorder:
            results = call()
        results = [
            r for r in (results if isinstance(results, tuple) else (results,)) if isinstance(r, torch.Tensor)
        ]
        wanted = [r for r in results if r.requires_grad]
        if wanted:
            with recorder:
                torch.autograd.backward(wanted, [torch.randn_like(r) for r in wanted])
    return tuple(recorder.calls)
