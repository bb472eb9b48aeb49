"""Every pattern against its boolean oracle, token by token, and the structure that makes it cheap."""

import time
from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as limits

from attn import patterns
from attn.layout import BlockLayout
from attn.reference import layout_mask
from attn.reference import patterns as oracle

BLOCKS = st.sampled_from([16, 32, 48, 64, 128])
LENGTHS = st.integers(0, 200)
SIDES = st.integers(-1, 90)
WINDOWS = st.one_of(SIDES, st.tuples(SIDES, SIDES))
FEW = limits(max_examples=25)


def check(layout, expected, block_q, block_k):
    expected = expected.reshape((1,) * (4 - expected.dim()) + tuple(expected.shape))
    assert layout.shape == tuple(expected.shape)
    assert (layout.block_q, layout.block_k) == (block_q, block_k)
    assert torch.equal(layout.to_token_mask(), expected)
    assert layout == BlockLayout.from_token_mask(expected, block_q, block_k)
    # Canonical: no empty, no whole and no repeated tile, nothing that the constructor would refuse.
    again = BlockLayout(
        layout.kv_count,
        layout.kv_index,
        full_count=layout.full_count,
        full_index=layout.full_index,
        partial_slot=layout.partial_slot,
        partial_bits=layout.partial_bits,
        **layout._grid().sizes,
    )
    assert again.kv_count is layout.kv_count
    if layout.partial_bits is not None:
        assert layout.partial_bits.unique(dim=0).shape == layout.partial_bits.shape
        used = torch.arange(layout.kv_index.shape[-1]) < layout.kv_count[..., None]
        assert (layout.partial_slot[used] >= 0).all()
    assert layout.density(of="blocks") == pytest.approx(_touched(expected, block_q, block_k))


