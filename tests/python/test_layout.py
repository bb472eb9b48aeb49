"""BlockLayout: construction, converters, algebra and views, against explicit token masks."""

import hypothesis.strategies as st
import matplotlib.image
import pytest
import torch
import torch.utils._pytree as pytree
from hypothesis import example, given
from torch.nn.attention import flex_attention as flex

from attn import patterns
from attn.layout import BlockLayout, bits, plot
from attn.reference import layout_mask

BLOCKS = st.sampled_from([16, 32, 48, 64, 128])


def random_mask(seed, batch, heads, q_len, kv_len, coarse=16):
    """Token mask with empty, whole and cut blocks: a coarse random pattern, some random tokens flipped."""
    g = torch.Generator().manual_seed(seed)
    rough = torch.rand(batch, heads, -(-q_len // coarse), -(-kv_len // coarse), generator=g) < 0.5
    mask = rough.repeat_interleave(coarse, 2).repeat_interleave(coarse, 3)[:, :, :q_len, :kv_len]
    return mask ^ (torch.rand(mask.shape, generator=g) < 0.002)


def make(count, index, **options):
    options = {"block_q": 16, "block_k": 16, "q_len": 32, "kv_len": 64} | options
    return BlockLayout(
        torch.tensor(count, dtype=torch.int32), torch.tensor(index, dtype=torch.int32), **options
    )


@st.composite
def masks(draw):
    sizes = [draw(st.integers(1, 2)) for _ in range(2)] + [draw(st.integers(0, 200)) for _ in range(2)]
    return random_mask(draw(st.integers(0, 1000)), *sizes)


@given(masks(), BLOCKS, BLOCKS)
@example(torch.zeros(1, 1, 0, 64, dtype=torch.bool), 64, 64)
@example(torch.zeros(2, 1, 64, 0, dtype=torch.bool), 64, 64)
@example(torch.ones(1, 2, 65, 63, dtype=torch.bool), 64, 32)
def test_token_mask_round_trip(mask, block_q, block_k):
    layout = BlockLayout.from_token_mask(mask, block_q, block_k)
    assert torch.equal(layout.to_token_mask(), mask)
    assert torch.equal(layout_mask(layout), mask)
    assert layout.shape == tuple(mask.shape)
    pairs = mask.numel()
    assert layout.density() == pytest.approx(mask.sum().item() / pairs if pairs else 0)
    assert torch.equal(layout.transpose().to_token_mask(), mask.mT)
    assert layout.transpose() is layout.transpose()
    assert layout.transpose().transpose() is layout
    # What was built without checks satisfies the checks.
    BlockLayout(layout.kv_count, layout.kv_index, **tensors(layout))


@given(masks(), BLOCKS, BLOCKS)
@example(torch.zeros(1, 1, 0, 64, dtype=torch.bool), 64, 64)
@example(torch.zeros(2, 1, 64, 0, dtype=torch.bool), 64, 64)
def test_transposed_without_a_look_at_values(mask, block_q, block_k):
    """As on a GPU and while tracing: the same layout, in lists of the greatest width."""
    layout = BlockLayout.from_token_mask(mask, block_q, block_k)
    turned = layout._transpose_unseen()
    assert turned == layout.transpose()
    assert torch.equal(layout_mask(turned), mask.mT)
    assert turned.kv_index.shape[-1] == layout.num_q_blocks
    BlockLayout(turned.kv_count, turned.kv_index, **tensors(turned))
    for count, index, slot in turned._lists():
        unused = torch.arange(index.shape[-1]) >= count.unsqueeze(-1)
        assert (index[unused] == 0).all()
        assert slot is None or (slot[unused] == -1).all()


def test_heads_of_an_empty_mask():
    """PyTorch may give an empty result a stride of 0, which is no shared pattern."""
    mask = torch.empty_strided((3, 2, 2, 0), (0, 0, 1, 1), dtype=torch.bool)
    layout = BlockLayout.from_mask(mask)
    assert (layout.batch, layout.heads, layout.q_len, layout.kv_len) == (3, 2, 128, 0)


@given(st.integers(0, 1000), st.integers(1, 3), st.integers(0, 3), *[st.integers(0, 70)] * 2)
def test_lists_of_a_block_mask(seed, batch, heads, rows, columns):
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, heads, columns, rows, generator=g).mT < 0.4
    for given_mask in (mask.contiguous(), mask.contiguous()[:1].expand(2, -1, -1, -1)):
        count, index = torch.ops.attn.layout_build(given_mask)
        assert torch.equal(count, given_mask.sum(-1, dtype=torch.int32))
        lists = zip(given_mask.flatten(0, 2), count.flatten(), index.flatten(0, 2), strict=True)
        for kept, n, found in lists:
            assert torch.equal(found[:n], kept.nonzero().flatten().int())
            assert (found[n:] == 0).all()
    if heads:
        layout = BlockLayout.from_mask(mask, block_q=16, block_k=16)
        assert torch.equal(layout.to_block_state() != -2, mask)


def tensors(layout):
    names = (
        "full_count",
        "full_index",
        "partial_slot",
        "partial_bits",
        "block_q",
        "block_k",
        "q_len",
        "kv_len",
    )
    return {name: getattr(layout, name) for name in names}


@given(masks(), st.integers(0, 1000), st.booleans(), BLOCKS, BLOCKS)
def test_algebra(mask, seed, shared, block_q, block_k):
    other = random_mask(seed, 1 if shared else mask.shape[0], mask.shape[1], *mask.shape[2:])
    a, b = (BlockLayout.from_token_mask(x, block_q, block_k) for x in (mask, other))
    assert torch.equal((a & b).to_token_mask(), mask & other)
    assert torch.equal((a | b).to_token_mask(), mask | other)
    assert (b | a) == (a | b)
    assert (a & a) == a
    assert (a | a) == a
    assert (a == b) == (a.shape == b.shape and torch.equal(mask, other))


def test_equal_tokens_are_equal_layouts_however_they_are_stored():
    by_mask = BlockLayout.from_token_mask(torch.ones(32, 64, dtype=torch.bool), 16, 16)
    by_list = make([[[4, 4]]], [[[[0, 1, 2, 3]] * 2]])
    full = {
        "full_count": torch.tensor([[[4, 4]]]).int(),
        "full_index": torch.arange(4).int().expand(1, 1, 2, 4),
    }
    by_full_list = BlockLayout(
        torch.zeros(1, 1, 2).int(),
        torch.zeros(1, 1, 2, 0).int(),
        **full,
        block_q=16,
        block_k=16,
        q_len=32,
        kv_len=64,
    )
    assert by_mask == by_list == by_full_list
    assert hash(by_mask) == hash(by_list)
    assert by_mask != BlockLayout.from_token_mask(torch.ones(32, 64, dtype=torch.bool), 32, 16)
    assert by_mask != "a layout"


def test_tiles_are_shared():
    layout = patterns.sliding_window(8192, 8192, window=(100, 0))
    # The diagonal and two cuts at the window's end; nothing else, however long the sequence.
    assert layout.partial_bits.shape[0] <= 4


def test_entries_past_the_count_are_ignored():
    layout = make([[[1, 0]]], [[[[2, 99, -5], [7, 7, 7]]]])
    expected = torch.zeros(1, 1, 32, 64, dtype=torch.bool)
    expected[:, :, :16, 32:48] = True
    assert torch.equal(layout.to_token_mask(), expected)


def test_repeated_blocks_count_once():
    layout = make([[[3, 2]]], [[[[1, 1, 2], [0, 0, 0]]]])
    assert layout == make([[[2, 1]]], [[[[1, 2], [0, 0]]]])
    assert layout.kv_count.tolist() == [[[2, 1]]]
    tile = torch.zeros(2, 16, 1, dtype=torch.int32)
    tile[0, 0] = 1
    tile[1, 1] = 2
    slot = torch.tensor([[[[0, 1], [0, -1]]]], dtype=torch.int32)
    layout = make([[[2, 2]]], [[[[1, 1], [3, 3]]]], partial_slot=slot, partial_bits=tile)
    expected = torch.zeros(1, 1, 32, 64, dtype=torch.bool)
    expected[..., 0, 16] = True
    expected[..., 1, 17] = True
    expected[..., 16:, 48:] = True
    assert torch.equal(layout.to_token_mask(), expected)


def test_tile_bits_past_the_ends_do_not_count():
    ones = torch.full((1, 16, 1), -1, dtype=torch.int32)
    options = {"partial_slot": torch.zeros(1, 1, 1, 1).int(), "partial_bits": ones, "q_len": 5, "kv_len": 7}
    layout = make([[[1]]], [[[[0]]]], **options)
    assert layout.density() == 1
    assert layout == BlockLayout.from_token_mask(torch.ones(5, 7, dtype=torch.bool), 16, 16)


COUNT, INDEX = [[[2, 1]]], [[[[0, 3], [1, 0]]]]
FULL = {"full_count": torch.tensor([[[1, 1]]]).int(), "full_index": torch.tensor([[[[1], [2]]]]).int()}
TILES = {"partial_slot": torch.zeros(1, 1, 2, 2).int(), "partial_bits": torch.zeros(1, 16, 1).int()}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"block_q": 24}, ValueError, "block_q must be a positive multiple of 16, got 24"),
        ({"block_k": 0}, ValueError, "block_k must be a positive multiple of 16, got 0"),
        ({"block_k": 16.0}, TypeError, "block_k must be an int, got float"),
        ({"q_len": -1}, ValueError, "q_len must be >= 0, got -1"),
        ({"q_len": 33}, ValueError, r"kv_count must have M = .* = 3 entries"),
        ({"kv_len": 16}, ValueError, r"kv_index lists up to 2 blocks a row, but there are only .* = 1"),
        ({"kv_len": 40}, ValueError, r"kv_index must hold key blocks in \[0, 3\) .* got 3 at \[0, 0, 0, 1\]"),
        ({"count": [[[3, 1]]]}, ValueError, r"kv_count must be in \[0, 2\] .* got 3 at \[0, 0, 0\]"),
        ({"count": [[[-1, 1]]]}, ValueError, r"kv_count must be in \[0, 2\] .* got -1"),
        ({"count": [[2, 1]]}, ValueError, r"kv_count must be \[B\|1, H\|1, M\], got shape \[1, 2\]"),
        ({"index": [[[[0, -3], [1, 0]]]]}, ValueError, r"kv_index must hold key blocks in \[0, 4\)"),
        (
            {"index": [[[[3, 0], [1, 0]]]]},
            ValueError,
            r"kv_index must be ascending .* got 3 before 0 in row \[0, 0, 0\]",
        ),
        (
            {"index": [[[0, 3], [1, 0]]]},
            ValueError,
            r"kv_index must have kv_count's shape \[1, 1, 2\] and one more",
        ),
        ({"full_count": FULL["full_count"]}, ValueError, "full_count and full_index must be given together"),
        (
            {**FULL, "full_index": torch.tensor([[[[3], [2]]]]).int()},
            ValueError,
            r"disjoint, but block 3 of row \[0, 0, 0\]",
        ),
        (
            {**FULL, "full_index": torch.tensor([[[[9], [2]]]]).int()},
            ValueError,
            "full_index must hold key blocks",
        ),
        (
            {**FULL, "full_count": torch.tensor([[[1, 1, 1]]]).int()},
            ValueError,
            "full_count must have kv_count's shape",
        ),
        (
            {**FULL, "full_index": torch.tensor([[[[1], [2]]]])},
            TypeError,
            "full_index must be int32, got int64",
        ),
        (
            {"partial_bits": TILES["partial_bits"]},
            ValueError,
            "partial_slot and partial_bits must be given together",
        ),
        (
            {**TILES, "partial_bits": torch.zeros(1, 16, 2).int()},
            ValueError,
            r"partial_bits must be .* = \[P, 16, 1\]",
        ),
        (
            {**TILES, "partial_slot": torch.ones(1, 1, 2, 2).int()},
            ValueError,
            r"partial_slot must be -1 .* \[0, 1\), got 1",
        ),
        (
            {**TILES, "partial_slot": torch.ones(1, 1, 2, 1).int()},
            ValueError,
            "partial_slot must have kv_index's shape",
        ),
    ],
)
def test_errors_name_the_argument(change, error, message):
    change = {"count": COUNT, "index": INDEX} | change
    with pytest.raises(error, match=message):
        make(change.pop("count"), change.pop("index"), **change)


