"""Pooling layers: released forms with the same weights, padding, packing, gradients, and a real encoder."""

import pytest
import torch
from torch import nn

from attn.nn import (
    LamaPooling,
    LatentPooling,
    MultiLayerPooling,
    MultisetPooling,
    PoNetMixer,
    TokenPooling,
)
from pool_oracle import NAN, randn

LENGTHS = [7, 1, 20, 4]
CU = nn.functional.pad(torch.tensor(LENGTHS).cumsum(0), (1, 0)).int()
MASK = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
DIM = 16


def seeded(make):
    torch.manual_seed(0)
    return make()


LAYERS = {
    "ponet": lambda: PoNetMixer(DIM, num_heads=4, segment_length=3, out_projection=False),
    "gmt": lambda: MultisetPooling(DIM, num_seeds=3, num_heads=4, layer_norm=True),
    "gmt, many seeds": lambda: MultisetPooling(DIM, num_seeds=9, num_heads=2),
    "gmt, cluster": lambda: MultisetPooling(DIM, num_seeds=3, num_heads=4, axis="queries"),
    "pyg": lambda: MultisetPooling(DIM, num_seeds=3, num_heads=4, convention="pyg", layer_norm=True),
    "latents": lambda: LatentPooling(DIM, num_latents=5, num_heads=2, head_dim=12),
    "lama": lambda: LamaPooling(DIM, num_heads=3, output_dim=6),
    **{mode: (lambda mode=mode: TokenPooling(mode)) for mode in ("mean", "max", "first", "last")},
    "weighted_mean": lambda: TokenPooling("weighted_mean", normalize=True),
}


def run(layer, x, **places):
    """Result, gradient of x and gradients of all parameters."""
    x = x.detach().clone().requires_grad_()
    out = layer(x, **places)
    return out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])


