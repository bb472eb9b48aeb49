"""Attention inside Hugging Face models: small decoders of four families."""

import pickle
import subprocess
import sys
import threading

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs transformers (the extra `transformers`)")

from attn.integrations.transformers import HipOptions, S2Options, WindowOptions, register  # noqa: E402
from decoders import FAMILIES, batch, decoder, gemma2, gpt_oss, llama, qwen3  # noqa: E402
from recorded import Recorder  # noqa: E402


@pytest.fixture(autouse=True)
def _registered():
    register()


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


def test_generation_uses_both_kernels():
    """The prompt goes through the prefill kernel, without a block layout, every further token decodes."""
    model, _ = decoder(llama, "attn")
    ids, mask = batch("left")
    with Recorder() as recorder:
        model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
    names = [call.name for call in recorder.calls]
    assert names == ["attend_forward"] * 2 + ["decode_forward"] * 2 * 4


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
        return  # test_gpt_oss_does_not_pack_by_positions
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


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_training(family):
    """A packed batch has the logits, loss and gradients that the plain model has sequence by sequence."""
    model, _ = decoder(family)
    g = torch.Generator().manual_seed(1)
    pieces = [torch.randint(3, 97, (1, n), generator=g) for n in PACKED]

    def loss_of(logits, ids):
        return torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")

    model.zero_grad()
    expected = [model(input_ids=piece, use_cache=False).logits for piece in pieces]
    loss = sum(loss_of(x, piece) for x, piece in zip(expected, pieces, strict=True))
    loss.backward()
    grads = [p.grad.clone() for p in model.parameters()]

    model.set_attn_implementation("attn")
    model.zero_grad()
    options = {"position_ids": torch.cat([torch.arange(n) for n in PACKED])[None]}
    if family is gpt_oss:
        bounds = torch.tensor([0, *PACKED]).cumsum(0).int()
        options.update(cu_seq_lens_q=bounds, cu_seq_lens_k=bounds, max_length_q=40, max_length_k=40)
    packed = model(input_ids=torch.cat(pieces, 1), use_cache=False, **options).logits
    torch.testing.assert_close(packed, torch.cat(expected, 1), rtol=1e-4, atol=1e-4)
    loss2 = sum(loss_of(x, piece) for x, piece in zip(packed.split(PACKED, 1), pieces, strict=True))
    torch.testing.assert_close(loss2, loss, rtol=1e-5, atol=1e-5)
    loss2.backward()
    for p, b in zip(model.parameters(), grads, strict=True):
        assert (p.grad - b).norm() <= 1e-4 * b.norm() + 1e-6


def test_gpt_oss_does_not_pack_by_positions():
    """Its code keeps positions from the mask, so sequences see each other with any implementation."""
    model, _ = decoder(gpt_oss)
    ids = torch.randint(3, 97, (1, 20), generator=torch.Generator().manual_seed(1))
    options = {"position_ids": torch.cat([torch.arange(9), torch.arange(11)])[None], "use_cache": False}
    with torch.no_grad():
        expected = model(input_ids=ids, **options).logits
        alone = model(input_ids=ids[:, 9:], use_cache=False).logits
        model.set_attn_implementation("attn")
        torch.testing.assert_close(model(input_ids=ids, **options).logits, expected, rtol=1e-4, atol=1e-4)
    assert (alone - expected[:, 9:]).abs().max() > 0.1


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


def test_compiled_whole():
    """One graph, static and dynamic, with and without padding; the backend matters to no rule."""
    model, _ = decoder(llama, "attn")
    ids, mask = batch("left")
    longer, longer_mask = batch("right", tokens=23)
    calls = {
        False: [(ids, mask)],
        True: [(ids, mask), (longer, longer_mask), (longer, None)],
    }
    for dynamic, inputs in calls.items():
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="eager")
        for tokens, padding in inputs:
            options = {"input_ids": tokens, "attention_mask": padding, "use_cache": False}
            with torch.no_grad():
                actual, expected = compiled(**options).logits, model(**options).logits
            kept = slice(None) if padding is None else padding.bool()
            torch.testing.assert_close(actual[kept], expected[kept])


@pytest.mark.slow
@pytest.mark.parametrize("family", [gpt_oss, gemma2])
def test_compiled_training(family):
    """Windows, sinks and softcap with gradients, through AOTAutograd."""
    torch._dynamo.reset()
    model, _ = decoder(family, "attn")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    ids, mask = batch("right")
    for actual, expected in zip(train(compiled, ids, mask), train(model, ids, mask), strict=True):
        torch.testing.assert_close(actual, expected)


def test_compiled_decode_step():
    """A static cache: the step's place is a tensor."""
    torch._dynamo.reset()
    model, _ = decoder(qwen3, "attn")
    ids, mask = batch("left")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits[:, 17:]
        cache = transformers.StaticCache(model.config, max_cache_len=32)
        model(input_ids=ids[:, :17], attention_mask=mask[:, :17], cache=cache)
        for t in (17, 18, 19):
            step = compiled(input_ids=ids[:, t : t + 1], attention_mask=mask, cache=cache)
            torch.testing.assert_close(step.logits[:, 0], expected[:, t - 17], rtol=1e-4, atol=1e-4)


def test_compiled_sparse():
    """Only in pieces: their sequences' bounds are numbers."""
    torch._dynamo.reset()
    register(**IMPLEMENTATIONS["attn_hip"])
    model, _ = decoder(llama, "attn_hip")
    ids, mask = batch("right")
    options = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    with torch.no_grad():
        expected = model(**options).logits
        actual = torch.compile(model, backend="eager")(**options).logits
        torch.testing.assert_close(actual, expected)
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported, match="compile without fullgraph=True"):
            torch.compile(model, backend="eager", fullgraph=True)(**options)


def call(name="attn", tokens=8, keys=None, mask=None, **arguments):
    forward = transformers.AttentionInterface()[name]
    q, k = torch.randn(1, 2, tokens, 8), torch.randn(1, 2, keys or tokens, 8)
    return forward(torch.nn.Module(), q, k, k, mask, **arguments)


@pytest.mark.parametrize("rows", [9, 1])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"scaling": 0.7},
        {"sliding_window": 3},
        {"softcap": 1.5},
        {"s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0])},
        {"scaling": 0.7, "sliding_window": 3, "softcap": 1.5, "s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0])},
    ],
    ids=lambda a: "+".join(a) or "plain",
)
def test_each_argument(arguments, rows):
    """Grouped heads and every option by itself, prefill and one row, against weights written out."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, h, n, 8, generator=g) for h, n in ((4, rows), (2, 9), (2, 9)))
    forward = transformers.AttentionInterface()["attn"]
    with torch.no_grad():
        out, _ = forward(torch.nn.Module(), q, k, v, None, **arguments)
    x = q.double() @ k.double().repeat_interleave(2, 1).mT * arguments.get("scaling", 8**-0.5)
    if "softcap" in arguments:
        x = 1.5 * torch.tanh(x / 1.5)
    place, key = torch.arange(9 - rows, 9)[:, None], torch.arange(9)
    hidden = (key > place) | (key <= place - arguments.get("sliding_window", 100))
    x = x.masked_fill(hidden, float("-inf"))
    sinks = arguments.get("s_aux", torch.full((4,), float("-inf")))
    x = torch.cat([x, sinks.double().view(1, 4, 1, 1).expand(2, -1, rows, 1)], -1).softmax(-1)[..., :-1]
    expected = (x @ v.double().repeat_interleave(2, 1)).transpose(1, 2)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


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


def test_import_is_lazy():
    program = "import sys, attn, attn.integrations; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