def test_type_errors():
    options = {"block_q": 16, "block_k": 16, "q_len": 32, "kv_len": 64}
    with pytest.raises(TypeError, match="kv_count must be a torch.Tensor, got list"):
        BlockLayout([[[0, 0]]], torch.zeros(1, 1, 2, 1).int(), **options)
    with pytest.raises(TypeError, match=r"kv_index must be int32, got int64; convert with \.int\(\)"):
        BlockLayout(torch.zeros(1, 1, 2).int(), torch.zeros(1, 1, 2, 1).long(), **options)


def test_combining_unequal_layouts_is_refused():
    a = patterns.sliding_window(128, 128, window=3)
    with pytest.raises(ValueError, match="same kv_len, got 128 and 64"):
        a & patterns.sliding_window(128, 64, window=3)
    with pytest.raises(ValueError, match="same block_q, got 64 and 32"):
        a | patterns.sliding_window(128, 128, window=3, block_q=32)
    two, three = (BlockLayout.from_mask(torch.ones(1, n, 2, 2, dtype=torch.bool)) for n in (2, 3))
    with pytest.raises(ValueError, match="same heads, got 2 and 3"):
        two & three
    with pytest.raises(TypeError):
        a & 1


class TestFromMask:
    @pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (2, 5, 3, 4)])
    def test_blocks(self, shape, generator):
        mask = torch.rand(shape, generator=generator) < 0.5
        layout = BlockLayout.from_mask(mask, block_q=16, block_k=32, q_len=40, kv_len=100)
        tokens = mask.repeat_interleave(16, -2).repeat_interleave(32, -1)[..., :40, :100]
        assert torch.equal(layout.to_token_mask(), tokens.reshape(layout.shape))
        assert layout.density(of="blocks") == pytest.approx(mask.float().mean().item())

    def test_an_expanded_mask_is_stored_once(self):
        mask = torch.eye(4, dtype=torch.bool).expand(8, 16, 4, 4)
        assert BlockLayout.from_mask(mask).shape == (1, 1, 256, 256)
        assert BlockLayout.from_token_mask(mask).shape == (1, 1, 4, 4)

    def test_errors(self):
        with pytest.raises(ValueError, match=r"mask must have \[M, N\] = .* = \[3, 4\] blocks, got \[4, 4\]"):
            BlockLayout.from_mask(torch.ones(4, 4, dtype=torch.bool), q_len=150)
        with pytest.raises(TypeError, match="mask must be bool"):
            BlockLayout.from_mask(torch.ones(4, 4))
        with pytest.raises(ValueError, match=r"mask must be \[Tq, Tk\] with up to two leading dimensions"):
            BlockLayout.from_token_mask(torch.ones(4, dtype=torch.bool))


