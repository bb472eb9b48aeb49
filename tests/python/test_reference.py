"""The oracles themselves: against PyTorch where it has the same function, against literal loops and
pseudo-code, and for the rules that no other implementation keeps (empty rows, no leak from what is hidden).
"""

import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given
from torch.nn.functional import scaled_dot_product_attention

from attn import patterns, reference
from attn.reference.hip import _tree_search
from attn.selection import PAD, HipSelection
from cases import CASES
from oracle import check_attention, plain_attention

INF = math.inf


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def qkv(b=2, h=4, hkv=2, tq=20, tk=30, d=8, dv=6, seed=0):
    return (
        normal(b, h, tq, d, seed=seed),
        normal(b, hkv, tk, d, seed=seed + 1),
        normal(b, hkv, tk, dv, seed=seed + 2),
    )


class TestAttention:
    def test_equals_scaled_dot_product_attention(self):
        q, k, v = qkv(tk=20)
        same = torch.testing.assert_close
        same(reference.attention(q, k, v), scaled_dot_product_attention(q, k, v, enable_gqa=True))
        causal = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        same(reference.attention(q, k, v, causal=True), causal)
        scaled = scaled_dot_product_attention(q, k, v, scale=0.7, enable_gqa=True)
        same(reference.attention(q, k, v, scale=0.7), scaled)
        weight = normal(2, 2, 20)
        bias = weight.repeat_interleave(2, 1)[:, :, None, :]
        biased = scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(2, 4, 20, 20), enable_gqa=True)
        same(reference.attention(q, k, v, key_log_weight=weight), biased)

    def test_equals_flex_attention(self):
        from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

        q, k, v = qkv(b=1, tq=64, tk=64)
        layout = patterns.sink_window(64, 64, window=(20, 0), sink_tokens=3, block_q=16, block_k=16)
        visible = layout.to_token_mask()[0, 0]
        mask = create_block_mask(
            lambda b, h, i, j: visible[i, j], None, None, 64, 64, device="cpu", BLOCK_SIZE=16
        )
        out, aux = flex_attention(
            q,
            k,
            v,
            score_mod=lambda s, b, h, i, j: 2.0 * torch.tanh(s / 2.0),
            block_mask=mask,
            enable_gqa=True,
            return_aux=AuxRequest(lse=True),
        )
        ours = reference.attention(q, k, v, layout=layout, softcap=2.0, return_lse=True)
        torch.testing.assert_close(ours[0], out)
        torch.testing.assert_close(ours[1].float(), aux.lse.float(), rtol=1e-5, atol=1e-5)

    def test_sink_is_one_more_key_without_value(self):
        q, k, v = qkv(h=2, hkv=2)
        sink = normal(2)
        out, lse = reference.attention(q, k, v, sink_logits=sink, return_lse=True)
        plain, plain_lse = reference.attention(q, k, v, return_lse=True)
        torch.testing.assert_close(lse, torch.logaddexp(plain_lse, sink[None, :, None]))
        torch.testing.assert_close(out, plain * torch.exp(plain_lse - lse)[..., None])
        # "Off by one": exp(s) / (1 + sum exp(s)).
        logits = q @ k.mT * 8**-0.5
        one = torch.exp(logits) / (1 + torch.exp(logits).sum(-1, keepdim=True))
        torch.testing.assert_close(reference.attention(q, k, v, sink_logits=torch.zeros(2)), one @ v)

    def test_a_weight_is_a_multiplicity(self):
        q, k, v = qkv()
        times = torch.randint(0, 4, (30,), generator=torch.Generator().manual_seed(0))
        repeated = (x.repeat_interleave(times, dim=2) for x in (k, v))
        weighted = reference.attention(q, k, v, key_log_weight=times.double().log(), return_lse=True)
        torch.testing.assert_close(weighted, reference.attention(q, *repeated, return_lse=True))

    def test_packing_is_a_loop_over_sequences(self):
        lengths_q, lengths_k = (5, 0, 9, 3), (4, 6, 0, 11)
        q, k, v = qkv(b=1, tq=sum(lengths_q), tk=sum(lengths_k))
        options = {"causal": True, "window": (3, 0), "sink_tokens": 2, "return_lse": True}
        cu = [torch.tensor([0, *itertools.accumulate(n)]).int() for n in (lengths_q, lengths_k)]
        out, lse = reference.attention(q, k, v, cu_seqlens_q=cu[0], cu_seqlens_k=cu[1], **options)
        for (q0, q1), (k0, k1) in zip(*(itertools.pairwise(x.tolist()) for x in cu), strict=True):
            alone = reference.attention(q[:, :, q0:q1], k[:, :, k0:k1], v[:, :, k0:k1], **options)
            torch.testing.assert_close((out[:, :, q0:q1], lse[:, :, q0:q1]), alone)

    def test_a_row_without_keys(self):
        q, k, v = (x.requires_grad_() for x in qkv(tq=40, tk=10))
        sink = normal(4).requires_grad_()
        for options, expected in (({}, torch.full((4,), -INF)), ({"sink_logits": sink}, sink.detach())):
            out, lse = reference.attention(q, k, v, causal=True, return_lse=True, **options)
            assert (out[:, :, :30] == 0).all()
            assert torch.equal(lse[:, :, :30], expected.double()[None, :, None].expand(2, 4, 30))
            gradients = torch.autograd.grad(out.sum() + lse[:, :, 30:].sum(), (q, k, v))
            assert all(g.isfinite().all() for g in gradients)
            assert (gradients[0][:, :, :30] == 0).all()
        out, lse = reference.attention(q, k[:, :, :0], v[:, :, :0], return_lse=True)
        assert (out == 0).all()
        assert (lse == -INF).all()

    @pytest.mark.parametrize("bad", [math.nan, INF, -INF])
    def test_what_is_hidden_does_not_leak(self, bad):
        q, k, v = qkv(tq=40, tk=20)
        clean = reference.attention(q, k, v, causal=True, return_lse=True)
        dirty_q, dirty_k, dirty_v = (x.clone() for x in (q, k, v))
        dirty_q[:, :, :20] = bad  # rows without keys
        dirty_k[:, :, 15:] = bad  # keys that only the last five rows see
        dirty_v[:, :, 15:] = bad
        out, lse = reference.attention(dirty_q, dirty_k, dirty_v, causal=True, return_lse=True)
        for x, expected in zip((out, lse), clean, strict=True):
            assert torch.equal(x[:, :, :35], expected[:, :, :35])
            assert x[:, :, 35:].isnan().all()

    @pytest.mark.parametrize("bad", [math.nan, INF, -INF])
    def test_what_is_hidden_does_not_leak_into_gradients(self, bad):
        padded = qkv(b=1, tq=40, tk=30)
        ends = (35, 20, 20)
        options = {"cu_seqlens_q": torch.tensor([0, 25, 35]), "cu_seqlens_k": torch.tensor([0, 10, 20])}

        def run(tensors):
            leaves = [x.clone().requires_grad_() for x in tensors]
            out = reference.attention(*leaves, **options, causal=True)
            return out, torch.autograd.grad(out[:, :, : ends[0]].square().sum(), leaves)

        out, gradients = run(x.clone()[:, :, :end] for x, end in zip(padded, ends, strict=True))
        for x, end in zip(padded, ends, strict=True):
            x[:, :, end:] = bad
        dirty_out, dirty_gradients = run(padded)
        torch.testing.assert_close(dirty_out[:, :, : ends[0]], out)
        assert (dirty_out[:, :, ends[0] :] == 0).all()
        for g, dirty, end in zip(gradients, dirty_gradients, ends, strict=True):
            torch.testing.assert_close(dirty[:, :, :end], g)
            assert (dirty[:, :, end:] == 0).all()

    def test_an_infinite_value_spoils_its_column_only(self):
        q, k, v = qkv()
        v = v.clone()
        v[:, :, 3, 2] = INF
        assert reference.attention(q, k, v).isnan().sum(dim=(0, 1, 2)).tolist() == [0, 0, 160, 0, 0, 0]

    def test_gradients(self):
        q, k, v = qkv(b=1, tq=6, tk=4, d=3, dv=2)
        weight, sink, gate = normal(1, 2, 4), normal(4), normal(1, 4, 6)
        weight[0, 0, 1] = -INF

        def f(q, k, v, weight, sink, gate):
            out, lse = reference.attention(
                q,
                k,
                v,
                causal=True,
                window=(2, 0),
                sink_tokens=1,
                softcap=1.5,
                key_log_weight=torch.cat(
                    [weight[..., :1], torch.full_like(weight[..., :1], -INF), weight[..., 2:]], -1
                ),
                sink_logits=sink,
                head_gate=gate,
                return_lse=True,
            )
            return out, lse

        leaves = [x.requires_grad_() for x in (q, k, v, normal(1, 2, 4), sink, gate)]
        assert torch.autograd.gradcheck(f, leaves)

    def test_inputs_of_any_dtype_give_float64(self):
        q, k, v = (x.bfloat16() for x in qkv())
        out, lse = reference.attention(q, k, v, return_lse=True)
        assert out.dtype == lse.dtype == torch.float64
        torch.testing.assert_close(
            out, reference.attention(q.double(), k.double(), v.double()), rtol=0, atol=0
        )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_yardstick_keeps_its_own_rule(case):
    """The plain implementation is within the tolerance of itself: the reference agrees on every case."""
    check_attention(plain_attention, case, torch.float32)


