"""attn.nn layers of the scan family: weights of released layers, results of the functions, decoding."""

import pytest
import torch
from torch import nn

import attn
import eager_scan
from attn.nn import AgentAttention, FlowAttention, FrozenReluAttention, LinearAttention
from scan_oracle import draw


class Released(nn.Module):
    """Projections around an eager mixer, under the released names."""

    def __init__(self, width, heads, mixer):
        super().__init__()
        for name in ("query", "key", "value", "out"):
            setattr(self, f"{name}_projection", nn.Linear(width, width))
        self.heads, self.mixer = heads, mixer

    def forward(self, x):
        q, k, v = (
            getattr(self, f"{name}_projection")(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        return self.out_projection(self.mixer(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("layer", "mixer"),
    [
        (FlowAttention(32, n_heads=4), eager_scan.flow_attention),
        (FlowAttention(32, n_heads=4, causal=True), eager_scan.flow_attention_causal),
        (LinearAttention(32, n_heads=4), eager_scan.linear_attention),
        (LinearAttention(32, n_heads=4, causal=True), eager_scan.linear_attention_causal),
    ],
    ids=["flow", "flow causal", "linear", "linear causal"],
)
def test_released_weights(layer, mixer):
    torch.manual_seed(0)
    released = Released(32, 4, mixer)
    layer.load_state_dict(released.state_dict())
    (x,) = draw((2, 64, 32), dtype=torch.float32)
    torch.testing.assert_close(layer(x), released(x), rtol=1e-4, atol=1e-5)
    if layer.causal:
        state, rows = None, []
        for t in range(64):
            row, state = layer.step(x[:, t : t + 1], state)
            rows.append(row)
        torch.testing.assert_close(torch.cat(rows, 1), layer(x), rtol=1e-4, atol=1e-5)


def test_flow_layer_masks():
    torch.manual_seed(0)
    layer = FlowAttention(16, n_heads=4, kv_heads=2, clamp=None)
    (x,) = draw((2, 20, 16), dtype=torch.float32)
    mask = torch.arange(20)[None] < torch.tensor([[20], [11]])
    out = layer(x, key_mask=mask)
    torch.testing.assert_close(out[1, :11], layer(x[1:, :11])[0])


@pytest.mark.parametrize("causal", [False, True])
def test_random_feature_layer(causal):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    layer = LinearAttention(
        16, n_heads=2, feature_map="performer", features=32, causal=causal, generator=generator
    )
    (x,) = draw((2, 20, 16), dtype=torch.float32)
    assert torch.equal(layer(x), layer.eval()(x))
    again = LinearAttention(16, n_heads=2, feature_map="performer", features=32, causal=causal)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), again(x))
    again.redraw(generator)
    assert not torch.equal(layer(x), again(x))
    if causal:
        first, state = layer.step(x[:, :15])
        rest, _ = layer.step(x[:, 15:], state)
        torch.testing.assert_close(torch.cat([first, rest], 1), layer(x), rtol=1e-4, atol=1e-5)


def agent_deit(layer, x, cls):
    """The released layer's forward, from its formulas, with the weights of ours."""
    b, n, c = x.shape
    h, w = layer.window
    heads, r = layer.num_heads, layer.an_bias.shape[1]
    q, k, v = layer.qkv(x).reshape(b, n, 3, c).permute(2, 0, 1, 3)
    side = round(r**0.5)
    image = q[:, cls:].transpose(1, 2).reshape(b, c, h, w)
    agents = nn.functional.adaptive_avg_pool2d(image, side).reshape(b, c, r).transpose(1, 2)
    q, k, v, agents = (t.reshape(b, -1, heads, c // heads).transpose(1, 2) for t in (q, k, v, agents))
    scale = (c // heads) ** -0.5
    one = nn.functional.interpolate(layer.an_bias, size=(h, w), mode="bilinear").reshape(1, heads, r, -1)
    one = one + (layer.ah_bias + layer.aw_bias).reshape(1, heads, r, -1)
    two = nn.functional.interpolate(layer.na_bias, size=(h, w), mode="bilinear").reshape(1, heads, r, -1)
    two = two.transpose(2, 3) + (layer.ha_bias + layer.wa_bias).reshape(1, heads, -1, r)
    if cls:
        one, two = torch.cat([layer.ac_bias, one], -1), torch.cat([layer.ca_bias, two], -2)
    gathered = (agents * scale @ k.transpose(-2, -1) + one).softmax(-1) @ v
    out = (
        ((q * scale @ agents.transpose(-2, -1) + two).softmax(-1) @ gathered).transpose(1, 2).reshape(b, n, c)
    )
    values = v.transpose(1, 2).reshape(b, n, c)
    local = layer.dwc(values[:, cls:].transpose(1, 2).reshape(b, c, h, w)).flatten(2).transpose(1, 2)
    out[:, cls:] = out[:, cls:] + local
    return layer.proj(out)


@pytest.mark.parametrize("cls", [False, True])
def test_agent_layer(cls):
    torch.manual_seed(0)
    layer = AgentAttention(32, num_heads=4, window=(6, 9), agent_num=9, cls_token=cls)
    names = {"an_bias", "na_bias", "ah_bias", "aw_bias", "ha_bias", "wa_bias"} | (
        {"ac_bias", "ca_bias"} if cls else set()
    )
    weights = {f"{m}.{p}" for m in ("qkv", "proj", "dwc") for p in ("weight", "bias")}
    assert set(layer.state_dict()) == names | weights
    for name in names:
        nn.init.normal_(getattr(layer, name))
    (x,) = draw((2, 54 + cls, 32), dtype=torch.float32)
    torch.testing.assert_close(layer(x), agent_deit(layer, x, int(cls)), rtol=1e-4, atol=1e-5)
    parameters = list(layer.parameters())
    (dout,) = draw(x.shape, dtype=torch.float32, seed=2)
    ours = torch.autograd.grad(layer(x), parameters, dout)
    theirs = torch.autograd.grad(agent_deit(layer, x, int(cls)), parameters, dout)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_agent_layer_keeps_biases_in_evaluation():
    torch.manual_seed(0)
    layer = AgentAttention(16, num_heads=2, window=(4, 4), agent_num=4, value_shortcut=0.075).eval()
    (x,) = draw((1, 16, 16), dtype=torch.float32)
    with torch.no_grad():
        first = layer(x)
        assert torch.equal(layer(x), first)
        layer.ah_bias += 1.0 * torch.arange(4)[:, None]
        assert not torch.equal(layer(x), first)
    mask = torch.ones(1, 16, dtype=torch.bool)
    mask[0, 9] = False
    changed = x.clone()
    changed[0, 9] = 7.0
    keep = [i for i in range(16) if i != 9]
    # A masked token still is a query (and so part of an agent), but nobody gathers its key and value.
    assert layer(x, key_mask=mask)[0, keep].isfinite().all()


def test_frozen_relu_attention():
    g = torch.Generator().manual_seed(0)
    layer = FrozenReluAttention(5, 64, biased=True, generator=g)
    assert [n for n, _ in layer.named_parameters()] == ["value"]
    query, keys = draw((3, 5), (3, 11, 5), dtype=torch.float32)
    nn.init.normal_(layer.value, generator=g)
    one = torch.ones(3, 1)
    q, k = torch.cat([query, one], 1), torch.cat([keys, one[:, None].expand(3, 11, 1)], 2)
    scores = torch.einsum("mij,bi,bnj->bmn", layer.weight, q, k).relu()
    torch.testing.assert_close(
        layer(query, keys), torch.einsum("bmn,mi,bni->b", scores, layer.value, k) / 11, rtol=1e-4, atol=1e-4
    )
    order = torch.randperm(11, generator=g)
    torch.testing.assert_close(layer(query, keys[:, order]), layer(query, keys), rtol=1e-4, atol=1e-4)
    # Linear in the values: a least-squares fit on the features reproduces another layer with the same W.
    query, keys = draw((600, 5), (600, 11, 5), seed=1, dtype=torch.float32)
    features = layer.features(query, keys).flatten(1)
    fitted = torch.linalg.lstsq(features.double(), layer(query, keys).double()[:, None]).solution
    assert (features.double() @ fitted - layer(query, keys).double()[:, None]).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlowAttention(30, n_heads=4), "d_model must be a multiple of n_heads, got 30 and 4"),
        (lambda: FlowAttention(32, n_heads=4, kv_heads=3), "n_heads must be a multiple of kv_heads"),
        (lambda: LinearAttention(32, features=8), "features is for random feature maps"),
        (lambda: AgentAttention(32, agent_num=50), "agent_num must be a square"),
        (lambda: AgentAttention(32, attn_drop=0.1), "attn_drop must be 0"),
        (
            lambda: attn.nn.AgentAttention(32, window=(4, 4))(torch.zeros(1, 16, 32)),
            "agent_num must not exceed",
        ),
        (lambda: FlowAttention(32).step(torch.zeros(1, 1, 32)), "step needs causal=True"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