class TestFromBsr:
    def test_against_scipy(self, generator):
        sparse = pytest.importorskip("scipy.sparse", reason="needs SciPy (the extra `test`)")
        mask = torch.rand(96, 80, generator=generator) < 0.02
        matrix = sparse.bsr_matrix(mask.numpy(), blocksize=(32, 16))
        layout = BlockLayout.from_bsr(
            torch.from_numpy(matrix.indptr),
            torch.from_numpy(matrix.indices),
            kv_len=80,
            block_q=32,
            block_k=16,
            mask=torch.from_numpy(matrix.data),
        )
        assert layout == BlockLayout.from_token_mask(mask, 32, 16)

    def test_heads_and_unsorted_rows(self):
        indptr = torch.tensor([[0, 2, 2], [0, 1, 3]])
        indices = torch.tensor([[3, 1, -1], [0, 2, 1]])
        layout = BlockLayout.from_bsr(indptr, indices, kv_len=64, block_q=16, block_k=16, q_len=20)
        mask = torch.zeros(2, 2, 4, dtype=torch.bool)
        mask[0, 0, [1, 3]] = mask[1, 0, 0] = mask[1, 1, [1, 2]] = True
        assert layout == BlockLayout.from_mask(mask, block_q=16, block_k=16, q_len=20)

    @pytest.mark.parametrize(
        ("indptr", "indices", "options", "message"),
        [
            ([0, 1], [4], {}, r"indices must be key blocks in \[0, 4\) for kv_len=64, got 4"),
            ([1, 1], [0], {}, "indptr must start at 0"),
            ([0, 2], [0], {}, "end within the 1 entries"),
            ([0, 1], [0], {"q_len": 99}, r"indptr must have .* = 8 entries for q_len=99, got 2"),
            ([0, 1], [0], {"mask": torch.ones(1, 16, 8, dtype=torch.bool)}, "mask must be bool"),
        ],
    )
    def test_errors(self, indptr, indices, options, message):
        with pytest.raises(ValueError, match=message):
            BlockLayout.from_bsr(
                torch.tensor(indptr), torch.tensor(indices), kv_len=64, block_q=16, block_k=16, **options
            )