def test_plain_and_reference_agree_in_float64():
    for case in CASES:
        inputs = case.inputs(torch.float64)
        plain = plain_attention(inputs.q, inputs.k, inputs.v, **inputs.options)
        exact = reference.attention(inputs.q, inputs.k, inputs.v, **inputs.options, return_lse=True)
        torch.testing.assert_close(plain, exact, rtol=1e-9, atol=1e-9, msg=lambda m, id=case.id: f"{id}: {m}")


def test_cases_reach_what_they_are_for():
    by_id = {case.id: case for case in CASES}
    padded = by_id["padded"].inputs(torch.float32).q
    assert not padded.is_contiguous()
    assert padded.stride(-1) == 1
    assert by_id["bthd"].inputs(torch.float32).q.transpose(1, 2).is_contiguous()
    layout = by_id["tiles"].inputs(torch.float32).options["layout"]
    assert layout.partial_bits.shape[0] > 1
    assert layout.full_count.sum() > 0
    assert layout.density("blocks") < 1
    for id in ("causal_more_rows", "blocks_none", "blocks_64", "window_more_rows"):
        inputs = by_id[id].inputs(torch.float32)
        assert (
            reference.attention(inputs.q, inputs.k, inputs.v, **inputs.options, return_lse=True)[1]
            .isinf()
            .any()
        )
    gate = by_id["head_gate_sparse"].inputs(torch.float32).options["head_gate"]
    assert (gate[..., :64] == 0).all()


