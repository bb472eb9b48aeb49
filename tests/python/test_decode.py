"""decode_attention: values against the oracle, contiguous and paged caches alike to the bit, and nothing read
that a sequence does not hold."""

import math
from dataclasses import dataclass, field

import pytest
import torch

import attn
from attn import BlockLayout, reference
from cases import ALL, HALF_AND_SINGLE
from tolerance import assert_as_exact_as

F32 = torch.float32
THREADS = torch.get_num_threads()


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


@dataclass(frozen=True)
class Decode:
    """One row of the table: B sequences of the given lengths in caches for S keys each."""

    id: str
    lengths: tuple[int, ...] = (300, 177)
    S: int = 320
    H: int = 4
    Hkv: int = 2
    Tq: int = 1
    D: int = 32
    Dv: int | None = None
    flags: dict = field(default_factory=dict)
    weight: tuple[int, ...] | None = None  # shape of key_log_weight; of its entries, a third is -inf
    layout: tuple[int, int] | None = None  # (heads, kv_len) of a random layout with whole and cut blocks
    dtypes: tuple = HALF_AND_SINGLE

    def inputs(self, dtype, seed=0):
        g = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, generator=g, dtype=torch.float64)

        b = len(self.lengths)
        q = normal(b, self.H, self.Tq, self.D).to(dtype)
        k = normal(b, self.Hkv, self.S, self.D).to(dtype)
        v = normal(b, self.Hkv, self.S, self.Dv or self.D).to(dtype)
        options = {"seqlens": int32(*self.lengths), **self.flags}
        if self.weight is not None:
            w = normal(*self.weight).float()
            options["key_log_weight"] = w.masked_fill(torch.rand(w.shape, generator=g) < 0.3, -math.inf)
        if self.layout is not None:
            heads, kv_len = self.layout
            state = torch.randint(0, 3, (b, heads, 1, -(-kv_len // 48)), generator=g).repeat_interleave(48, 3)
            state = state[..., :kv_len].expand(b, heads, self.Tq, kv_len)
            mask = (state == 1) | ((state == 2) & (torch.rand(state.shape, generator=g) < 0.5))
            options["layout"] = BlockLayout.from_token_mask(mask, 16, 48)
        return q, k, v, options


CASES = [
    Decode("plain", dtypes=ALL),
    *(Decode(f"rows_{n}", Tq=n) for n in (2, 3, 4, 5, 8, 16)),
    Decode("many_rows", Tq=70),
    Decode("mha", H=3, Hkv=3),
    Decode("mqa", H=5, Hkv=1, dtypes=ALL),
    Decode("group_8", H=16, Hkv=2, Tq=2),
    Decode("group_32", H=32, Hkv=1),
    *(
        Decode(f"dim_{d}", D=d, Dv=dv)
        for d, dv in ((1, 1), (6, 40), (31, 17), (64, 64), (80, 96), (128, 160))
    ),
    Decode("dim_wide", D=256, Dv=200, dtypes=ALL),
    # Whole vectors of features, and what masks cut out of a panel of keys.
    *(
        Decode(f"dim_{d}_cut", D=d, Tq=3, weight=(2, 2, 320), flags={"window": (150, 0), "sink_tokens": 5})
        for d in (64, 128, 256)
    ),
    # More rows than one group of four, which share a panel and what is fetched.
    *(Decode(f"dim_{d}_rows_12", D=d, Tq=6) for d in (64, 80, 128)),
    *(
        Decode(
            f"dim_{d}_rows_cut", D=d, Tq=7, weight=(2, 2, 320), flags={"window": (150, 0), "sink_tokens": 5}
        )
        for d in (64, 128, 256)
    ),
    Decode("dim_64_rows_16_split", lengths=(4500, 2079), S=4500, D=64, Tq=4, H=8, Hkv=2),
    Decode("dim_128_rows_16_layout", D=128, layout=(4, 320), Tq=8),
    Decode("dim_64_layout", D=64, layout=(4, 320), Tq=4, dtypes=ALL),
    Decode("dim_128_split", lengths=(4500, 2079), S=4500, D=128, H=8, Hkv=1),
    Decode("unequal", lengths=(0, 1, 2, 320, 64), Tq=4, dtypes=ALL),  # rows before the first key see nothing
    Decode("nothing", lengths=(0, 0)),
    Decode("no_room", lengths=(0, 0), S=0),
    Decode("no_batch", lengths=()),
    Decode("split", lengths=(5000, 2049, 4096, 3), S=5100, D=16),  # keys are cut every 2048
    Decode("split_rows", lengths=(4100, 2047), S=4200, D=16, Tq=5, H=2, Hkv=1),
    Decode("window", flags={"window": (50, 0)}, Tq=3),
    Decode("window_of_two_panels_of_rows", H=2, Tq=8, D=64, flags={"window": (50, 0)}),
    # The first key after the sinks lies in its page where the next sink would.
    Decode("sinks_like_a_run", lengths=(300, 172), D=64, flags={"window": (166, 0), "sink_tokens": 5}),
    Decode("window_zero", flags={"window": (0, -1)}),
    Decode("sinks", flags={"window": (40, 0), "sink_tokens": 7}, Tq=4, dtypes=ALL),
    Decode("sinks_split", lengths=(4500, 30), S=4500, D=16, flags={"window": (2100, 0), "sink_tokens": 70}),
    Decode("scale", flags={"scale": -0.3}),
    Decode("weight", weight=(2, 2, 320), Tq=2, dtypes=ALL),
    Decode("weight_shared", weight=(320,)),
    Decode("weight_of_heads", weight=(1, 2, 320), flags={"window": (60, 0), "sink_tokens": 3}),
    Decode("layout", layout=(1, 320), Tq=3, dtypes=ALL),
    Decode("layout_of_heads", layout=(4, 320), Tq=2),
    Decode(
        "layout_shorter", layout=(1, 250), Tq=2
    ),  # neither a multiple of the block nor what sequences hold
    Decode(
        "everything", layout=(4, 320), weight=(2, 2, 320), Tq=5, flags={"window": (200, 0), "sink_tokens": 9}
    ),
]
PARAMETERS = [pytest.param(c, t, id=f"{c.id}-{str(t)[6:]}") for c in CASES for t in c.dtypes]


def paged(cache, page, order):
    """The cache [B, Hkv, S, D] in pages, in the order given; unused room is NaN."""
    batch, heads, room, dim = cache.shape
    pages = -(-room // page)
    padded = torch.full((batch, heads, pages * page, dim), math.nan, dtype=cache.dtype)
    padded[:, :, :room] = cache
    stored = torch.full((batch * pages + 2, heads, page, dim), math.nan, dtype=cache.dtype)
    stored[order[: batch * pages]] = (
        padded.unflatten(2, (pages, page)).transpose(1, 2).reshape(-1, heads, page, dim)
    )
    return stored


def in_pages(k, v, options, page):
    """The same call with paged caches. Entries of the table past a sequence's length point nowhere."""
    batch, _, room, _ = k.shape
    pages = -(-room // page)
    order = torch.randperm(batch * pages + 2, generator=torch.Generator().manual_seed(3))
    table = order[: batch * pages].reshape(batch, pages).int()
    used = torch.arange(pages) < -(-options["seqlens"][:, None] // page)
    options = dict(options, block_table=torch.where(used, table, -7))
    if "key_log_weight" in options:
        options["key_log_weight"] = torch.nn.functional.pad(
            options["key_log_weight"], (0, pages * page - room), value=math.nan
        )
    return paged(k, page, order), paged(v, page, order), options


def plain(q, k, v, *, seqlens, layout=None, window=None, sink_tokens=0, key_log_weight=None, scale=None):
    """One sequence at a time in the dtype of the arguments."""
    results = []
    for b, n in enumerate(seqlens.tolist()):
        mask = reference.token_mask(
            q.shape[2], n, causal=True, window=window, sink_tokens=sink_tokens, device=q.device
        )
        if layout is not None:
            kept = reference.layout_mask(layout)
            kept = torch.nn.functional.pad(kept, (0, max(0, n - layout.kv_len)))[b : b + 1, :, :, :n]
            mask = mask & kept
        weight = torch.zeros(1, k.shape[1], n)
        if key_log_weight is not None:
            w = key_log_weight.expand(k.shape[0], k.shape[1], k.shape[2])
            weight = w[b : b + 1, :, :n]
        bias = torch.where(mask, 0.0, -math.inf)
        group = q.shape[1] // k.shape[1]
        bias = bias + weight.repeat_interleave(group, 1)[:, :, None]
        keys, values = (x[b : b + 1, :, :n].repeat_interleave(group, 1) for x in (k, v))
        logits = q[b : b + 1] @ keys.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        logits = (logits + bias.to(q.dtype)).masked_fill(bias == -math.inf, -math.inf)
        empty = (logits == -math.inf).all(-1)
        safe = logits.masked_fill(empty[..., None], 0.0)
        statistics = torch.float64 if q.dtype == torch.float64 else F32
        out = torch.softmax(safe, -1).masked_fill(empty[..., None], 0.0).to(v.dtype) @ values
        if n:
            lse = torch.logsumexp(safe.to(statistics), -1).masked_fill(empty, -math.inf)
        else:
            lse = torch.full(logits.shape[:3], -math.inf, dtype=statistics)
        results.append((out, lse))
    return tuple(torch.cat(x) for x in zip(*results, strict=True))


def same_bits(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


@pytest.mark.isa
@pytest.mark.parametrize(("case", "dtype"), PARAMETERS)
def test_values(case, dtype):
    q, k, v, options = case.inputs(dtype)
    for b, n in enumerate(case.lengths):  # what a sequence does not hold is never looked at
        k[b, :, n:] = math.nan
        v[b, :, n:] = math.nan
    out, lse = attn.decode_attention(q, k, v, **options, return_lse=True)
    assert out.shape == (*q.shape[:3], v.shape[3])
    if not case.lengths:
        return
    exact = reference.decode_attention(q.double(), k.double(), v.double(), **options, return_lse=True)
    low = plain(q, k, v, **options)
    for name, a, p, e in zip(("out", "lse"), (out, lse), low, exact, strict=True):
        assert_as_exact_as(a, p, e, f"{case.id}: {name}")
    for page in (16, 64, 256):
        pk, pv, in_page = in_pages(k, v, options, page)
        same_bits(attn.decode_attention(q, pk, pv, **in_page, return_lse=True), (out, lse))


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16], ids=str)
def test_tokens_before_heads(dtype):
    q, k, v, options = CASES[0].inputs(dtype)
    expected = attn.decode_attention(q, k, v, **options, return_lse=True)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    same_bits(attn.decode_attention(*turned, **options, return_lse=True), expected)
    strange = [torch.nn.functional.pad(x, (0, 3), value=math.nan)[..., : x.shape[3]] for x in (q, k, v)]
    same_bits(attn.decode_attention(*strange, **options, return_lse=True), expected)


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16], ids=str)
def test_is_the_end_of_attention(dtype):
    """Decoding the last rows of a sequence gives what attention over all of it gives them."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, 90, 24, generator=g).to(dtype) for h in (4, 2, 2))
    whole = attn.attention(q, k, v, causal=True, window=(30, 0), sink_tokens=4)
    last = attn.decode_attention(q[:, :, -5:], k, v, seqlens=int32(90), window=(30, 0), sink_tokens=4)
    torch.testing.assert_close(last, whole[:, :, -5:])


def test_halves_merge_to_the_whole():
    q, k, v, _ = Decode("", lengths=(300, 300), S=300).inputs(F32)
    whole = attn.decode_attention(q, k, v, seqlens=int32(300, 300), return_lse=True)
    # Every key is visible to the last row, so any cut of the cache is two calls.
    for cut in (0, 1, 100, 299, 300):
        parts = [
            attn.decode_attention(q, x, y, seqlens=int32(*[x.shape[2]] * 2), return_lse=True)
            for x, y in ((k[:, :, :cut], v[:, :, :cut]), (k[:, :, cut:], v[:, :, cut:]))
        ]
        out, lse = attn.merge_states([p[0] for p in parts], [p[1] for p in parts])
        torch.testing.assert_close((out, lse), whole)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [F32, torch.bfloat16], ids=str)
def test_threads_and_neighbours(dtype):
    case = Decode("", lengths=(4500, 17, 2500), S=4500, D=40, Tq=2)
    q, k, v, options = case.inputs(dtype)
    expected = attn.decode_attention(q, k, v, **options, return_lse=True)
    try:
        for n in (1, 2, 3, 7):
            torch.set_num_threads(n)
            same_bits(attn.decode_attention(q, k, v, **options, return_lse=True), expected)
    finally:
        torch.set_num_threads(THREADS)
    for b in range(3):
        one = slice(b, b + 1)
        alone = attn.decode_attention(
            q[one], k[one], v[one], seqlens=options["seqlens"][one], return_lse=True
        )
        same_bits(alone, [x[one] for x in expected])
        n = case.lengths[b]  # nor does it matter how much room there is
        tight = attn.decode_attention(
            q[one], k[one, :, :n], v[one, :, :n], seqlens=options["seqlens"][one], return_lse=True
        )
        same_bits(tight, [x[one] for x in expected])


@pytest.mark.isa
@pytest.mark.parametrize(
    "case",
    [
        Decode("", lengths=(4500, 17, 2500), S=4500, H=12, Hkv=6, D=64, Tq=3),
        Decode("", lengths=(4100, 2048), S=4100, H=6, Hkv=3, D=128, Dv=72, weight=(2, 3, 4100)),
        Decode("", S=4500, lengths=(4500, 130), D=96, flags={"window": (2199, 0), "sink_tokens": 21}),
        Decode("", S=600, lengths=tuple(range(3, 600, 40)), Tq=3, flags={"window": (77, 0)}),
    ],
    ids=["rows", "weight", "window", "short"],
)
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
def test_heads_that_share_pages(case, dtype):
    """How many heads of a page are read together depends on the number of threads; results don't."""
    q, k, v, options = case.inputs(dtype)
    expected = attn.decode_attention(q, k, v, **options, return_lse=True)
    try:
        for page in (16, 64, 256, 320):
            pk, pv, in_page = in_pages(k, v, options, page)
            for n in (1, 2, 7):
                torch.set_num_threads(n)
                same_bits(attn.decode_attention(q, pk, pv, **in_page, return_lse=True), expected)
    finally:
        torch.set_num_threads(THREADS)


@pytest.mark.isa
@pytest.mark.parametrize("dim", [40, 64, 160])
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
def test_what_a_row_cannot_see_may_be_infinite(dtype, dim):
    """The newest key's value is infinite: the rows before it don't notice."""
    q, k, v, options = Decode("", lengths=(300, 77), D=dim, Tq=3).inputs(dtype)
    expected = attn.decode_attention(q, k, v, **options)
    for b, n in enumerate((300, 77)):
        v[b, :, n - 1, dim // 3 :] = math.inf
    out = attn.decode_attention(q, k, v, **options)
    # The values of such a tile are added up in another order, and in float32.
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 5e-3}
    torch.testing.assert_close(out[:, :, :2], expected[:, :, :2], **close)
    assert (out[:, :, 2, dim // 3 :] == math.inf).all()
    torch.testing.assert_close(out[:, :, 2, : dim // 3], expected[:, :, 2, : dim // 3], **close)


def test_pages_may_be_shared():
    """Two sequences with one prompt: its pages are stored once."""
    g = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 1, 16, generator=g)
    k, v = torch.randn(4, 2, 16, 16, generator=g), torch.randn(4, 2, 16, 16, generator=g)
    table = int32(3, 0, 1, 3, 0, 2).reshape(2, 3)
    out = attn.decode_attention(q, k, v, seqlens=int32(40, 45), block_table=table)
    for b in range(2):
        flat = [x[table[b].long()].transpose(0, 1).reshape(1, 2, 48, 16) for x in (k, v)]
        one = slice(b, b + 1)
        same_bits([out[one]], [attn.decode_attention(q[one], *flat, seqlens=int32(40, 45)[one])])


def test_opcheck_and_compile():
    case = Decode("", layout=(4, 320), weight=(2, 2, 320), Tq=2)
    q, k, v, options = case.inputs(F32)
    pk, pv, in_page = in_pages(k, v, options, 16)
    in_page["block_table"] = in_page["block_table"].clamp(min=0)
    in_page["key_log_weight"] = in_page["key_log_weight"].nan_to_num()
    for keys, values, call in ((k, v, options), (pk, pv, in_page)):
        layout, table = call["layout"], call.get("block_table")
        lists = (layout.kv_count, layout.kv_index, layout.full_count, layout.full_index)
        tiles = (layout.partial_slot, layout.partial_bits, layout.block_q, layout.block_k, layout.kv_len)
        weight = call["key_log_weight"].expand(2, 2, -1)
        torch.library.opcheck(
            torch.ops.attn.decode_forward.default,
            (q, keys, values, call["seqlens"], table, *lists, *tiles, 90, -1, 3, None, weight),
        )
    compiled = torch.compile(attn.decode_attention, fullgraph=True, backend="aot_eager", dynamic=True)
    del options["layout"]
    same_bits(
        compiled(q, k, v, **options, return_lse=True),
        attn.decode_attention(q, k, v, **options, return_lse=True),
    )


def test_no_gradient():
    q, k, v, options = CASES[0].inputs(F32)
    assert not attn.decode_attention(q.requires_grad_(), k, v, **options).requires_grad


def test_autocast_follows_the_cache():
    q, k, v, options = CASES[0].inputs(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        out = attn.decode_attention(q.float(), k, v, **options)
    same_bits([out], [attn.decode_attention(q, k, v, **options)])


def wrong(message, error=ValueError, **changes):
    return pytest.param(changes, error, message, id=message[:50])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        wrong("q must be a torch.Tensor, got int", TypeError, q=3),
        wrong(r"q must be \[B, H, Tq, D\], got shape \[2, 4, 32\]", q=torch.zeros(2, 4, 32)),
        wrong(
            "k_cache must have the dtype of q, float32, got bfloat16", k=torch.zeros(2, 2, 320, 32).bfloat16()
        ),
        wrong("k_cache must have the batch size of q, 2", k=torch.zeros(3, 2, 320, 32)),
        wrong("k_cache must have the head dimension of q, 32", k=torch.zeros(2, 2, 320, 16)),
        wrong("v_cache must have the first three sizes of k_cache", v=torch.zeros(2, 2, 319, 32)),
        wrong("q must have a multiple of the heads of the caches, got 4 and 3", k=torch.zeros(2, 3, 320, 32)),
        wrong("seqlens must be int32, got int64", TypeError, seqlens=torch.tensor([3, 4])),
        wrong(r"seqlens must be \[B\] = \[2\], got shape \[3\]", seqlens=int32(1, 2, 3)),
        wrong(
            r"seqlens must be in \[0, 320\], what the cache can hold, got 321 at entry 1",
            seqlens=int32(0, 321),
        ),
        wrong(r"seqlens must be in \[0, 320\], .* got -1 at entry 0", seqlens=int32(-1, 3)),
        wrong("block_table must be int32", TypeError, block_table=torch.zeros(2, 3)),
        wrong(r"block_table must be \[B, pages\] = \[2, pages\]", block_table=int32(0, 1)),
        wrong(
            r"block_table must hold pages in \[0, 2\) as far as seqlens reaches, got 2 at \[1, 0\]",
            block_table=int32(0, 2).reshape(2, 1),
        ),
        wrong(r"layout must be an attn.BlockLayout, got int", TypeError, layout=3),
        wrong(
            "layout must be for Tq = 1 queries and at most 320 keys, got 2 and 320",
            layout=attn.patterns.sliding_window(2, 320, window=3),
        ),
        wrong("window must be a pair", TypeError, window=3),
        wrong("sink_tokens must be >= 0, got -1", sink_tokens=-1),
        wrong(r"key_log_weight must be broadcastable to \[B, Hkv, S\]", key_log_weight=torch.zeros(5)),
        wrong("scale must be finite", scale=math.inf),
        wrong("return_lse must be a bool", TypeError, return_lse=1),
    ],
)
def test_wrong_arguments(changes, error, message):
    q, k, v, options = CASES[0].inputs(F32)
    call = {"q": q, "k": k, "v": v, **options, **changes}
    with pytest.raises(error, match=message):
        attn.decode_attention(call.pop("q"), call.pop("k"), call.pop("v"), **call)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seqlens": int32(0, 321)}, "seqlens must be in .0, 320."),
        ({"seqlens": int32(-5, 3)}, "seqlens must be in .0, 320."),
        ({"seqlens": int32(1)}, "seqlens must be .B."),
        ({"block_table": int32(0, 5).reshape(2, 1)}, "block_table must hold pages in .0, 2."),
        ({"block_table": int32(-1, 1).reshape(2, 1)}, "block_table must hold pages in .0, 2."),
        ({"block_table": int32(0, 1, 1).reshape(3, 1)}, "block_table must be .B, pages. with B = 2"),
        (
            {"kv_count": torch.zeros(1, 1, 1, dtype=torch.int32)},
            "kv_count and kv_index must be given together",
        ),
        ({"layout_keys": 321}, "layout_keys must be in .0, 320."),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_op_refuses_what_would_be_out_of_bounds(changes, message):
    q, k, v, options = CASES[0].inputs(F32)
    if "layout_keys" in changes:
        layout = attn.patterns.sliding_window(1, 320, window=3)
        changes = dict(
            changes,
            kv_count=layout.kv_count,
            kv_index=layout.kv_index,
            block_q=layout.block_q,
            block_k=layout.block_k,
        )
    with pytest.raises(RuntimeError, match=message):
        torch.ops.attn.decode_forward(q, k, v, **{"seqlens": options["seqlens"], **changes})
