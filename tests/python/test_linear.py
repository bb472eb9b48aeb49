"""attn.linear_attention and its step against the float64 reference."""

import functools

import pytest
import torch

import attn
import eager_scan
from attn import reference
from scan_oracle import DTYPES, check, draw, grouped

OPS = torch.ops.attn
MAPS = ["elu1", "relu", "exp", "identity", "sigmoid", "taylor2"]
# B, H, Hkv, Tq, Tk, D, Dv
SHAPES = [
    (2, 2, 2, 70, 70, 8, 8),
    (1, 4, 2, 90, 90, 6, 5),
    (1, 1, 1, 700, 700, 64, 96),
    (1, 1, 1, 130, 130, 256, 64),
    (1, 1, 1, 70, 70, 32, 320),
    (1, 1, 1, 70, 70, 320, 16),
    (1, 2, 1, 1, 1, 16, 16),
    (2, 2, 1, 33, 520, 8, 8),
]


def inputs(shape, dtype, seed=0):
    b, h, hkv, n, m, d, dv = shape
    return draw((b, h, n, d), (b, hkv, m, d), (b, hkv, m, dv), seed=seed, dtype=dtype)


def ours(**options):
    return lambda *x: attn.linear_attention(*x, **options)


def exact(**options):
    return lambda *x: reference.linear_attention(*x, **options)