def visible(i, j, n, m, causal, window, sinks):
    """The definition, for row i of n and key j of m."""
    p = i + m - n
    left, right = (-1, -1) if window is None else window
    near = (left < 0 or j >= p - left) and (right < 0 or j <= p + right)
    return (near or j < sinks) and (not causal or j <= p)


SIDE = st.integers(-1, 12)


@given(
    st.integers(0, 24),
    st.integers(0, 24),
    st.booleans(),
    st.one_of(st.none(), st.tuples(SIDE, SIDE)),
    st.integers(0, 5),
)
@example(9, 4, True, (2, 0), 2)
def test_token_mask(n, m, causal, window, sinks):
    mask = reference.token_mask(n, m, causal=causal, window=window, sink_tokens=sinks)
    expected = [[visible(i, j, n, m, causal, window, sinks) for j in range(m)] for i in range(n)]
    assert torch.equal(mask[0, 0], torch.tensor(expected, dtype=torch.bool).reshape(n, m))


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=4),
    st.booleans(),
    st.one_of(st.none(), st.tuples(SIDE, SIDE)),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_token_mask_of_packed_sequences(lengths, causal, window, sinks, padding):
    n, m = (sum(x) for x in zip(*lengths, strict=True)) if lengths else (0, 0)
    cu = [torch.tensor([0, *itertools.accumulate(x[side] for x in lengths)]).int() for side in (0, 1)]
    mask = reference.token_mask(
        n + padding,
        m + padding,
        causal=causal,
        window=window,
        sink_tokens=sinks,
        cu_seqlens_q=cu[0],
        cu_seqlens_k=cu[1],
    )
    expected = torch.zeros(n + padding, m + padding, dtype=torch.bool)
    at_q = at_k = 0
    for rows, keys in lengths:
        for i, j in itertools.product(range(rows), range(keys)):
            expected[at_q + i, at_k + j] = visible(i, j, rows, keys, causal, window, sinks)
        at_q, at_k = at_q + rows, at_k + keys
    assert torch.equal(mask[0, 0], expected)


