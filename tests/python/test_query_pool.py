"""attn.query_pool against its float64 oracle, plain PyTorch and PyTorch's own attention."""

from itertools import pairwise

import pytest
import torch

import attn
from attn import reference
from attn.reference.query_pool import pooling_weights
from pool_oracle import DTYPES, NAN, check_equal, check_pool, randn, results, same_for_any_threads

OPS = torch.ops.attn
KINDS = {
    "keys": {},
    "queries": {"axis": "queries"},
    "relu_mean": {"activation": "relu_mean"},
}


def plain(q, k, v, *, scale=None, cu_seqlens=None, key_mask=None, activation="softmax", axis="keys"):
    """Explicit weights in the dtype of q, sequence after sequence."""
    batch, kv_heads, length, _ = k.shape
    group, scale = q.shape[1] // kv_heads, q.shape[-1] ** -0.5 if scale is None else scale
    bounds = [0, length] if cu_seqlens is None else cu_seqlens.tolist()
    pooled = []
    for n, (b, i, j) in enumerate((b, i, j) for b in range(batch) for i, j in pairwise(bounds)):
        keep = torch.ones(j - i, dtype=torch.bool) if key_mask is None else key_mask[b, i:j]
        keys, values = (x[b, :, i:j][:, keep].repeat_interleave(group, 0) for x in (k, v))
        queries = q[n if q.shape[0] > 1 else 0]
        if not keep.any():
            pooled.append(values.new_zeros(*queries.shape[:2], values.shape[-1]))
            continue
        pooled.append(pooling_weights(queries @ keys.mT * scale, activation, axis) @ values)
    return torch.stack(pooled)


def tensors(batch, heads, kv_heads, queries, keys, dim, dim_v, shared=True, sets=1, dtype=torch.float32):
    q = randn(sets if shared else batch, heads, queries, dim, dtype=dtype)
    k = randn(batch, kv_heads, keys, dim, seed=1, dtype=dtype)
    v = randn(batch, kv_heads, keys, dim_v, seed=2, dtype=dtype)
    return {"q": q, "k": k, "v": v}


def random_mask(batch, length):
    return torch.rand(batch, length, generator=torch.Generator().manual_seed(7)) < 0.7


CU = torch.tensor([0, 0, 1, 9, 40, 40], dtype=torch.int32)
#        batch, heads, kv heads, queries, keys, dim, dim_v, shared
CASES = {
    "one query": ((2, 3, 3, 1, 37, 16, 16), {}),
    "one query, per sequence": ((2, 2, 2, 1, 37, 16, 8, False), {"scale": 0.3}),
    "few": ((2, 4, 2, 5, 30, 12, 20), {"key_mask": random_mask(2, 30)}),
    "few packed": ((1, 2, 1, 3, 43, 16, 16, True, 5), {"cu_seqlens": CU}),
    "seeds": ((2, 2, 2, 12, 33, 16, 16), {}),
    "seeds, per sequence": ((2, 4, 2, 17, 40, 24, 10, False), {"key_mask": random_mask(2, 40)}),
    "seeds packed": ((1, 4, 2, 40, 43, 16, 12), {"cu_seqlens": CU, "key_mask": random_mask(1, 43)}),
    "packed, per sequence": ((1, 2, 2, 9, 43, 16, 16, True, 5), {"cu_seqlens": CU}),
    "latents": ((3, 2, 2, 70, 32, 64, 64), {}),
    "many keys": ((1, 2, 1, 33, 300, 32, 40), {}),
    "one dimension": ((2, 2, 2, 30, 20, 1, 1), {}),
}


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, kind, dtype):
    shape, options = CASES[case]
    inputs = tensors(*shape, dtype=dtype)
    check_pool(attn.query_pool, plain, reference.query_pool, inputs, {**options, **KINDS[kind]})


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("queries", [2, 20])
def test_long_sequences(queries, dtype):
    """Several splits of one sequence."""
    inputs = tensors(1, 1, 1, queries, 9000, 8, 8, dtype=dtype)
    for kind in KINDS.values():
        check_pool(attn.query_pool, plain, reference.query_pool, inputs, kind)