def _touched(mask, block_q, block_k):
    rows, cols = -(-mask.shape[2] // block_q), -(-mask.shape[3] // block_k)
    padded = torch.zeros(mask.shape[0], mask.shape[1], rows * block_q, cols * block_k, dtype=torch.bool)
    padded[:, :, : mask.shape[2], : mask.shape[3]] = mask
    blocks = padded.unflatten(3, (cols, block_k)).unflatten(2, (rows, block_q)).any(5).any(3)
    return blocks.float().mean().item() if blocks.numel() else 0.0


def test_every_pattern_has_an_oracle():
    drawn, about_layouts = {"bigbird"}, {"covers", "kv_efficient", "union_over_heads"}
    without = {name for name in patterns.__all__ if not hasattr(oracle, name)}
    assert without == drawn | about_layouts


@st.composite
def packed(draw):
    lengths = draw(st.lists(st.one_of(st.just(0), st.integers(0, 90)), max_size=5))
    return [0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()]


@FEW
@given(LENGTHS, LENGTHS, WINDOWS, st.booleans(), BLOCKS, BLOCKS)
@example(150, 150, (-1, -1), False, 64, 64)
@example(150, 150, -1, True, 64, 32)
@example(150, 70, 20, True, 16, 64)
def test_sliding_window(q_len, kv_len, window, causal, block_q, block_k):
    layout = patterns.sliding_window(
        q_len, kv_len, window=window, causal=causal, block_q=block_q, block_k=block_k
    )
    check(layout, oracle.sliding_window(q_len, kv_len, window=window, causal=causal), block_q, block_k)


@FEW
@given(LENGTHS, LENGTHS, WINDOWS, st.integers(0, 90), st.booleans(), BLOCKS, BLOCKS)
def test_sink_window(q_len, kv_len, window, sink_tokens, causal, block_q, block_k):
    options = {"window": window, "sink_tokens": sink_tokens, "causal": causal}
    layout = patterns.sink_window(q_len, kv_len, **options, block_q=block_q, block_k=block_k)
    check(layout, oracle.sink_window(q_len, kv_len, **options), block_q, block_k)


@FEW
@given(LENGTHS, LENGTHS, WINDOWS, st.integers(0, 90), st.booleans(), BLOCKS, BLOCKS)
@example(100, 40, 5, 10, True, 16, 16)
@example(100, 40, 5, 10, False, 16, 16)
def test_global_window(q_len, kv_len, window, global_tokens, causal, block_q, block_k):
    options = {"window": window, "global_tokens": global_tokens, "causal": causal}
    layout = patterns.global_window(q_len, kv_len, **options, block_q=block_q, block_k=block_k)
    check(layout, oracle.global_window(q_len, kv_len, **options), block_q, block_k)


@FEW
@given(packed(), st.booleans(), BLOCKS, BLOCKS)
@example([0], True, 16, 16)
@example([0, 0, 0], True, 16, 16)
def test_document(cu_seqlens, causal, block_q, block_k):
    layout = patterns.document(cu_seqlens, causal=causal, block_q=block_q, block_k=block_k)
    check(layout, oracle.document(cu_seqlens, causal=causal), block_q, block_k)


@FEW
@given(packed(), st.randoms(use_true_random=False), BLOCKS, BLOCKS)
def test_prefix_lm(cu_seqlens, random, block_q, block_k):
    prefixes = [random.randint(0, end - start) for start, end in pairwise(cu_seqlens)]
    layout = patterns.prefix_lm(cu_seqlens, prefix_lengths=prefixes, block_q=block_q, block_k=block_k)
    check(layout, oracle.prefix_lm(cu_seqlens, prefix_lengths=prefixes), block_q, block_k)


@FEW
@given(packed(), st.integers(1, 70), BLOCKS, BLOCKS)
def test_block_causal_document(cu_seqlens, block_size, block_q, block_k):
    layout = patterns.block_causal_document(
        cu_seqlens, block_size=block_size, block_q=block_q, block_k=block_k
    )
    check(layout, oracle.block_causal_document(cu_seqlens, block_size=block_size), block_q, block_k)


@FEW
@given(packed(), BLOCKS, BLOCKS)
@example([0, 0, 30, 50], 16, 16)
def test_shared_question(cu_seqlens, block_q, block_k):
    layout = patterns.shared_question(cu_seqlens, block_q=block_q, block_k=block_k)
    check(layout, oracle.shared_question(cu_seqlens), block_q, block_k)


@FEW
@given(packed(), BLOCKS, BLOCKS)
@example([0, 30, 50, 50], 16, 16)
def test_causal_blockwise(cu_seqlens, block_q, block_k):
    layout = patterns.causal_blockwise(cu_seqlens, block_q=block_q, block_k=block_k)
    check(layout, oracle.causal_blockwise(cu_seqlens), block_q, block_k)


@FEW
@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 8), st.integers(0, 9), BLOCKS, BLOCKS)
def test_halo_raster(height, width, block, halo, block_q, block_k):
    layout = patterns.halo_2d(height, width, block=block, halo=halo, block_q=block_q, block_k=block_k)
    check(layout, oracle.halo_2d(height, width, block=block, halo=halo), block_q, block_k)


@FEW
@given(st.integers(0, 4), st.integers(0, 4), st.integers(1, 6), st.integers(0, 9), BLOCKS, BLOCKS)
def test_halo_block_order(squares_y, squares_x, block, halo, block_q, block_k):
    height, width = squares_y * block, squares_x * block
    options = {"block": block, "halo": halo, "order": "block"}
    layout = patterns.halo_2d(height, width, **options, block_q=block_q, block_k=block_k)
    check(layout, oracle.halo_2d(height, width, **options), block_q, block_k)


@st.composite
def s2_options(draw):
    groups = draw(st.integers(1, 2))
    kv_heads = draw(st.integers(1, 4))
    causal = draw(st.booleans())
    q_len = draw(LENGTHS)
    local = st.integers(1, 5)
    options = {
        "num_heads": groups * kv_heads,
        "num_kv_heads": kv_heads,
        "block_size": draw(st.sampled_from([16, 32, 48, 64])),
        "local_blocks": draw(local if causal else st.one_of(local, st.tuples(local, local))),
        "vert_stride": draw(st.integers(1, 5)),
        "head_offset": draw(st.integers(-2, 3)),
        "head_step": draw(st.one_of(st.none(), st.integers(0, 4))),
        "dense_heads": draw(st.integers(0, kv_heads)),
        "homogeneous": draw(st.booleans()),
        "causal": causal,
    }
    return q_len, draw(LENGTHS) if causal else q_len, options