def test_token_mask_of_segments_and_layouts():
    q_ids, k_ids = torch.tensor([[0, 0, 1], [2, 2, 2]]), torch.tensor([[1, 0], [2, 0]])
    mask = reference.token_mask(3, 2, segment_ids=(q_ids, k_ids))
    assert mask[:, 0].tolist() == [[[False, True]] * 2 + [[True, False]], [[True, False]] * 3]
    layout = patterns.sliding_window(40, 40, window=5)
    both = reference.token_mask(40, 40, layout=layout, causal=True)
    assert torch.equal(both, layout.to_token_mask().tril())


class TestMergeStates:
    def test_of_any_split_is_the_whole(self):
        leaves = [x.requires_grad_() for x in qkv(tk=30)]
        q, k, v = leaves
        whole = reference.attention(q, k, v, return_lse=True)
        bounds = [0, 7, 7, 20, 30]
        parts = [
            reference.attention(q, k[:, :, a:b], v[:, :, a:b], return_lse=True)
            for a, b in itertools.pairwise(bounds)
        ]
        merged = reference.merge_states(*zip(*parts, strict=True))
        torch.testing.assert_close(merged, whole)
        dout, dlse = normal(*whole[0].shape), normal(*whole[1].shape)
        expected = torch.autograd.grad(whole, leaves, (dout, dlse))
        torch.testing.assert_close(torch.autograd.grad(merged, leaves, (dout, dlse)), expected)

    def test_states_without_keys(self):
        outs = torch.full((2, 3, 4), math.nan)
        lses = torch.tensor([[-INF, 1.0, -INF], [-INF, -INF, 2.0]])
        outs[0, 1] = outs[1, 2] = 5.0
        out, lse = reference.merge_states(outs, lses)
        assert out.tolist() == [[0.0] * 4, [5.0] * 4, [5.0] * 4]
        assert lse.tolist() == [-INF, 1.0, 2.0]