def test_is_scaled_dot_product_attention():
    inputs = tensors(2, 4, 4, 11, 29, 16, 16, shared=False)
    found = results(attn.query_pool, inputs, {})

    def sdpa(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    for name, x in results(sdpa, inputs, {}).items():
        torch.testing.assert_close(found[name], x, rtol=1e-4, atol=1e-5)


@pytest.mark.isa
@pytest.mark.parametrize("queries", [3, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_padded_batch_is_each_sequence_alone(kind, queries):
    lengths = [9, 0, 1, 150, 3]
    mask = torch.arange(150) < torch.tensor(lengths)[:, None]
    inputs = tensors(5, 2, 2, queries, 150, 16, 8)
    hole = ~mask[:, None, :, None]
    k, v = (inputs[n].masked_fill(hole, NAN) for n in ("k", "v"))
    q = inputs["q"].expand(5, -1, -1, -1)
    options = KINDS[kind]

    def run(q, k, v, **more):
        leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
        out = attn.query_pool(*leaves, **options, **more)
        return out, *torch.autograd.grad(out, leaves, torch.ones_like(out))

    out, dq, dk, dv = run(q, k, v, key_mask=mask)
    assert not any(x.isnan().any() for x in (out, dq, dk, dv))
    assert (out[1] == 0).all()
    assert (dq[1] == 0).all()
    cu = torch.nn.functional.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()
    packed = [x.transpose(1, 2)[mask].transpose(0, 1)[None] for x in (k, v)]
    p_out, p_dq, p_dk, p_dv = run(q, *packed, cu_seqlens=cu)
    assert torch.equal(out, p_out)
    assert torch.equal(dq, p_dq)
    for padded, together in ((dk, p_dk), (dv, p_dv)):
        assert torch.equal(padded.transpose(1, 2)[mask], together[0].transpose(0, 1))
        assert (padded.transpose(1, 2)[~mask] == 0).all()
    for n, length in enumerate(lengths):
        alone = run(q[n : n + 1], k[n : n + 1, :, :length], v[n : n + 1, :, :length])
        assert torch.equal(alone[0][0], out[n])
        assert torch.equal(alone[1][0], dq[n])
        assert torch.equal(alone[2][0], dk[n, :, :length])


def test_shared_queries_are_not_repeated():
    """A pooled batch whose repeated queries would take 64 MB allocates its result and little more."""
    q, k = torch.randn(1, 8, 64, 64), torch.randn(512, 8, 4, 64)
    repeated = 512 * q.numel() * 4
    leaves = [x.requires_grad_() for x in (q, k)]
    with torch.profiler.profile(profile_memory=True) as profile:
        out = attn.query_pool(leaves[0], leaves[1], leaves[1])
    allocated = sum(e.self_cpu_memory_usage for e in profile.key_averages() if e.self_cpu_memory_usage > 0)
    assert out.numel() * 4 == repeated
    assert allocated < 1.3 * repeated  # the result and lse; the queries would double it
    shared = attn.query_pool(q, k, k)
    assert torch.equal(shared, attn.query_pool(q.expand(512, -1, -1, -1), k, k))


def test_one_head_forms():
    q, k, v = randn(9, 16), randn(3, 20, 16, seed=1), randn(3, 20, 8, seed=2)
    whole = attn.query_pool(q[None, None], k[:, None], v[:, None])[:, 0]
    assert torch.equal(attn.query_pool(q, k, v), whole)
    cu = torch.tensor([0, 20, 40, 60], dtype=torch.int32)
    mask = random_mask(1, 60)
    packed = attn.query_pool(q, k.flatten(0, 1), v.flatten(0, 1), cu_seqlens=cu)
    assert torch.equal(packed, whole)
    masked = attn.query_pool(q, k.flatten(0, 1), v.flatten(0, 1), cu_seqlens=cu, key_mask=mask[0])
    assert torch.equal(masked, attn.query_pool(q, k, v, key_mask=mask.view(3, 20)))
    per_sequence = q.expand(3, -1, -1)
    assert torch.equal(attn.query_pool(per_sequence, k, v), whole)


def test_constant_keys_average():
    v = randn(2, 3, 10, 4)
    for queries in (1, 9):
        out = attn.query_pool(randn(1, 3, queries, 4), torch.ones(2, 3, 10, 4), v)
        torch.testing.assert_close(out, v.mean(2, keepdim=True).expand_as(out))


def test_large_logits():
    for queries in (1, 9):
        inputs = tensors(1, 2, 2, queries, 20, 8, 8)
        inputs["q"] = inputs["q"] * 1e4
        found = results(attn.query_pool, inputs, {})
        assert all(x.isfinite().all() for x in found.values())
        assert torch.equal(found["out"], plain(**inputs))


@pytest.mark.parametrize("queries", [3, 12])
def test_rows_past_the_last_sequence(queries):
    inputs = tensors(1, 2, 2, queries, 20, 8, 8)
    for name in ("k", "v"):
        inputs[name][:, :, 12:] = NAN
    found = results(attn.query_pool, inputs, {"cu_seqlens": torch.tensor([0, 7, 12], dtype=torch.int32)})
    assert not found["out"].isnan().any()
    assert (found["dk"][:, :, 12:] == 0).all()
    assert (found["dv"][:, :, 12:] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_small_shapes(kind):
    for shape in ((0, 2, 2, 3, 5, 4, 4), (2, 2, 2, 0, 5, 4, 4), (2, 2, 2, 9, 0, 4, 4), (1, 1, 1, 1, 1, 1, 0)):
        inputs = tensors(*shape)
        found = results(attn.query_pool, inputs, KINDS[kind])
        assert found["out"].shape == (shape[0], *inputs["q"].shape[1:3], shape[-1])
        assert not any(x.isnan().any() for x in found.values())


@pytest.mark.isa
@pytest.mark.parametrize("queries", [2, 20])
@pytest.mark.parametrize("kind", KINDS)
def test_deterministic_and_batch_invariant(kind, queries):
    inputs = tensors(6, 2, 1, queries, 600, 32, 32, dtype=torch.bfloat16)
    same_for_any_threads(lambda: results(attn.query_pool, inputs, KINDS[kind]))
    out = attn.query_pool(**inputs, **KINDS[kind])
    alone = attn.query_pool(inputs["q"], inputs["k"][4:5], inputs["v"][4:5], **KINDS[kind])
    assert torch.equal(alone[0], out[4])


@pytest.mark.parametrize("queries", [3, 12])
def test_strides(queries):
    fused = randn(2, 25, 2 * 3 * 16)
    k, v = (x.unflatten(-1, (3, 16)).transpose(1, 2) for x in fused.chunk(2, -1))
    inputs = {"q": randn(queries, 3, 16).transpose(0, 1)[None], "k": k, "v": v}
    check_equal(
        results(attn.query_pool, inputs, {}),
        results(attn.query_pool, {n: x.contiguous() for n, x in inputs.items()}, {}),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["few", "few packed", "seeds, per sequence", "seeds packed"])
def test_gradcheck(case, kind):
    shape, options = CASES[case]
    leaves = [x.requires_grad_() for x in tensors(*shape, dtype=torch.float64).values()]
    torch.autograd.gradcheck(lambda *x: attn.query_pool(*x, **options, **KINDS[kind]), leaves, fast_mode=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ["few", "seeds packed"])
def test_opcheck(case, dtype):
    quick = {"test_utils": ("test_schema", "test_faketensor")}
    shape, options = CASES[case]
    inputs = list(tensors(*shape, dtype=dtype).values())
    places = (options.get("cu_seqlens"), options["key_mask"])
    for n, kind in enumerate((("softmax", "keys"), ("softmax", "queries"), ("relu_mean", "keys"))):
        utils = {} if n == 0 and dtype == torch.float32 else quick
        torch.library.opcheck(OPS.query_pool_forward.default, (*inputs, 0.3, *places, *kind), **utils)
        out, lse = OPS.query_pool_forward(*inputs, 0.3, *places, *kind)
        for wanted in ([True] * 3, [False, True, False]):
            arguments = (torch.randn_like(out), *inputs, out, lse, wanted, 0.3, *places, *kind)
            torch.library.opcheck(OPS.query_pool_backward.default, arguments, **utils)


def test_compile():
    def pool(*x):
        return attn.query_pool(*x)

    compiled = torch.compile(pool, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (20, 13):
        leaves = [x.requires_grad_() for x in tensors(2, 2, 2, 9, length, 8, 8).values()]
        found, expected = compiled(*leaves), pool(*leaves)
        assert torch.equal(found, expected)
        gradients = [torch.autograd.grad(y.square().sum(), leaves) for y in (found, expected)]
        for a, b in zip(*gradients, strict=True):
            assert torch.equal(a, b)


WRONG = {
    "k must be": {"k": torch.randn(2, 2, 2, 3, 4)},
    r"q must be \[B, H, M, D\]": {"q": torch.randn(3, 8)},
    "k must have the dtype of q": {"k": torch.randn(2, 4, 10, 8).bfloat16()},
    r"v must be \[B, Hkv, L, Dv\]": {"v": torch.randn(2, 4, 11, 8)},
    "same head dimension": {"q": torch.randn(1, 4, 3, 6)},
    "multiple of the heads": {"q": torch.randn(1, 3, 3, 8)},
    "batch size of 1": {"q": torch.randn(3, 4, 3, 8)},
    "cu_seqlens needs a batch size of 1": {"cu_seqlens": torch.tensor([0, 10]).int()},
    "key_mask must be bool": {"key_mask": torch.ones(2, 10)},
    r"key_mask must be \[B, L\]": {"key_mask": torch.ones(2, 9, dtype=torch.bool)},
    "activation must be": {"activation": "sigmoid"},
    "axis must be": {"axis": "heads"},
    "axis must be 'keys'": {"activation": "relu_mean", "axis": "queries"},
    "scale must be": {"scale": float("nan")},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments(message):
    given = {**tensors(2, 4, 4, 3, 10, 8, 8), **WRONG[message]}
    with pytest.raises((TypeError, ValueError), match=message):
        attn.query_pool(given.pop("q"), given.pop("k"), given.pop("v"), **given)
