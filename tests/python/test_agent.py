"""attn.agent_attention and attn.pool_agents against the float64 reference."""

import pytest
import torch

import attn
from attn import reference
from scan_oracle import DTYPES, check, draw

# B, H, Hkv, n, m, r, D, Dv
SHAPES = [(2, 2, 2, 70, 70, 9, 8, 8), (1, 4, 2, 200, 300, 49, 64, 96), (1, 2, 1, 5, 40, 64, 6, 5)]


def inputs(shape, dtype):
    b, h, hkv, n, m, r, d, dv = shape
    return draw((b, h, n, d), (b, hkv, m, d), (b, hkv, m, dv), (b, h, r, d), dtype=dtype)


def plain(q, k, v, agents, agent_bias=0, query_bias=0, scale=None, agent_scale=None):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    agent_scale = scale if agent_scale is None else agent_scale
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    gathered = torch.softmax(agents @ k.mT * scale + agent_bias, -1) @ v
    return torch.softmax(q @ agents.mT * agent_scale + query_bias, -1) @ gathered


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_reference(shape, dtype):
    check(attn.agent_attention, plain, reference.agent_attention, inputs(shape, dtype), str(shape))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_biases(shape, dtype):
    b, h, _, n, m, r, *_ = shape
    biases = draw((h, r, m), (b, 1, n, r), seed=4, dtype=dtype)

    def run(function):
        def call(q, k, v, agents, b1, b2):
            return function(q, k, v, agents, agent_bias=b1, query_bias=b2, scale=0.3, agent_scale=0.7)

        return call

    check(
        run(attn.agent_attention),
        run(plain),
        run(reference.agent_attention),
        (*inputs(shape, dtype), *biases),
        "bias",
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_separable_biases(dtype):
    """Factors give what their product gives, gradients into the factors included."""
    b, h, hkv, n, m, r, d, dv = 1, 2, 1, 30, 40, 9, 8, 6
    x = inputs((b, h, hkv, n, m, r, d, dv), dtype)
    factors = draw((h, r, 5), (m, 5), (n, 3), (1, h, r, 3), seed=4, dtype=dtype)

    def product(function):
        def call(q, k, v, agents, l1, r1, l2, r2):
            return function(q, k, v, agents, agent_bias=l1 @ r1.mT, query_bias=l2 @ r2.mT)

        return call

    def ours(q, k, v, agents, l1, r1, l2, r2):
        return attn.agent_attention(q, k, v, agents, agent_bias=(l1, r1), query_bias=(l2, r2))

    check(ours, product(plain), product(reference.agent_attention), (*x, *factors), "factors")


def test_masked_keys_are_absent():
    """Agent-Swin takes a mask and ignores it."""
    mask = torch.rand(2, 70, generator=torch.Generator().manual_seed(0)) < 0.5
    q, k, v, agents = inputs(SHAPES[0], torch.float32)
    hidden = ~mask[:, None, :, None]
    bad = k.masked_fill(hidden, torch.nan), v.masked_fill(hidden, torch.nan)
    out = attn.agent_attention(q, *bad, agents, key_mask=mask)
    truth = reference.agent_attention(q, k, v, agents, key_mask=mask)
    assert (out - truth).abs().max() < 1e-5
    (bias,) = draw((2, 9, 70), dtype=torch.float32)
    biased = attn.agent_attention(q, k, v, agents, key_mask=mask, agent_bias=bias)
    assert (
        biased - reference.agent_attention(q, k, v, agents, key_mask=mask, agent_bias=bias)
    ).abs().max() < 1e-5
    for b in range(2):
        alone = attn.agent_attention(
            q[b : b + 1], k[b : b + 1, :, mask[b]], v[b : b + 1, :, mask[b]], agents[b : b + 1]
        )
        torch.testing.assert_close(out[b : b + 1], alone)
    assert (attn.agent_attention(q, k, v, agents, key_mask=torch.zeros_like(mask)) == 0).all()


def test_gradcheck():
    x = [t.requires_grad_() for t in inputs((1, 2, 1, 5, 6, 3, 4, 3), torch.float64)]
    biases = [t.requires_grad_() for t in draw((2, 3, 6), (5, 3), seed=3)]

    def run(q, k, v, agents, b1, b2):
        return attn.agent_attention(q, k, v, agents, agent_bias=b1, query_bias=b2)

    assert torch.autograd.gradcheck(run, [*x, *biases])


@pytest.mark.parametrize(
    ("size", "grid"), [((12,), (5,)), ((6, 7), (3, 3)), ((14, 14), (7, 7)), ((3, 4, 5), (2, 2, 3))]
)
def test_pool_agents(size, grid):
    count = torch.Size(size).numel()
    (q,) = draw((2, 3, count + 1, 4))
    pooled = attn.pool_agents(q, size, grid, skip=1)
    pool = {1: torch.nn.AdaptiveAvgPool1d, 2: torch.nn.AdaptiveAvgPool2d, 3: torch.nn.AdaptiveAvgPool3d}[
        len(size)
    ]
    image = q[:, :, 1:].mT.reshape(6, 4, *size)
    torch.testing.assert_close(pooled, pool(grid)(image).reshape(2, 3, 4, -1).mT)
    with pytest.raises(ValueError, match="must be the number of tokens of q"):
        attn.pool_agents(q, size, grid)


def test_compile():
    x = [t.requires_grad_() for t in inputs(SHAPES[0], torch.float32)]

    def run(q, k, v, agents):
        return attn.agent_attention(q, k, v, agents, agent_bias=q.sum() * agents[:, :, :, :1])

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*x), run(*x))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"agents": torch.zeros(1, 2, 3, 5)}, ValueError, r"agents must be \[B, H, r, D\]"),
        ({"agents": torch.zeros(1, 2, 3, 4).double()}, ValueError, "agents must have the dtype of q"),
        (
            {"agent_bias": torch.zeros(3, 5)},
            ValueError,
            r"agent_bias must be broadcastable to \[B, H, r, m\]",
        ),
        ({"query_bias": torch.zeros(6, 3).half()}, ValueError, "query_bias must have the dtype of q"),
        ({"query_bias": 1.0}, TypeError, "query_bias must be a tensor, a pair of factors or None, got float"),
        ({"query_bias": (torch.zeros(6, 2), torch.zeros(3, 4))}, ValueError, "the same last dimension"),
        ({"scale": float("nan")}, ValueError, "scale must be finite"),
    ],
)
def test_refused(options, error, message):
    x = {"q": torch.zeros(1, 2, 6, 4), "k": torch.zeros(1, 2, 7, 4), "v": torch.zeros(1, 2, 7, 4)}
    with pytest.raises(error, match=message):
        attn.agent_attention(**{**x, "agents": torch.zeros(1, 2, 3, 4), **options})