class TestDecode:
    LENGTHS = torch.tensor([40, 7, 2])

    def caches(self):
        k, v = normal(3, 2, 48, 8), normal(3, 2, 48, 6, seed=1)
        for b, n in enumerate(self.LENGTHS.tolist()):
            k[b, :, n:] = v[b, :, n:] = math.nan
        return k, v

    @pytest.mark.parametrize(
        "options", [{}, {"window": (5, 0), "sink_tokens": 2}, {"scale": 0.1}, {"layout": True}]
    )
    def test_is_causal_attention_of_the_last_rows(self, options):
        q, (k, v) = normal(3, 4, 2, 8, seed=2), self.caches()
        call = dict(options)
        if "layout" in options:
            call["layout"] = patterns.strided(
                2, 48, num_heads=4, block_size=16, local_blocks=1, vert_stride=2
            )
        out, lse = reference.decode_attention(q, k, v, seqlens=self.LENGTHS, **call, return_lse=True)
        for b, n in enumerate(self.LENGTHS.tolist()):
            flags = {name: options[name] for name in ("window", "sink_tokens") if name in options}
            mask = reference.token_mask(2, n, causal=True, **flags)
            if "layout" in options:
                mask = mask & call["layout"].to_token_mask()[..., :n]
            alone = reference.masked_attention(
                q[b : b + 1], k[b : b + 1, :, :n], v[b : b + 1, :, :n], mask, scale=options.get("scale")
            )
            torch.testing.assert_close((out[b : b + 1], lse[b : b + 1]), alone)

    def test_pages_are_a_permutation_of_the_cache(self):
        q, (k, v) = normal(3, 4, 2, 8, seed=2), self.caches()
        page = 16
        order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
        pool_k, pool_v = (x.unflatten(2, (3, page)).transpose(1, 2).flatten(0, 1) for x in (k, v))
        table = torch.empty(9, dtype=torch.int32)
        table[order] = torch.arange(9, dtype=torch.int32)
        weight = normal(48)
        paged = reference.decode_attention(
            q,
            pool_k[order],
            pool_v[order],
            seqlens=self.LENGTHS,
            block_table=table.reshape(3, 3),
            key_log_weight=weight,
        )
        flat = reference.decode_attention(q, k, v, seqlens=self.LENGTHS, key_log_weight=weight)
        torch.testing.assert_close(paged, flat)
        assert paged.isfinite().all()

    def test_an_empty_cache(self):
        q = normal(1, 2, 1, 4)
        out = reference.decode_attention(q, normal(1, 2, 8, 4), normal(1, 2, 8, 4), seqlens=torch.tensor([0]))
        assert (out == 0).all()


def literal_search(score, n, m, representative):
    """Appendix A1 of the reference with its floats, one node at a time."""
    start = [int(n / m * i) for i in range(m)]
    nodes = [(s, int(n / m * (i + 1)) - s) for i, s in enumerate(start)]
    gap = n / m
    while gap > 1:
        scored = []
        for first, size in nodes:
            half = int(first + 0.5 * size)
            for child in ((first, half - first), (half, first + size - half)):
                at = child[0] + child[1] // 2 if representative == "center" else child[0]
                scored.append((score[at] if child[1] >= 1 else -INF, child))
        scored.sort(key=lambda x: (-x[0], x[1][0]))
        nodes = [child for _, child in scored[:m]]
        gap /= 2
    return sorted(first for first, _ in nodes)


HIP = {"mask_k": 16, "block_size_q": 8, "block_size_k": 2, "sliding_window": 6, "sink_tokens": 3}