class TestFromBlockMask:
    @pytest.mark.parametrize("size", [(128, 128), (200, 300), (64, 1000)])
    @pytest.mark.parametrize("block", [128, (64, 32)])
    def test_exact(self, size, block, generator):
        documents = torch.randint(0, 3, (1000,), generator=generator).sort().values

        def rule(b, h, q, k):
            return (q + 100 * h >= k) & (documents[q] == documents[k]) | (k < 10 * b)

        mask = flex.create_block_mask(rule, 2, 3, *size, device="cpu", BLOCK_SIZE=block)
        layout = BlockLayout.from_block_mask(mask)
        assert torch.equal(layout.to_token_mask(), flex.create_mask(rule, 2, 3, *size, device="cpu"))
        for name, theirs in (
            ("kv_count", mask.kv_num_blocks),
            ("kv_index", mask.kv_indices),
            ("full_count", mask.full_kv_num_blocks),
            ("full_index", mask.full_kv_indices),
        ):
            assert getattr(layout, name).data_ptr() == theirs.data_ptr()

    def test_only_partial_blocks_are_evaluated(self):
        seen = []

        def causal(b, h, q, k):
            return q >= k

        mask = flex.create_block_mask(causal, None, None, 512, 512, device="cpu")
        mask.mask_mod = lambda b, h, q, k: seen.append(1) or causal(b, h, q, k)
        layout = BlockLayout.from_block_mask(mask)
        assert layout.partial_bits.shape[0] == 1  # four diagonal blocks, one tile
        assert len(seen) == 1

    def test_lists_made_by_hand(self):
        count = torch.tensor([[[2, 1]]], dtype=torch.int32)
        index = torch.tensor([[[[1, 0], [1, 0]]]], dtype=torch.int32)
        mask = flex.BlockMask.from_kv_blocks(count, index, BLOCK_SIZE=16)
        layout = BlockLayout.from_block_mask(mask)
        assert layout.partial_bits is None
        assert layout == BlockLayout.from_mask(
            torch.tensor([[True, True], [False, True]]), block_q=16, block_k=16
        )

    def test_what_cannot_be_represented_is_refused(self):
        mask = flex.create_block_mask(
            lambda b, h, q, k: q >= k, None, None, 16, 16, device="cpu", BLOCK_SIZE=8
        )
        with pytest.raises(ValueError, match="block_q must be a positive multiple of 16, got 8"):
            BlockLayout.from_block_mask(mask)
        with pytest.raises(TypeError, match="flex must be a .*BlockMask, got Tensor"):
            BlockLayout.from_block_mask(torch.ones(3))