@limits(max_examples=80)
@given(s2_options(), BLOCKS, BLOCKS)
def test_strided(sizes, block_q, block_k):
    q_len, kv_len, options = sizes
    layout = patterns.strided(q_len, kv_len, **options, block_q=block_q, block_k=block_k)
    expected = oracle.strided(q_len, kv_len, **options)
    if layout.heads == 1:
        assert (expected == expected[:, :1]).all()
        expected = expected[:, :1]
    check(layout, expected, block_q, block_k)


def test_strided_by_hand():
    """v = 4, L = 2, four heads of step 1, eight blocks: the pattern of the paper's figure, written out."""
    layout = patterns.strided(
        128, 128, num_heads=4, block_size=16, local_blocks=2, vert_stride=4, block_q=16, block_k=16
    )
    heads = [
        "x....... xx...... xxx..... x.xx.... x..xx... x...xx.. x...xxx. x...x.xx",
        "x....... xx...... .xx..... ..xx.... ...xx... ...xxx.. ...x.xx. ...x..xx",
        "x....... xx...... .xx..... ..xx.... ..xxx... ..x.xx.. ..x..xx. ..x...xx",
        "x....... xx...... .xx..... .xxx.... .x.xx... .x..xx.. .x...xx. .x...xxx",
    ]
    kept = torch.tensor([[[c == "x" for c in row] for row in head.split()] for head in heads])
    assert torch.equal((layout.to_block_state() != -2)[0], kept)


@FEW
@given(
    st.integers(0, 300),
    st.integers(0, 300),
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(0, 4),
    BLOCKS,
    BLOCKS,
)
def test_bigbird(q_len, kv_len, window, global_tokens, random_blocks, block_q, block_k):
    def make():
        return patterns.bigbird(
            q_len,
            kv_len,
            window=window,
            global_tokens=global_tokens,
            random_blocks=random_blocks,
            generator=torch.Generator().manual_seed(3),
            block_q=block_q,
            block_k=block_k,
        )

    layout = make()
    assert layout == make()
    base = oracle.global_window(q_len, kv_len, window=window, global_tokens=global_tokens)
    kept = layout.to_token_mask()[0, 0]
    assert (kept | ~base).all(), "the window and the global tokens are kept"
    # Beyond them, whole blocks: for every query block random_blocks of those the base leaves open, or all.
    for i in range(layout.num_q_blocks):
        rows = slice(i * block_q, (i + 1) * block_q)
        blocks = [slice(j * block_k, (j + 1) * block_k) for j in range(layout.num_kv_blocks)]
        open_before = [b for b in blocks if not base[rows, b].all()]
        filled = [b for b in open_before if kept[rows, b].all()]
        assert len(filled) == min(random_blocks, len(open_before))
        for b in blocks:
            if b not in filled:
                assert torch.equal(kept[rows, b], base[rows, b])


def test_bigbird_draws_differ_between_rows_and_seeds():
    a, b = (
        patterns.bigbird(
            4096, 4096, window=0, global_tokens=0, random_blocks=2, generator=torch.Generator().manual_seed(s)
        )
        for s in (0, 1)
    )
    assert a != b
    assert a.full_index[0, 0].unique(dim=0).shape[0] > 32