class TestHip:
    @given(st.integers(1, 6), st.integers(0, 200), st.integers(0, 1000), st.sampled_from(["center", "first"]))
    def test_search_follows_the_pseudo_code(self, power, extra, seed, representative):
        m = 2**power  # n / m is exact in floating point
        n = m + 1 + extra
        g = torch.Generator().manual_seed(seed)
        score = torch.randint(0, 50, (n,), generator=g).float().tolist()  # with ties
        chosen = _tree_search(score, n, m, representative)
        assert chosen == literal_search(score, n, m, representative)
        assert len(set(chosen)) == m
        assert all(0 <= c < n for c in chosen)

    @given(st.integers(1, 9), st.integers(1, 60))
    def test_every_block_can_be_chosen(self, m, extra):
        """A block towards which all scores rise is found: no block is out of the search's reach."""
        n = m + extra
        for block in range(n):
            near = [-abs(i - block) for i in range(n)]
            assert block in _tree_search(near, n, m, "first") or m == 1

    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize("reduce_heads", ["none", "group", "all"])
    @pytest.mark.parametrize(("tq", "tk"), [(50, 50), (13, 70), (70, 13), (1, 64)])
    def test_selection_is_well_formed(self, tq, tk, reduce_heads, causal):
        q, k, _ = qkv(tq=tq, tk=tk)
        chosen = reference.hip_select(q, k, causal=causal, reduce_heads=reduce_heads, **HIP)
        index, count = chosen.index, chosen.count
        heads, blocks = {"none": 4, "group": 2, "all": 1}[reduce_heads], -(-tq // 8)
        assert index.shape == (2, heads, blocks, 8)
        assert count.shape == (2, heads, blocks)
        assert index.dtype == count.dtype == torch.int32
        for block in range(blocks):
            last = min((block + 1) * 8, tq) - 1
            vis = min(max(last + 1 + tk - tq, 0), tk) if causal else tk
            candidates = max(0, vis - 6)
            expected = -(-candidates // 2) if candidates <= 16 else 8
            assert (count[:, :, block] == expected).all()
            used = index[:, :, block, :expected]
            assert (used % 2 == 0).all()
            assert (used < candidates).all()
            assert (used.diff() > 0).all()
            assert (index[:, :, block, expected:] == PAD).all()

    def test_reduced_heads_share_the_best_score(self):
        """With equal queries in all heads of a group the reduced search is the search of each."""
        q, k, _ = qkv(b=1, tq=40, tk=60)
        q = q[:, ::2].repeat_interleave(2, dim=1)
        alone = reference.hip_select(q, k, **HIP)
        group = reference.hip_select(q, k, reduce_heads="group", **HIP)
        assert torch.equal(group.index, alone.index[:, ::2])
        same = q[:, :1].expand_as(q)
        one_k = k[:, :1].expand_as(k)
        everyone = reference.hip_select(same, one_k, reduce_heads="all", **HIP)
        assert torch.equal(everyone.index, reference.hip_select(same, one_k, **HIP).index[:, :1])

    @pytest.mark.parametrize("representative", ["center", "first"])
    def test_a_needle_among_smooth_keys_is_found(self, representative):
        """Similarity to the query falls off with the distance to the needle: a tree can follow that."""
        position = torch.arange(512.0)
        for needle in (3, 100, 255, 256, 430):
            k = torch.stack([-(position - needle).abs(), torch.zeros(512)], -1)[None, None]
            q = torch.tensor([1.0, 0.0]).expand(1, 1, 8, 2)
            index = reference.hip_select(q, k, representative=representative, **HIP).index
            assert needle // 2 * 2 in index.flatten().tolist()

    def test_only_sampled_rows_vote(self):
        """stride 2 samples rows 1, 3, ... of a block; a block that has none of them uses its last row."""
        k = torch.zeros(1, 1, 100, 2)
        k[0, 0, 40], k[0, 0, 41], k[0, 0, 20] = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        options = {**HIP, "mask_k": 2, "block_size_k": 1, "representative": "first"}
        q = torch.zeros(1, 1, 4, 2)
        q[..., 0] = 1.0
        first = reference.hip_select(q, k, **options).index
        q[0, 0, 0] = q[0, 0, 2] = torch.tensor([0.0, 9.0])
        assert torch.equal(reference.hip_select(q, k, **options).index, first)
        lone = reference.hip_select(q[:, :, :1], k, **options)
        again = reference.hip_select(torch.cat([q[:, :, :1]] * 2, 2), k, **options)
        assert lone.count.item() == again.count.item() == 2

    def test_short_sequences_are_dense(self):
        q, k, v = qkv(tq=24, tk=24)
        for causal in (True, False):
            options = {**HIP, "mask_k": 64, "causal": causal}
            expected = reference.attention(q, k, v, causal=causal)
            torch.testing.assert_close(reference.hip_attention(q, k, v, **options), expected)

    def test_mask_counts_every_key_once(self):
        index = torch.tensor([[[[2, 2, 3, 8, PAD], [PAD] * 5]]], dtype=torch.int32)
        count = torch.tensor([[[4, 0]]], dtype=torch.int32)
        mask = reference.hip_token_mask(
            index, count, 8, 12, num_heads=2, block_size_q=4, block_size_k=2, sliding_window=2, sink_tokens=1
        )
        rows = [
            "x.xxx.......",  # p = 4: sink 0, listed 2 3 (4), window 3 4
            "x.xxxx......",
            "x.xxxxx.....",
            "x.xxx.xx....",
            "x......xx...",
            "x.......xx..",
            "x........xx.",
            "x.........xx",
        ]
        expected = torch.tensor([[c == "x" for c in row] for row in rows])
        assert torch.equal(mask, expected.expand(1, 2, 8, 12))

    def test_attention_and_its_gradients(self):
        q, k, v = (x.requires_grad_() for x in qkv(b=1, tq=40, tk=60))
        out, lse, selection = reference.hip_attention(q, k, v, **HIP, return_lse=True, return_selection=True)
        mask = reference.hip_token_mask(
            selection.index,
            selection.count,
            40,
            60,
            num_heads=4,
            block_size_q=8,
            block_size_k=2,
            sliding_window=6,
            sink_tokens=3,
        )
        torch.testing.assert_close((out, lse), reference.masked_attention(q, k, v, mask))
        again = reference.hip_attention(q, k, v, **HIP, selection=selection)
        torch.testing.assert_close(again, out)
        assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), (q, k, v)))
        assert isinstance(selection, HipSelection)

    def test_the_search_ignores_the_future(self):
        """Keys after a block's last row change nothing for it."""
        q, k, _ = qkv(tq=64, tk=64)
        changed = k.clone()
        changed[:, :, 40:] = 100.0
        before, after = (reference.hip_select(q, x, **HIP) for x in (k, changed))
        assert torch.equal(before.index[:, :, :5], after.index[:, :, :5])


