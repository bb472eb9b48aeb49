"""What a function saves for its gradient, the gradient reads: the rest would be memory held for nothing."""

import pytest
import torch

import attn
from surface import SURFACE, flat


def randn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_()


def heads(tokens=20):
    return [randn(2, 2, tokens, 8 + i) for i in (0, 0, 1)]


def rows():
    return randn(2, 20, 8)


IDS = (torch.arange(20, dtype=torch.int32) // 6).repeat(2, 1)
# Options that have their own gradient, besides the calls of surface.py.
CALLS = {
    "flow_attention head": lambda: attn.flow_attention(*heads(), competition="head", source_norm=True),
    "flow_attention no clamp": lambda: attn.flow_attention(*heads(), clamp=None),
    "flow_attention causal": lambda: attn.flow_attention(*heads(), causal=True, return_state=True)[0],
    "linear_attention full": lambda: attn.linear_attention(*heads()),
    "linear_attention sum": lambda: attn.linear_attention(*heads(), normalize=False),
    "linear_attention causal sum": lambda: attn.linear_attention(*heads(), causal=True, normalize=False),
    "linear_attention state": lambda: attn.linear_attention(*heads(), normalize=False, return_state=True)[1],
    "ponet_mix pooled": lambda: attn.ponet_mix(
        None, rows(), rows(), rows(), rows(), num_heads=2, pooled_query=randn(2, 8), segment_length=5
    ),
    "query_pool relu": lambda: attn.query_pool(*heads(), activation="relu_mean"),
    "query_pool queries": lambda: attn.query_pool(*heads(), axis="queries"),
    **{
        f"segment_pool {reduce} {tie}": lambda reduce=reduce, tie=tie: attn.segment_pool(
            rows(), segment_ids=IDS, num_segments=5, reduce=reduce, tie=tie
        )
        for reduce in ("max", "mean", "sum", "first", "last")
        for tie in ("first", "even")
    },
    "window_pool max": lambda: attn.window_pool(rows(), window=3),
    "window_pool mean": lambda: attn.window_pool(rows(), window=3, reduce="mean"),
    **{
        name: lambda row=row: row.call(**row.arguments(24))
        for name, row in SURFACE.items()
        if row.gradient and name != "linear_attention_step"  # of one token, whose weights may cancel
    },
}


class Saved:
    """Runs a call and its gradients, with one of the tensors saved in between full of NaN."""

    def __init__(self, call) -> None:
        self.call = call
        self.shapes: list[tuple[int, ...]] = []

    def gradients(self, spoilt: int | None = None) -> list[torch.Tensor]:
        self.shapes = []

        def pack(x):
            self.shapes.append(tuple(x.shape) if x.is_floating_point() and x.numel() else ())
            return len(self.shapes) - 1, x

        def unpack(saved):
            i, x = saved
            return torch.full_like(x, torch.nan) if i == spoilt else x

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            results = [x for x in flat(self.call()) if x.requires_grad]
            leaves = {}
            todo = [x.grad_fn for x in results]
            while todo:
                node = todo.pop()
                for following, _ in node.next_functions:
                    if hasattr(following, "variable"):
                        leaves[following.variable.data_ptr()] = following.variable
                    elif following is not None:
                        todo.append(following)
            return list(torch.autograd.grad(sum(x.square().sum() for x in results), list(leaves.values())))


def same(a, b):
    return all(torch.equal(x.nan_to_num(1e30), y.nan_to_num(1e30)) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", CALLS)
def test_gradients_read_what_was_saved(name):
    saved = Saved(CALLS[name])
    expected = saved.gradients()
    unread = [shape for i, shape in enumerate(saved.shapes) if shape and same(saved.gradients(i), expected)]
    assert not unread