def plain(feature_map="elu1", causal=False, normalize=True, eps=1e-6, key_mask=None):
    """The weight matrix in the dtype of the arguments."""

    def run(q, k, v):
        phi = reference.linear.feature_map
        q, k = phi(q, feature_map), phi(k, feature_map)
        if key_mask is not None:
            k = k.masked_fill(~key_mask[:, None, :, None], 0.0)
        weight = q @ k.mT
        weight = weight.tril() if causal else weight
        above, below = weight @ v, weight.sum(-1, keepdim=True)
        return above / (below + torch.where(below < 0, -eps, eps).to(below)) if normalize else above

    return run


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_reference(shape, causal, dtype):
    if causal and shape[3] != shape[4]:
        return
    released = eager_scan.linear_attention if not causal else plain(causal=True)
    options = {"causal": causal}
    if shape[3] == 1:
        # One key: its weight is 1 but for eps, and gradients of q and k are rounding alone.
        options["eps"] = 0.5
        released = plain(**options)
    x = inputs(shape, dtype)
    check(ours(**options), grouped(released, shape[1] // shape[2]), exact(**options), x, str(shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("feature_map", MAPS)
def test_feature_maps(feature_map, causal, dtype):
    # identity: keys around 1, so that the mass stays away from 0.
    shift = 1.0 if feature_map == "identity" else 0.0
    q, k, v = inputs((1, 2, 2, 150, 150, 10, 7), dtype)
    options = {"feature_map": feature_map, "causal": causal}
    usual = plain(**options)
    if feature_map == "elu1" and causal:
        usual = functools.partial(eager_scan.linear_attention_causal, chunk=50)
    check(ours(**options), usual, exact(**options), (q + shift, k + shift, v), feature_map)
    options["normalize"] = False
    check(ours(**options), plain(**options), exact(**options), (q, k, v), feature_map)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_masked_keys_are_absent(causal):
    mask = torch.rand(2, 300, generator=torch.Generator().manual_seed(0)) < 0.6
    mask[1, :200] = False
    q, k, v = inputs((2, 2, 2, 300, 300, 8, 8), torch.float32)
    hidden = ~mask[:, None, :, None]
    clean = (q, k.masked_fill(hidden, 0.0), v.masked_fill(hidden, 0.0))
    options = {"causal": causal, "key_mask": mask}

    def poisoned(q, k, v):
        return attn.linear_attention(
            q, k.masked_fill(hidden, torch.nan), v.masked_fill(hidden, torch.nan), **options
        )

    def weights(q, k, v):
        return plain(**options)(q, k, v.masked_fill(hidden, 0.0))

    check(poisoned, weights, exact(**options), clean, "mask")


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_packed(causal):
    cu = torch.tensor([0, 300, 300, 301, 390], dtype=torch.int32)
    x = inputs((1, 2, 1, 400, 400, 8, 8), torch.float64)
    options = {"causal": causal, "cu_seqlens": cu}
    check(ours(**options), exact(**options), exact(**options), x, "packed")
    x = [t.float() for t in x]
    alone = ours(causal=causal)(*(t[:, :, 301:390] for t in x))
    assert torch.equal(ours(**options)(*x)[:, :, 301:390], alone)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("feature_map", ["elu1", "taylor2"])
def test_states(feature_map, causal):
    features = 8 if feature_map == "elu1" else 45
    q, k, v = inputs((2, 4, 2, 80, 80, 8, 6), torch.float64)
    s, z = draw((2, 2, features, 6), (2, 2, features), seed=5)

    def run(function):
        def both(q, k, v, s, z):
            out, (s1, z1) = function(
                q,
                k,
                v,
                feature_map=feature_map,
                causal=causal,
                initial_state=(s, z.abs() * 50),
                return_state=True,
            )
            return torch.cat([out.flatten(), s1.flatten(), z1.flatten()])

        return both

    check(
        run(attn.linear_attention),
        run(reference.linear_attention),
        run(reference.linear_attention),
        (q, k, v, s, z),
        "s",
    )


def test_gradcheck():
    x = [t.requires_grad_() for t in inputs((1, 2, 1, 7, 7, 3, 2), torch.float64)]
    for feature_map in MAPS:
        for causal in (False, True):
            assert torch.autograd.gradcheck(
                ours(feature_map=feature_map, causal=causal, normalize=feature_map != "identity"), x
            )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_steps_are_the_causal_form(dtype):
    q, k, v = inputs((2, 4, 2, 40, 40, 6, 10), dtype)
    state, rows = None, []
    for t in range(0, 40, 2):
        out, state = attn.linear_attention_step(*(x[:, :, t : t + 2] for x in (q, k, v)), state)
        rows.append(out)
    truth = reference.linear_attention(q, k, v, causal=True)
    error = (grouped(plain(causal=True), 2)(q, k, v).double() - truth).abs().max()
    assert (torch.cat(rows, 2).double() - truth).abs().max() <= 2 * error + 1e-5 * truth.abs().max()


def test_future_does_not_matter():
    q, k, v = inputs((1, 2, 2, 700, 700, 16, 16), torch.float32)
    out = ours(causal=True)(q, k, v)
    for cut in (1, 65, 300):
        later = [torch.cat([x[:, :, :cut], torch.full_like(x[:, :, cut:], torch.nan)], 2) for x in (q, k, v)]
        assert torch.equal(ours(causal=True)(*later)[:, :, :cut], out[:, :, :cut])


def test_negative_mass():
    """Identity features: a mass below 0 has eps taken away, so that it never crosses 0; 0 / 0 is 0."""
    q, k = torch.tensor([[1.0], [-1.0], [0.0]]), torch.tensor([[1e-7], [0.0], [0.0]])
    v = torch.ones(3, 1)
    options = {"feature_map": "identity", "eps": 1e-6}
    x = [t[None, None] for t in (q, k, v)]
    torch.testing.assert_close(ours(**options)(*x).double(), exact(**options)(*x))
    assert ours(feature_map="identity", eps=0.0)(*x)[0, 0, 2] == 0


def test_half_precision_normaliser():
    """Sums of keys in float16 end in NaN after some hundred tokens in other implementations."""
    q, k, v = (x.half() for x in inputs((1, 1, 1, 70000, 70000, 16, 8), torch.float32))
    for causal in (False, True):
        out = ours(causal=causal)(q, k + 2, v)
        truth = ours(causal=causal)(q.double(), (k + 2).double(), v.double())
        assert (out.double() - truth).abs().max() < 2e-3 * truth.abs().max()


def test_a_million_tokens():
    x = inputs((1, 1, 1, 1 << 20, 1 << 20, 8, 8), torch.float32)
    for causal in (False, True):
        truth = ours(causal=causal)(*(t.double() for t in x))
        assert (ours(causal=causal)(*x) - truth).abs().max() < 1e-5 * truth.abs().max()


def test_many_heads():
    x = inputs((64, 64, 64, 20, 20, 8, 8), torch.float32)
    for causal in (False, True):
        out = ours(causal=causal)(*x)
        assert torch.equal(out[17:18, 5:6], ours(causal=causal)(*(t[17:18, 5:6] for t in x)))


@pytest.mark.isa
@pytest.mark.parametrize("heads", [1, 3, 8])
def test_same_bits_with_any_number_of_threads(heads):
    x = [t.requires_grad_() for t in inputs((1, heads, heads, 600, 600, 16, 16), torch.float32)]

    def run(causal):
        out = ours(causal=causal)(*x)
        return [out, *torch.autograd.grad(out.square().sum(), x)]

    for causal in (False, True):
        two = run(causal)
        torch.set_num_threads(1)
        try:
            one = run(causal)
        finally:
            torch.set_num_threads(2)
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(
    "shape", [(2, 2, 2, 0, 0, 4, 4), (0, 2, 2, 5, 5, 4, 4), (1, 2, 1, 5, 5, 4, 0)], ids=str
)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_empty(shape, causal):
    x = [t.requires_grad_() for t in inputs(shape, torch.float32)]
    out = ours(causal=causal)(*x)
    assert all((g == 0).all() for g in torch.autograd.grad(out.sum(), x))


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_opcheck_and_compile(causal):
    q, k, v = inputs((1, 4, 2, 12, 12, 8, 6), torch.float32)
    mask, cu = torch.rand(1, 12) < 0.7, torch.tensor([0, 5, 12], dtype=torch.int32)
    state = (torch.randn(2, 2, 8, 6), torch.rand(2, 2, 8))
    options = ("elu1", causal, True, 1e-6, mask, cu, *state)
    torch.library.opcheck(OPS.linear_forward.default, (q, k, v, *options, True))
    saved = OPS.linear_forward(q, k, v, *options, True)
    grads = (torch.randn_like(saved[0]), torch.randn_like(saved[2]), torch.randn_like(saved[3]))
    torch.library.opcheck(OPS.linear_backward.default, (*grads, q, k, v, *saved, *options))
    x = [t.requires_grad_() for t in (q, k, v)]
    compiled = torch.compile(ours(causal=causal), fullgraph=True, dynamic=True, backend="aot_eager")
    for expected, found in zip(
        torch.autograd.grad(ours(causal=causal)(*x).sum(), x),
        torch.autograd.grad(compiled(*x).sum(), x),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


WRONG = [
    ({"feature_map": "softmax"}, ValueError, "feature_map must be"),
    ({"eps": -1.0}, ValueError, "eps must be >= 0, got -1.0"),
    ({"key_mask": torch.ones(1, 8)}, TypeError, r"key_mask must be bool \(True = keep\), got float32"),
    (
        {"initial_state": torch.ones(1)},
        TypeError,
        r"initial_state must be a pair \(S, z\) or None, got Tensor",
    ),
    (
        {"initial_state": (torch.ones(1, 1, 4, 4), torch.ones(1, 1, 5))},
        ValueError,
        r"initial_state\[1\] must be \[B, Hkv, F\] = \[1, 1, 4\], got shape \[1, 1, 5\]",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG, ids=[m for _, _, m in WRONG])
def test_refused(options, error, message):
    x = inputs((1, 1, 1, 8, 8, 4, 4), torch.float32)
    with pytest.raises(error, match=message):
        attn.linear_attention(*x, **options)
    with pytest.raises(ValueError, match="causal needs q and k of the same number of tokens, got 8 and 9"):
        attn.linear_attention(*inputs((1, 1, 1, 8, 9, 4, 4), torch.float32), causal=True)