class TestS2:
    def test_heads_together_see_everything(self):
        mask = reference.s2_token_mask(
            100, 130, num_heads=4, num_kv_heads=4, block_size=16, local_blocks=1, vert_stride=4
        )
        assert torch.equal(mask.any(1)[0], reference.token_mask(100, 130, causal=True)[0, 0])

    def test_stride_one_is_dense(self):
        q, k, v = qkv(tq=50, tk=70)
        out = reference.s2_attention(q, k, v, vert_stride=1, block_size=16, local_blocks=1)
        torch.testing.assert_close(out, reference.attention(q, k, v, causal=True))

    def test_groups_share_the_pattern_of_their_kv_head(self):
        mask = reference.s2_token_mask(
            200, 200, num_heads=6, num_kv_heads=3, block_size=16, local_blocks=1, vert_stride=3, head_step=1
        )
        assert torch.equal(mask[:, ::2], mask[:, 1::2])
        assert not torch.equal(mask[:, 0], mask[:, 2])

    def test_dense_and_homogeneous_heads(self):
        options = {"num_heads": 4, "num_kv_heads": 4, "block_size": 16, "local_blocks": 1, "vert_stride": 4}
        causal = reference.token_mask(150, 150, causal=True)[0, 0]
        mask = reference.s2_token_mask(150, 150, dense_heads=2, **options)
        assert [torch.equal(m, causal) for m in mask[0]] == [False, False, True, True]
        same = reference.s2_token_mask(150, 150, homogeneous=True, **options)
        assert torch.equal(same, same[:, :1].expand_as(same))

    def test_offset_moves_the_stripes(self):
        options = {"num_kv_heads": 1, "block_size": 16, "local_blocks": 1, "vert_stride": 4}
        phi = reference.s2_token_mask(160, 160, num_heads=1, head_offset=1, **options)
        columns = phi[0, 0, -1].unflatten(0, (10, 16)).all(1).nonzero().flatten().tolist()
        assert columns == [3, 7, 9]  # (j + 1) % 4 == 0, and the row's own block

    def test_bidirectional_is_symmetric(self):
        mask = reference.s2_token_mask(
            160, 160, num_heads=2, num_kv_heads=2, block_size=16, local_blocks=2, vert_stride=3, causal=False
        )
        assert torch.equal(mask, mask.mT)
        first = mask[0, 0, 0].unflatten(0, (10, 16)).all(1).nonzero().flatten().tolist()
        assert first == [0, 1, 4, 7]  # distances past the two local blocks: 3 and 6
