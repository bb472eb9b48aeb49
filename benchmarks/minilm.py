"""The MiniLM sentence encoder in float32 with attn as its attention, against transformers' sdpa: sentences of
mixed length in padded batches, and passages of 512 tokens, these with HiP attention too. Cosines are those of
the mean-pooled embeddings to sdpa's.

python benchmarks/minilm.py [--sentences N] [--passages N] [--json FILE]
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from common import Bench, arguments, keep_memory
from torch import Tensor

from attn.demo.encoder import WINDOW, docstring_sentences, load_encoder, read_text
from attn.integrations.transformers import HipOptions, register

HIP = HipOptions(mask_k=128, block_size_q=32, sliding_window=64, sink_tokens=4)


def embed(model: Any, batches: list[Any]) -> Tensor:
    parts = []
    with torch.no_grad():
        for inputs in batches:
            mask = inputs["attention_mask"][..., None]
            parts.append((model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1))
    return torch.nn.functional.normalize(torch.cat(parts), dim=1)


def run(bench: Bench, name: str, models: dict[str, Any], batches: list[Any]) -> None:
    """Times the models; cosines of each one's embeddings to sdpa's go into the row."""
    found: dict[str, Tensor] = {}

    def call(key: str) -> None:
        found[key] = embed(models[key], batches)

    candidates = {key: lambda key=key: call(key) for key in models}
    row = bench.run(name, candidates, bars={"sdpa": 1.0})
    if row is None:
        return
    row["tokens"] = sum(int(inputs["attention_mask"].sum()) for inputs in batches)
    row["padded_tokens"] = sum(inputs["attention_mask"].numel() for inputs in batches)
    row["cosine"] = {}
    for key in models:
        if key != "sdpa":
            cosine = (found[key].double() * found["sdpa"].double()).sum(1)
            row["cosine"][key] = {"least": cosine.min().item(), "mean": cosine.mean().item()}
            print(f"  cosine of {key} to sdpa: least {cosine.min():.7f}, mean {cosine.mean():.7f}")


def main() -> None:
    parser = arguments(__doc__.split("\n\n")[0])
    parser.add_argument("--sentences", type=int, default=1000, help="sentences (default 1000)")
    parser.add_argument("--passages", type=int, default=16, help="passages of 512 tokens (default 16)")
    args = parser.parse_args()
    keep_memory()
    bench = Bench("minilm", args)
    count, passages = (64, 2) if args.quick else (args.sentences, args.passages)
    tokenizer, sdpa = load_encoder()
    sdpa.set_attn_implementation("sdpa")
    register(hip=HIP)
    dense, hip = copy.deepcopy(sdpa), copy.deepcopy(sdpa)
    dense.set_attn_implementation("attn")
    hip.set_attn_implementation("attn_hip")

    text = docstring_sentences(count)
    batches = [
        tokenizer(text[start : start + 32], padding=True, return_tensors="pt")
        for start in range(0, count, 32)
    ]
    run(bench, f"{count} sentences, padded batches of 32", {"attn": dense, "sdpa": sdpa}, batches)

    text, _ = read_text(None)
    ids = torch.tensor(tokenizer(text[: passages * WINDOW * 20], add_special_tokens=False)["input_ids"])
    ids = ids[: passages * (WINDOW - 2)].view(passages, -1)
    ends = [torch.full((passages, 1), i) for i in (tokenizer.cls_token_id, tokenizer.sep_token_id)]
    ids = torch.cat([ends[0], ids, ends[1]], 1)
    batches = [{"input_ids": x, "attention_mask": torch.ones_like(x)} for x in ids.split(8)]
    name = f"{passages} passages of {WINDOW} tokens"
    run(bench, name, {"attn": dense, "hip": hip, "sdpa": sdpa}, batches)
    bench.finish()


if __name__ == "__main__":
    main()