@pytest.mark.parametrize("name", LAYERS)
def test_padded_packed_alone(name):
    """With NaN in the padding; lengths 0 and 1 among them."""
    layer = seeded(LAYERS[name])
    x = randn(len(LENGTHS), max(LENGTHS), DIM).masked_fill(~MASK[..., None], NAN)
    padded = run(layer, x, mask=MASK)
    assert not any(y.isnan().any() for y in padded)
    tail = torch.cat([x[MASK], torch.full((3, DIM), NAN)])
    tokens = name == "ponet"  # a row per token
    packed = run(layer, tail[None] if tokens else tail, cu_seqlens=CU)
    assert not any(y.isnan().any() for y in packed)
    n = int(CU[-1])
    if tokens:
        torch.testing.assert_close(padded[0][MASK], packed[0][0, :n], rtol=1e-4, atol=1e-5)
    else:
        torch.testing.assert_close(padded[0], packed[0], rtol=1e-4, atol=1e-5)
    gradient = packed[1].view(-1, DIM)
    torch.testing.assert_close(padded[1][MASK], gradient[:n], rtol=1e-4, atol=1e-5)
    assert (padded[1][~MASK] == 0).all()
    assert (gradient[n:] == 0).all()
    for a, b in zip(padded[2:], packed[2:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    for i, length in enumerate(LENGTHS):
        alone = layer(x[i : i + 1, :length])[0]
        torch.testing.assert_close(
            alone, padded[0][i, :length] if tokens else padded[0][i], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", LAYERS)
def test_empty_sequences(name):
    layer = seeded(LAYERS[name])
    cu = torch.tensor([0, 0, 4, 4], dtype=torch.int32)
    x = randn(4, DIM)
    found = run(layer, x[None] if name == "ponet" else x, cu_seqlens=cu)
    assert not any(y.isnan().any() for y in found)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    found = run(layer, torch.full((2, 5, DIM), NAN), mask=mask)
    assert not any(y.isnan().any() for y in found)


@pytest.mark.parametrize("name", LAYERS)
def test_gradcheck(name):
    layer = seeded(LAYERS[name]).double()
    x = randn(2, 6, DIM, dtype=torch.float64).requires_grad_()
    mask = torch.tensor([[True] * 6, [True, True, False, True, False, False]])

    def call(x, *_):
        return layer(x, mask=mask)

    torch.autograd.gradcheck(call, [x, *layer.parameters()], fast_mode=True)


@pytest.mark.parametrize("name", LAYERS)
def test_low_precision(name):
    layer = seeded(LAYERS[name])
    exact = layer(randn(2, 9, DIM))
    low = layer.bfloat16()(randn(2, 9, DIM).bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), exact, rtol=0.05, atol=0.05)


def released_ponet(x, weights, heads, index):
    """The released mixer without padding, from its state dict."""
    q, k, o, segment, local = (
        nn.functional.linear(x, weights[f"dense_{n}.weight"], weights[f"dense_{n}.bias"])
        for n in ("q", "k", "o", "segment", "local")
    )
    split = lambda y: y.unflatten(-1, (heads, -1)).transpose(1, 2)  # noqa: E731
    q, k, o = split(q), split(k), split(o)
    weight = (q.mean(2, keepdim=True) @ k.mT / k.shape[-1] ** 0.5).softmax(-1)
    spread = index[None, :, None].expand_as(segment)
    top = segment.new_zeros(x.shape[0], int(index.max()) + 1, x.shape[2])
    top = top.scatter_reduce(1, spread, segment, "amax", include_self=False).gather(1, spread)
    window = nn.functional.max_pool1d(local.mT, 3, 1, 1).mT
    return ((weight @ k + split(top)) * o).transpose(1, 2).flatten(2) + window


@pytest.mark.parametrize("names", ["encoder", "arena"])
def test_ponet_loads_released_weights(names):
    layer = PoNetMixer(DIM, num_heads=4, out_projection=names == "arena")
    arena = {"dense_q": "W_q", "dense_k": "W_k", "dense_o": "W_v", "dense_segment": "W_segment",
             "dense_local": "W_local"}  # fmt: skip
    weights = {}
    for n, name in enumerate(arena):
        weights[f"{name}.weight"] = randn(DIM, DIM, seed=n) / DIM**0.5
        weights[f"{name}.bias"] = randn(DIM, seed=n + 9)
    state = dict(weights)
    if names == "arena":
        state = {f"{arena[key.split('.')[0]]}.{key.split('.')[1]}": x for key, x in weights.items()}
        state |= {"ff.weight": torch.eye(DIM), "ff.bias": torch.zeros(DIM)}
    wrapped = nn.ModuleDict({"self": layer})
    wrapped.load_state_dict({f"self.{key}": x for key, x in state.items()})
    x = randn(2, 21, DIM)
    expected = released_ponet(x, weights, 4, torch.arange(21) // 5)
    torch.testing.assert_close(layer(x, segment_length=5), expected, rtol=1e-4, atol=1e-4)


def test_ponet_segments_between_special_tokens():
    special = torch.tensor([[1, 0, 0, 1, 0, 1, 0, 0], [1, 0, 1, 1, 0, 0, 0, 1]]).bool()
    ids = PoNetMixer.segments_between(special)
    assert ids.tolist() == [[0, 1, 1, 2, 3, 4, 5, 5], [0, 1, 2, 4, 5, 5, 5, 6]]
    layer = seeded(LAYERS["ponet"])
    assert layer(randn(2, 8, DIM), segment_ids=ids, special_mask=special).shape == (2, 8, DIM)


def released_mab(seeds, x, p, heads, cluster=False):
    """GMT's block: full-width scale, residual of the projected query."""
    linear = lambda y, n: nn.functional.linear(y, p[f"mab.fc_{n}.weight"], p[f"mab.fc_{n}.bias"])  # noqa: E731
    q, k, v = linear(seeds, "q"), linear(x, "k"), linear(x, "v")
    split = lambda y: y.unflatten(-1, (heads, -1)).transpose(1, 2)  # noqa: E731
    weights = (split(q) @ split(k).mT / q.shape[-1] ** 0.5).softmax(-2 if cluster else -1)
    out = q + (weights @ split(v)).transpose(1, 2).flatten(2)
    return out + linear(out, "o").relu()


@pytest.mark.parametrize("axis", ["keys", "queries"])
@pytest.mark.parametrize("seeds", [3, 12])
def test_gmt_convention(axis, seeds):
    layer = seeded(lambda: MultisetPooling(DIM, num_seeds=seeds, num_heads=4, axis=axis))
    x = randn(2, 11, DIM)
    expected = released_mab(layer.S, x, layer.state_dict(), 4, axis == "queries")
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_seeds_competing_for_nodes_ignore_padding():
    """In the released form a padded node gives every seed 1/k of its value, b_v."""
    layer = seeded(LAYERS["gmt, cluster"])
    x = randn(1, 5, DIM)
    padded = torch.cat([x, torch.zeros(1, 4, DIM)], 1)
    mask = torch.arange(9)[None] < 5
    torch.testing.assert_close(layer(padded, mask=mask), layer(x))
    leaked = released_mab(layer.S, padded, layer.state_dict(), 4, cluster=True)
    assert (leaked - layer(x)).abs().max() > 1e-3


def test_pyg_convention():
    """torch's own MultiheadAttention does the attention there."""
    layer = seeded(lambda: MultisetPooling(DIM, num_seeds=3, num_heads=4, convention="pyg", layer_norm=True))
    x = randn(4, 20, DIM)
    hidden = layer.lin(x).relu()
    seeds = layer.seed.expand(4, -1, -1)
    block = layer.mab
    attended, _ = block.attn(seeds, hidden, hidden, key_padding_mask=~MASK, need_weights=False)
    out = block.layer_norm1(seeds + attended)
    expected = block.layer_norm2(out + block.lin(out).relu())
    torch.testing.assert_close(layer(x, mask=MASK), expected, rtol=1e-4, atol=1e-5)


def released_latents(x, p, heads, normalize=True):
    """Attention of repeated latents, output projection after it."""
    norm = lambda y, n: nn.functional.layer_norm(  # noqa: E731
        y, (DIM,), p[f"cross_attend_blocks.{n}.weight"], p[f"cross_attend_blocks.{n}.bias"]
    )
    block = "cross_attend_blocks.0.fn"
    latents = p["latents"].expand(x.shape[0], -1, -1)
    q = norm(latents, "0.norm_context") @ p[f"{block}.to_q.weight"].T
    k, v = (norm(x, "0.norm") @ p[f"{block}.to_kv.weight"].T).chunk(2, -1)
    q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (q, k, v))
    pooled = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    z = pooled @ p[f"{block}.to_out.weight"].T + latents
    net = "cross_attend_blocks.1.fn.net"
    h, gate = (norm(z, "1.norm") @ p[f"{net}.0.weight"].T + p[f"{net}.0.bias"]).chunk(2, -1)
    z = (h * nn.functional.gelu(gate)) @ p[f"{net}.2.weight"].T + p[f"{net}.2.bias"] + z
    return nn.functional.normalize(z.mean(1), dim=-1)


@pytest.mark.parametrize("latents", [4, 60])
def test_latent_pooling_is_the_released_one(latents):
    layer = seeded(lambda: LatentPooling(DIM, num_latents=latents, num_heads=2, head_dim=24))
    assert layer.reassociates(10) == (latents == 60)
    x = randn(3, 10, DIM)
    expected = released_latents(x, layer.state_dict(), 2)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_both_orders_of_the_output_projection_agree():
    layer = seeded(lambda: LatentPooling(DIM, num_latents=60, num_heads=2, head_dim=64))
    x = randn(4, 20, DIM).masked_fill(~MASK[..., None], NAN)
    mask = MASK.clone()
    mask[1] = False  # and one without tokens
    assert layer.reassociates(20)
    first = run(layer, x, mask=mask)
    layer.reassociates = lambda keys: False
    for a, b in zip(first, run(layer, x, mask=mask), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_multi_layer_pooling():
    layer = seeded(lambda: MultiLayerPooling(DIM, layers=6, num_latents=30, num_heads=2, head_dim=8))
    x = randn(3, 6, DIM)
    expected = released_latents(x + layer.pos_emb.weight, layer.state_dict(), 2)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    assert layer.reassociates(6)
    for wrong in (randn(3, 5, DIM), randn(6, DIM)):
        with pytest.raises(ValueError, match="x must be"):
            layer(wrong)
    with pytest.raises(ValueError, match="cu_seqlens must be None"):
        layer(x, cu_seqlens=CU)


def plain_lama(x, P, Q):  # one sequence
    scores = torch.tanh((x.mean(0) @ P) * (x @ Q))
    weights = (scores / scores.norm(dim=1, keepdim=True)).softmax(0)
    return (weights.T @ x).flatten()


def test_lama_formula():
    layer = seeded(lambda: LamaPooling(DIM, num_heads=3)).double()
    x = randn(4, 20, DIM, dtype=torch.float64)
    out = layer(x, mask=MASK)
    for n, length in enumerate(LENGTHS):
        torch.testing.assert_close(out[n], plain_lama(x[n, :length], layer.P, layer.Q))


@pytest.mark.parametrize("eps", [1e-12, 0.0])
def test_lama_gradients_are_finite_on_zero_padding(eps):
    layer = seeded(lambda: LamaPooling(DIM, num_heads=3, eps=eps))
    x = randn(4, 20, DIM).masked_fill(~MASK[..., None], 0.0)
    found = run(layer, x, mask=MASK)
    assert all(y.isfinite().all() for y in found)
    if eps:  # and a zero token that isn't padding
        x[0, 0] = 0
        assert all(y.isfinite().all() for y in run(layer, x, mask=MASK))


def test_weighted_mean_on_either_side():
    x = randn(1, 4, DIM)
    expected = (x * torch.arange(1.0, 5.0)[None, :, None]).sum(1) / 10
    pool = TokenPooling("weighted_mean")
    torch.testing.assert_close(pool(x), expected)
    left = torch.cat([torch.full((1, 3, DIM), NAN), x], 1)
    mask = torch.arange(7)[None] >= 3
    torch.testing.assert_close(pool(left, mask=mask), expected)
    torch.testing.assert_close(TokenPooling("last")(left, mask=mask), x[:, -1])


def test_wrong_options():
    for make, message in (
        (lambda: TokenPooling("median"), "mode must be one of"),
        (lambda: PoNetMixer(10, num_heads=3), "num_heads must divide dim"),
        (lambda: MultisetPooling(10, num_seeds=1, num_heads=3), "num_heads must divide dim"),
        (lambda: MultisetPooling(8, num_seeds=1, num_heads=2, convention="set"), "convention must be"),
        (lambda: LamaPooling(8, num_heads=0), "num_heads must be"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


SENTENCES = [
    "The committee met on Tuesday and adjourned without a decision.",
    "Rain.",
    "In 1869 the first transcontinental railroad reached California, and a journey of months took a week.",
    "She asked whether the museum was open on Sundays; it was not.",
    "Bread, cheese, olives, and two bottles of water.",
]


@pytest.fixture(scope="module")
def sentences():
    """Token embeddings of real sentences: padded, mask, packed."""
    from attn.demo.encoder import load_encoder

    tokenizer, model = load_encoder()
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"].bool()
    cu = nn.functional.pad(mask.sum(1).cumsum(0), (1, 0)).int()
    return states, mask, states[mask], cu


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("mode", "theirs"),
    [
        ("mean", "mean"),
        ("last", "lasttoken"),
        ("first", "cls"),
        ("max", "max"),
        ("weighted_mean", "weightedmean"),
    ],
)
def test_real_sentences_as_sentence_transformers(sentences, mode, theirs, normalize):
    pooling = pytest.importorskip(
        "sentence_transformers.sentence_transformer.modules.pooling", reason="needs sentence-transformers"
    )
    states, mask, packed, cu = sentences
    features = {"token_embeddings": states, "attention_mask": mask.long()}
    expected = pooling.Pooling(states.shape[-1], pooling_mode=theirs)(features)["sentence_embedding"]
    expected = nn.functional.normalize(expected, dim=-1) if normalize else expected
    pool = TokenPooling(mode, normalize=normalize)
    for found in (pool(states, mask=mask), pool(packed, cu_seqlens=cu)):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("convention", ["gmt", "pyg"])
def test_real_sentences_by_multiset_pooling(sentences, convention):
    """The packed batch of sentences gives what each of them gives alone, through the definition."""
    states, mask, packed, cu = sentences
    dim = states.shape[-1]
    layer = seeded(lambda: MultisetPooling(dim, num_seeds=4, num_heads=6, convention=convention))
    with torch.no_grad():
        found = layer(packed, cu_seqlens=cu)
        for n in range(len(SENTENCES)):
            tokens = states[n : n + 1, mask[n]]
            if convention == "gmt":
                expected = released_mab(layer.S, tokens, layer.state_dict(), 6)
            else:
                hidden = layer.lin(tokens).relu()
                out = layer.seed + layer.mab.attn(layer.seed, hidden, hidden, need_weights=False)[0]
                expected = out + layer.mab.lin(out).relu()
            torch.testing.assert_close(found[n : n + 1], expected, rtol=1e-4, atol=1e-5)
