"""attn.random_features, attn.draw_omega and attn.random_feature_attention."""

import pytest
import torch

import attn
from attn import reference
from scan_oracle import DTYPES, check, draw

KINDS = ["performer", "fast_transformers", "relu", "rff"]
STABILIZERS = ["row", "none", "global", "running"]


def omega(r=12, d=6, **options):
    return attn.draw_omega(r, d, generator=torch.Generator().manual_seed(3), **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stabilizer", STABILIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_against_reference(kind, stabilizer, dtype):
    """As exact as the reference's own formulas evaluated in the dtype (the yardstick rounds its result only:
    the published formulas in half precision overflow).
    """
    (x,) = draw((2, 3, 20, 6), dtype=dtype)
    w = omega().to(torch.float64)
    options = {"kind": kind, "stabilizer": stabilizer}

    def exact(x):
        return reference.random_features(x, w.float(), **options)

    def usual(x):
        return exact(x).to(x.dtype)

    check(lambda x: attn.random_features(x, w.float(), **options), usual, exact, (x,), str(options))


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    x, w = (t.requires_grad_() for t in draw((1, 5, 4), (3, 4)))
    assert torch.autograd.gradcheck(lambda *t: attn.random_features(*t, kind=kind, stabilizer="none"), (x, w))


@pytest.mark.parametrize("kind", ["performer", "fast_transformers", "rff"])
def test_features_approximate_their_kernel(kind):
    q, k = draw((7, 8), (9, 8), seed=1)
    w = attn.draw_omega(1 << 15, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    product = (
        attn.random_features(q, w, kind=kind, stabilizer="none")
        @ attn.random_features(k, w, kind=kind, stabilizer="none").mT
    )
    logits = q @ k.mT / 8**0.5
    if kind == "rff":  # the Gaussian kernel of the scaled rows
        logits = -0.5 * torch.cdist(q, k).square() / 8**0.5
    error = (product - logits.exp()).abs()
    assert error.max() < 0.02 if kind == "rff" else (error / logits.exp()).median() < 0.05


def test_draw():
    w = omega(16, 8, dtype=torch.float64)
    for block in (w[:8], w[8:]):
        gram = torch.nn.functional.normalize(block, dim=1)
        torch.testing.assert_close(gram @ gram.mT, torch.eye(8, dtype=torch.float64))
    assert omega(11, 8).shape == (11, 8)
    torch.testing.assert_close(omega(9, 8, regularized=True).norm(dim=1), torch.full((9,), 8**0.5))
    many = omega(4096, 4, dtype=torch.float64)
    assert abs(many.mean()) < 0.05
    assert abs(many.square().mean() - 1) < 0.05
    with pytest.raises(ValueError, match="features must be >= 1, got 0"):
        attn.draw_omega(0, 4)


def test_nothing_is_drawn_inside():
    """The released Favor draws anew at every call, in evaluation too."""
    q, k, v = draw((1, 2, 30, 6), (1, 2, 30, 6), (1, 2, 30, 5), dtype=torch.float32)
    before = torch.get_rng_state()
    a, b = (attn.random_feature_attention(q, k, v, omega(), kind="fast_transformers") for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(omega(), omega())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("kind", KINDS[:3])
def test_attention(kind, causal, dtype):
    q, k, v = draw((1, 4, 70, 6), (1, 2, 70, 6), (1, 2, 70, 5), dtype=dtype)
    stabilizer = "none" if causal else "global"

    def features(q, k):
        return [
            reference.random_features(x, omega(), kind=kind, stabilizer=s)
            for x, s in ((q, "row"), (k, stabilizer))
        ]

    def exact(q, k, v):
        return reference.linear_attention(*features(q, k), v, feature_map="identity", causal=causal)

    def usual(q, k, v):
        phi_q, phi_k = (x.to(v.dtype) for x in features(q, k))
        weight = phi_q @ phi_k.repeat_interleave(2, 1).mT
        weight = weight.tril() if causal else weight
        return weight @ v.repeat_interleave(2, 1) / (weight.sum(-1, keepdim=True) + 1e-6)

    def ours(q, k, v):
        return attn.random_feature_attention(q, k, v, omega(), kind=kind, causal=causal)

    check(ours, usual, exact, (q, k, v), kind)


def test_close_to_softmax():
    q, k, v = draw((1, 1, 64, 8), (1, 1, 64, 8), (1, 1, 64, 8), dtype=torch.float32)
    q = q / 2
    for causal in (False, True):
        truth = attn.attention(q, k, v, causal=causal)
        w = attn.draw_omega(8192, 8, generator=torch.Generator().manual_seed(0))
        out = attn.random_feature_attention(q, k, v, w, kind="fast_transformers", causal=causal)
        assert (out - truth).abs().mean() < 0.05


def test_causal_features_do_not_see_the_future():
    """The released key stabilizer is a maximum over all positions, the future among them."""
    q, k, v = draw((1, 2, 130, 6), (1, 2, 130, 6), (1, 2, 130, 5), dtype=torch.float32)
    first = attn.random_feature_attention(q, k, v, omega(), causal=True)
    k2 = k.clone()
    k2[:, :, 100:] = 30.0
    assert torch.equal(
        attn.random_feature_attention(q, k2, v, omega(), causal=True)[:, :, :100], first[:, :, :100]
    )
    streamed = attn.random_features(k2, omega(), stabilizer="running")[:, :, :100]
    assert torch.equal(streamed, attn.random_features(k, omega(), stabilizer="running")[:, :, :100])


def test_large_inputs_stay_finite():
    x = draw((1, 1, 50, 16))[0].half() * 30
    for kind in KINDS:
        assert attn.random_features(x, omega(32, 16), kind=kind).isfinite().all()
    out = attn.random_feature_attention(x, x, x, omega(32, 16), kind="performer")
    assert out.isfinite().all()


def test_masks_and_packing():
    q, k, v = draw((1, 2, 60, 6), (1, 2, 60, 6), (1, 2, 60, 5), dtype=torch.float32)
    w = omega()
    cu = torch.tensor([0, 25, 60], dtype=torch.int32)
    packed = attn.random_feature_attention(q, k, v, w, cu_seqlens=cu)
    alone = attn.random_feature_attention(*(x[:, :, :25] for x in (q, k, v)), w, stabilizer="none")
    assert torch.equal(packed[:, :, :25], alone)
    mask = torch.arange(60)[None] < 25
    masked = attn.random_feature_attention(q, k, v, w, key_mask=mask)
    torch.testing.assert_close(masked[:, :, :25], alone)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kind": "favor"}, ValueError, "kind must be one of 'performer'"),
        ({"stabilizer": "max"}, ValueError, "stabilizer must be one of 'row'"),
        ({"omega": torch.zeros(3, 5)}, ValueError, r"omega must be \[r, D\] with the D of x, 6"),
        ({"omega": torch.zeros(3, 6).half()}, TypeError, "omega must be float32 or the dtype of x"),
        ({"x": torch.zeros(2, 6, dtype=torch.int32)}, TypeError, "x must be a floating point tensor"),
    ],
)
def test_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        attn.random_features(**{"x": torch.zeros(2, 6), "omega": omega(), **arguments})