class TestTracing:
    layout = patterns.sink_window(300, 300, window=50, sink_tokens=20, block_q=32)

    def test_as_an_argument(self):
        @torch.compile(backend="eager", fullgraph=True)
        def kept(layout, x):
            return x * layout.kv_count.sum() + layout.transpose().to_token_mask().sum()

        fresh = patterns.sink_window(300, 300, window=50, sink_tokens=20, block_q=32)
        expected = fresh.kv_count.sum() + fresh.to_token_mask().sum()
        assert kept(fresh, torch.ones(())) == expected

    def test_built_inside(self):
        @torch.compile(backend="eager", fullgraph=True)
        def build(mask):
            layout = BlockLayout.from_mask(mask, block_q=16, block_k=16)
            again = BlockLayout(layout.kv_count, layout.kv_index, block_q=16, block_k=16, q_len=64, kv_len=48)
            return again.to_token_mask(), again

        mask = torch.eye(4, 3, dtype=torch.bool)
        tokens, layout = build(mask)
        assert torch.equal(tokens, layout_mask(layout))
        assert layout == BlockLayout.from_mask(mask, block_q=16, block_k=16)

    def test_pytree(self):
        leaves, spec = pytree.tree_flatten(self.layout)
        assert len([leaf for leaf in leaves if leaf is not None]) == 6
        assert pytree.tree_unflatten(leaves, spec) == self.layout
        moved = pytree.tree_map(lambda t: t.clone(), self.layout)
        assert moved == self.layout
        assert moved.kv_count.data_ptr() != self.layout.kv_count.data_ptr()
        # Leaves need not be tensors.
        repr(pytree.tree_map(lambda t: 0, self.layout))

    def test_fake_tensors(self):
        with torch._subclasses.FakeTensorMode() as mode:
            fake = pytree.tree_map(mode.from_tensor, self.layout)
            assert fake.to_token_mask().shape == self.layout.shape
            assert "q_len=300" in repr(fake)