class TestKvEfficiency:
    @pytest.mark.parametrize("options", [{}, {"head_offset": 1}, {"dense_heads": 2}, {"homogeneous": True}])
    def test_causal_strided(self, options):
        assert patterns.kv_efficient(
            patterns.strided(2000, 2000, num_heads=8, block_size=64, local_blocks=3, vert_stride=4, **options)
        )

    def test_relative_strides_are_not(self):
        mask = oracle.strided(
            1024, 1024, num_heads=1, block_size=64, local_blocks=2, vert_stride=3, causal=False
        )
        causal_half = BlockLayout.from_token_mask(mask.tril())
        assert not patterns.kv_efficient(causal_half)

    def test_windows_are(self):
        assert patterns.kv_efficient(patterns.sliding_window(1000, 1000, window=(130, 0)))
        assert patterns.kv_efficient(patterns.sink_window(1000, 1000, window=130, sink_tokens=64))
        assert patterns.kv_efficient(patterns.document([0, 100, 128, 700], block_k=32))

    def test_against_the_definition(self, generator):
        for q_len, kv_len, block_q, block_k in ((256, 256, 32, 32), (64, 300, 16, 48), (300, 64, 48, 16)):
            for _ in range(30):
                rows, cols = -(-q_len // block_q), -(-kv_len // block_k)
                mask = torch.rand(2, rows, cols, generator=generator) < 0.93
                layout = BlockLayout.from_mask(
                    mask, block_q=block_q, block_k=block_k, q_len=q_len, kv_len=kv_len
                )
                lasting = True
                for j in range(cols):
                    end = min((j + 1) * block_k, kv_len)
                    after = [i for i in range(rows) if i * block_q + kv_len - q_len >= end]
                    for i, following in pairwise(after):
                        lasting &= bool((mask[:, i, j] | ~mask[:, following, j]).all())
                assert patterns.kv_efficient(layout) == lasting

    def test_coverage(self):
        def heads(n, **options):
            return patterns.strided(1000, 1000, num_heads=n, local_blocks=1, vert_stride=8, **options)

        assert patterns.covers(heads(8))
        assert not patterns.covers(heads(7, head_step=1))
        assert not patterns.covers(heads(8, head_step=2))  # shifts 0, 2, 4, 6 only
        assert patterns.covers(heads(4, head_step=2) | heads(4, head_step=2, head_offset=1))
        assert patterns.covers(heads(2, dense_heads=1))
        assert not patterns.covers(heads(8), causal=False)
        assert patterns.covers(patterns.sliding_window(100, 130, window=-1), causal=False)

    def test_union_over_heads(self, generator):
        mask = torch.rand(2, 3, 100, 90, generator=generator) < 0.1
        layout = BlockLayout.from_token_mask(mask, 32, 16)
        assert torch.equal(patterns.union_over_heads(layout).to_token_mask(), mask.any(1, keepdim=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: patterns.sliding_window(9, 9, window=(-2, 0)), "window must be an int >= -1"),
        (
            lambda: patterns.sliding_window(9, 9, window=1, block_q=10),
            "block_q must be a positive multiple of 16, got 10",
        ),
        (
            lambda: patterns.sink_window(9, 9, window=1, sink_tokens=-1),
            "sink_tokens must be an int >= 0, got -1",
        ),
        (
            lambda: patterns.global_window(9, 9, window=1, global_tokens=2.5),
            "global_tokens must be an int >= 0, got 2.5",
        ),
        (
            lambda: patterns.bigbird(9, 9, window=1, global_tokens=1, random_blocks=-1),
            "random_blocks must be an int >= 0",
        ),
        (lambda: patterns.document([1, 2]), r"cu_seqlens must start at 0 and never fall, got \[1, 2\]"),
        (lambda: patterns.document([0, 5, 3]), r"cu_seqlens must start at 0 and never fall, got \[0, 5, 3\]"),
        (lambda: patterns.document([]), "cu_seqlens must "),
        (
            lambda: patterns.document([0.0, 4.0]),
            "cu_seqlens must be a one-dimensional list of integers, got torch.float32",
        ),
        (
            lambda: patterns.prefix_lm([0, 5], prefix_lengths=[6]),
            r"prefix_lengths\[0\] must be in \[0, 5\] .* got 6",
        ),
        (lambda: patterns.prefix_lm([0, 5], prefix_lengths=[1, 1]), r"one number per document \(1\), got 2"),
        (
            lambda: patterns.block_causal_document([0, 5], block_size=0),
            "block_size must be a positive int, got 0",
        ),
        (lambda: patterns.halo_2d(8, 8, block=0, halo=1), "block must be an int >= 1, got 0"),
        (
            lambda: patterns.halo_2d(8, 8, block=4, halo=1, order="z"),
            'order must be "raster" or "block", got \'z\'',
        ),
        (lambda: patterns.halo_2d(8, 9, block=4, halo=1, order="block"), "divisible by block=4, got 8 x 9"),
        (lambda: patterns.strided(9, 9, num_heads=0), "num_heads must be an int >= 1, got 0"),
        (
            lambda: patterns.strided(9, 9, num_heads=4, num_kv_heads=3),
            "multiple of num_kv_heads, got 4 and 3",
        ),
        (
            lambda: patterns.strided(9, 9, num_heads=4, block_size=24),
            "block_size must be a positive multiple of 16, got 24",
        ),
        (
            lambda: patterns.strided(9, 9, num_heads=4, dense_heads=5),
            "dense_heads must be at most num_kv_heads = 4, got 5",
        ),
        (
            lambda: patterns.strided(9, 8, num_heads=4, causal=False),
            "causal=False needs q_len == kv_len, got 9 and 8",
        ),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_documents_take_tensors_and_their_device():
    cu_seqlens = torch.tensor([0, 70, 100], dtype=torch.int32)
    assert patterns.document(cu_seqlens) == patterns.document([0, 70, 100])
    assert patterns.document(cu_seqlens, device="meta").device.type == "meta"
    assert patterns.sliding_window(64, 64, window=3, device="meta").device.type == "meta"


LONG = 131072


@pytest.mark.parametrize(
    "make",
    [
        lambda: patterns.sliding_window(LONG, LONG, window=(1024, 0)),
        lambda: patterns.sink_window(LONG, LONG, window=1024, sink_tokens=128),
        lambda: patterns.global_window(LONG, LONG, window=512, global_tokens=64),
        lambda: patterns.document(torch.arange(0, LONG + 1, 999).tolist() + [LONG]),
        lambda: patterns.block_causal_document([0, LONG // 3, LONG], block_size=1000),
        lambda: patterns.shared_question([0, 1000, LONG // 2, LONG]),
        lambda: patterns.strided(LONG, LONG, num_heads=4, vert_stride=16),
        lambda: patterns.strided(LONG, LONG, num_heads=1, block_size=128, vert_stride=16, causal=False),
        lambda: patterns.bigbird(LONG, LONG, window=192, global_tokens=128, random_blocks=3),
        lambda: patterns.halo_2d(512, 256, block=8, halo=3),
        lambda: patterns.halo_2d(512, 256, block=8, halo=3, order="block"),
    ],
)
def test_long_patterns_are_cheap(make):
    start = time.perf_counter()
    layout = make()
    assert time.perf_counter() - start < 30  # a second or so; a T x T mask of bools would take 16 GiB
    held = [layout.kv_index, layout.full_index, layout.partial_slot, layout.partial_bits]
    assert sum(t.numel() * 4 for t in held if t is not None) < 64 << 20
    if layout.partial_bits is not None:
        assert layout.partial_bits.shape[0] < 1000


def test_short_and_long_agree(generator):
    """A corner of a long layout equals the short layout: nothing depends on the length by accident."""
    long, short = (patterns.sink_window(n, n, window=300, sink_tokens=100) for n in (LONG, 4096))
    for i in torch.randint(0, 64, (20,), generator=generator).tolist():
        for a, b in zip(long._lists(), short._lists(), strict=True):
            count = int(a[0][0, 0, i])
            assert count == int(b[0][0, 0, i])
            assert torch.equal(a[1][0, 0, i, :count], b[1][0, 0, i, :count])


def test_reading_bits_one_by_one_agrees():
    layout = patterns.halo_2d(13, 17, block=4, halo=2, block_q=32, block_k=48)
    assert torch.equal(layout.to_token_mask(), layout_mask(layout))
