"""benchmarks/gpu.py without a GPU: every case makes its own call once, on fake tensors."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn.attention.flex_attention import create_block_mask
from torch.overrides import TorchFunctionMode

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("gpu_benchmark", ROOT / "benchmarks" / "gpu.py")
gpu = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = gpu  # dataclasses look there
spec.loader.exec_module(gpu)


class Elsewhere(TorchFunctionMode):
    """Makes on the CPU what is asked for on the GPU: torch without CUDA has no views of fake CUDA tensors."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def moved(x):
            return "cpu" if isinstance(x, str) and x == "cuda" else x

        return function(*map(moved, args), **{name: moved(x) for name, x in (kwargs or {}).items()})


class Clock:
    """Calls our side and says that it takes a millisecond, and each peer two."""

    def medians(self, candidates):
        candidates["attn"]()
        return {name: 1.0 if name == "attn" else 2.0 for name in candidates}


@pytest.mark.parametrize("case", gpu.CASES, ids=lambda c: c.name)
def test_case(case, monkeypatch):
    monkeypatch.setattr(gpu, "difference", lambda ours, usual: "")
    monkeypatch.setattr(gpu.functional, "scaled_dot_product_attention", lambda q, *rest, **options: q)
    monkeypatch.setattr(torch, "compile", lambda function: lambda q, k, v, block_mask: q)
    row = gpu.Row(case.name, bar=case.bar)
    with Elsewhere(), FakeTensorMode(allow_non_fake_inputs=True):
        case.run(Clock(), row)
    assert row.ours_ms == 1.0
    assert row.ratio == 2.0


# What is asked of attention on a GPU.
BARS = {
    "dense causal forward": 0.9,
    "dense causal backward": 0.8,
    "10 % of blocks T=65536": 7.0,
    "S2 T=131072": 10.0,
    "HiP T=131072": 15.0,
    "HiP decode": 8.0,
    "decode B=16": 0.8,
    "5% of blocks T=16384, Flex": 1.0,
    "10% of blocks T=16384, Flex": 1.0,
    "25% of blocks T=16384, Flex": 1.0,
    "50% of blocks T=16384, Flex": 1.0,
    "100% of blocks T=16384, Flex": 1.0,
}


def test_what_is_asked_for_comes_first():
    """Time may run out."""
    for case, (name, bar) in zip(gpu.CASES, BARS.items(), strict=False):
        assert case.name.startswith(name)
        assert case.bar == bar


def test_flex_mask_is_the_layout():
    blocks = gpu.random_blocks(8 * gpu.BLOCK, 0.3)
    found = gpu.flex_mask(blocks)
    kept = blocks[0, 0]
    tokens = 8 * gpu.BLOCK

    def of_block(b, h, q, k):
        return kept[q // gpu.BLOCK, k // gpu.BLOCK]

    wanted = create_block_mask(of_block, 1, 1, tokens, tokens, device="cpu")
    assert torch.equal(found.to_dense(), wanted.to_dense())
    assert torch.equal(gpu.layout_of(blocks, tokens).to_block_state() != -2, blocks)


def test_table_of_results():
    rows = [
        gpu.Row("fast", 1.0, {"peer": 2.0, "slow": 3.0}, bar=1.5),
        gpu.Row("slow", 2.0, {"peer": 1.0}, bar=1.0),
    ]
    text = gpu.table([gpu.HEAD, *(row.cells() for row in rows)])
    assert "2.000x" in text
    assert ">= 1.5  met" in text
    assert ">= 1    NOT MET" in text