def test_to_device():
    layout = patterns.sink_window(300, 300, window=50, sink_tokens=20)
    assert layout.to("cpu") is layout
    meta = layout.to("meta")
    assert meta.device.type == "meta"
    assert meta.partial_bits.shape == layout.partial_bits.shape


def test_repr():
    layout = patterns.sliding_window(128, 128, window=(-1, 0))
    assert repr(layout) == (
        "BlockLayout(q_len=128, kv_len=128, block_q=64, block_k=64, batch=1, heads=1, blocks=2x2, tiles=1, "
        "density=0.5039, device='cpu')"
    )


def test_density_of_something_else_is_refused():
    with pytest.raises(ValueError, match='of must be "tokens" or "blocks", got \'heads\''):
        patterns.sliding_window(64, 64, window=1).density(of="heads")


class TestPlot:
    def test_small_layouts_are_drawn_token_by_token(self):
        mask = random_mask(0, 2, 2, 70, 90)
        layout = BlockLayout.from_token_mask(mask, 16, 32)
        assert torch.equal(plot.raster(layout, 1, 0), mask[1, 0].float())

    @pytest.mark.parametrize(("q_len", "kv_len"), [(1000, 3000), (5000, 700)])
    def test_large_layouts_are_averaged(self, q_len, kv_len):
        layout = patterns.sink_window(q_len, kv_len, window=200, sink_tokens=70, block_q=32, block_k=128)
        image = plot.raster(layout)
        assert max(image.shape) <= plot.MAX_CELLS
        cell_q, cell_k = -(-q_len // image.shape[0]), -(-kv_len // image.shape[1])
        cells = [
            1 << c.bit_length() - 1 if c & (c - 1) == 0 else 1 << c.bit_length() for c in (cell_q, cell_k)
        ]
        tokens = layout.to_token_mask()[0, 0].float()
        for y, x in torch.randint(0, 10**6, (20, 2), generator=torch.Generator().manual_seed(0)).tolist():
            y, x = y % image.shape[0], x % image.shape[1]
            part = tokens[y * cells[0] : (y + 1) * cells[0], x * cells[1] : (x + 1) * cells[1]]
            torch.testing.assert_close(image[y, x], part.mean())

    @pytest.mark.parametrize("length", [64, 131072])
    def test_picture(self, length, tmp_path):
        layout = patterns.strided(
            length, length, num_heads=2, block_size=16 if length == 64 else 1024, vert_stride=2
        )
        layout.plot(tmp_path / "layout.png")
        picture = matplotlib.image.imread(tmp_path / "layout.png")
        assert picture.shape[0] > 300
        assert picture[..., :3].min() < 0.2

    def test_empty(self, tmp_path):
        patterns.document([0]).plot(tmp_path / "layout.svg")
        with pytest.raises(ValueError, match=r"batch must be in \[0, 1\), got 1"):
            patterns.document([0]).plot(batch=1)


@given(st.integers(0, 100), st.integers(1, 3), st.sampled_from([16, 32, 48, 80, 128]))
def test_bits(seed, tiles, block_k):
    mask = torch.rand(tiles, 16, block_k, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = bits.pack(mask)
    assert packed.shape == (tiles, 16, bits.words(block_k))
    assert torch.equal(bits.unpack(packed, block_k), mask)
    assert torch.equal(bits.transpose(packed, block_k), bits.pack(mask.mT))
    assert torch.equal(bits.count(packed), mask.sum((1, 2)))


def test_equal_hashes_of_different_tiles_are_told_apart(monkeypatch):
    # All weights zero: every tile has the hash 0.
    monkeypatch.setattr(torch.Tensor, "random_", lambda self, *args, **kwargs: self.fill_(0))
    monkeypatch.setattr(torch.Tensor, "__or__", lambda self, other: self)
    tiles = torch.arange(3, dtype=torch.int32)[:, None, None].expand(3, 16, 1).contiguous()
    pool, slot = bits.share(tiles[[0, 1, 2, 1]])
    monkeypatch.undo()
    assert pool.shape[0] == 3
    assert torch.equal(pool[slot], tiles[[0, 1, 2, 1]])
