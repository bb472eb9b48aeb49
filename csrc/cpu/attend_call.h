// A call of attention forward: its row blocks as items of a queue, and the merge of those whose keys are split.
#pragma once

#include "attn/parallel.h"
#include "cpu/attend_forward.h"

ATTN_NAMESPACE_BEGIN

template <class In> struct ForwardCall {
  using Item = ForwardItem<In>;
  using T = typename Item::T;
  using A = typename Item::A;
  const AttendParams& p;
  const RowItems items;
  const int64_t together;    // kv heads of an item that go through the keys side by side
  const int capacity;        // keys of a tile
  const bool in_runs;        // a thread takes items that follow each other
  const bool all_keys_near;  // and all keys of a head stay in its cache
  int64_t scratch_bytes, partial_size;
  A* partial = nullptr;  // [items][kMaxRows][columns + 2]: o, m, l of every split
  // What the last item of a worker leaves for another: what it has fetched, and values that it has packed.
  struct alignas(64) Followed {
    int64_t next = -1;
    bool same_keys = false;
    ColumnOperand<T, In> values{};
  };
  Followed* followed = nullptr;
  T* packed = nullptr;        // [workers]: values of a head whose keys are one tile
  int workers = kAnyWorkers;  // that there is memory for

  explicit ForwardCall(const AttendParams& params)
      : p(params), items(params, true), together(heads_together()), capacity(tile_capacity()),
        in_runs(items.count() > 1 && items.rows_at_most() > thin_rows_at_most<In>(p) &&
                items.few_keys(sizeof(In), true)),
        all_keys_near(items.few_keys(sizeof(In), false)) {
    Carve c{nullptr};
    Item probe(p, together, c);
    scratch_bytes = c.used;
    partial_size = items.splits > 1 ? items.rows_at_most() * (probe.columns + 2) : 0;
    if (items.splits > 1) partial = new A[items.count() * partial_size];
    if (in_runs) followed = new Followed[workers = parallel_threads()];
    if (in_runs && p.tk <= tile_keys(p.dim, p.dim_v)) {
      const int64_t size = depth_of<T>(p.tk) * probe.columns;
      constexpr uintptr_t kLine = 64;
      packed = new T[workers * size + kLine / sizeof(T)];
      T* first = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(packed) + kLine - 1) / kLine * kLine);
      for (int i = 0; i < workers; ++i) followed[i].values.scratch = first + i * size;
    }
  }
  ~ForwardCall() {
    delete[] partial;
    delete[] followed;
    delete[] packed;
  }

  // Pages hold the keys of all kv heads side by side. Where all of a sequence's heads look at the same keys and there
  // are items enough without them, as many as possible share an item, and its pages are one stream. Nothing depends on
  // it: a head's panels of keys are the same.
  int64_t heads_together() const {
    const bool same_keys = p.schedule == ScheduleKind::range && p.heads / items.heads == p.heads_kv;
    if (!p.paging.table || p.paging.page % thin_panel_keys<In>(p.dim, p.dim_v) != 0 || !kThinFits<A> ||
        items.rows_at_most() > thin_rows_at_most<In>(p) || !same_keys || p.skip_gated)
      return 1;
    int64_t most = p.heads_kv;
    while (most > 1 && (p.heads_kv % most != 0 || items.count() / most < 4 * parallel_threads())) --most;
    return most;
  }
  // A page of every head in turn, or a part of one.
  int tile_capacity() const {
    const int keys = tile_keys(p.dim, p.dim_v);
    if (together == 1) return keys;
    return p.paging.page <= keys ? static_cast<int>(p.paging.page) : keys / 3 * 2;
  }
  // The i-th block of rows of an item: blocks of heads that share one are `splits` apart.
  int64_t block_of(int64_t item, int64_t i) const {
    return together == 1 ? item : (item / items.splits * together + i) * items.splits + item % items.splits;
  }

  // What the worker's last item has fetched for this one, and what this one fetches for the next.
  void look_ahead(int64_t index, const Sequence& seq, Item& item, Followed& last) const {
    item.rows_near = last.next == index;
    item.keys_near = item.rows_near && last.same_keys;
    last.next = -1;
    RowSpan next;
    Sequence next_seq;
    if (index + 1 == items.count() || !items.peek(index + 1, next, next_seq)) return;
    list_query_rows(next, next_seq, p.q, item.next_rows);
    item.next_count = next.rows;
    last.next = index + 1;
    last.same_keys = all_keys_near && next.group.batch == seq.batch && next.group.head_kv == item.rows->group.head_kv;
  }

  void run_item(int64_t index, int worker) const {
    Carve c{static_cast<char*>(thread_scratch(scratch_bytes))};
    Item item(p, together, c);
    Sequence seq;
    int64_t split;
    for (int64_t i = 0; i < together; ++i) {
      if (!items.open(block_of(index, i), *item.rows, seq, split)) return;
      if (item.gated_off(seq)) {
        if (split == 0) item.finish_gated_off(seq);
        return;
      }
      if (in_runs) look_ahead(index, seq, item, followed[worker]);
      item.take_rows(seq);
    }
    if (packed) item.values = &followed[worker].values;
    const int64_t k_lo = split * kSplitKeys, k_hi = k_lo + kSplitKeys;
    const bool last = split + 1 == items.splits || k_hi > seq.keys;
    item.attend(seq, clamp_position(k_lo), last ? seq.keys : clamp_position(k_hi), capacity, items.splits == 1);
    for (int64_t i = 0; items.splits > 1 && i < together; ++i) {
      item.select(i);
      item.clear_sums();
      A* to = partial + block_of(index, i) * partial_size;
      const int64_t n = item.rows->rows;
      std::memcpy(to, item.o, n * item.columns * sizeof(A));
      std::memcpy(to + n * item.columns, item.m, n * sizeof(A));
      std::memcpy(to + n * (item.columns + 1), item.l, n * sizeof(A));
    }
  }

  // Adds the splits of one row block in order and finishes it. `index` counts row blocks.
  void merge_item(int64_t index) const {
    Carve c{static_cast<char*>(thread_scratch(scratch_bytes))};
    Item item(p, 1, c);
    Sequence seq;
    int64_t split;
    if (!items.open(index * items.splits, *item.rows, seq, split) || item.gated_off(seq)) return;
    const int64_t n = item.rows->rows, columns = item.columns;
    item.summed = ~0u;
    for (int64_t r = 0; r < n; ++r) {
      A top = -kInfinity<A>;
      for (int64_t i = 0; i < items.splits; ++i) {
        const A m = partial[(index * items.splits + i) * partial_size + n * columns + r];
        if (m > top) top = m;
      }
      A* row = item.o + r * columns;
      std::memset(row, 0, columns * sizeof(A));
      A sum = 0;
      for (int64_t i = 0; i < items.splits; ++i) {
        const A* from = partial + (index * items.splits + i) * partial_size;
        const A m = from[n * columns + r], l = from[n * (columns + 1) + r];
        if (l == 0) continue;
        const A weight = std::exp2(m - top);
        sum += weight * l;
        for (int64_t x = 0; x < columns; ++x) row[x] += weight * from[r * columns + x];
      }
      item.m[r] = top;
      item.l[r] = sum;
    }
    item.finish(seq);
  }

  // Waking the other threads costs about as much as a quarter of a million multiply-adds: less isn't shared out.
  bool worth_sharing() const {
    const double products = static_cast<double>(p.batch) * p.heads * p.tq * p.tk * (p.dim + p.dim_v);
    return products > 262144;
  }

  void run() const {
    const int64_t count = items.count() / together;
    if (items.splits == 1 && !worth_sharing()) {
      for (int64_t i = 0; i < count; ++i) run_item(i, 0);
      return;
    }
    auto run = [this](int64_t i, int worker) { run_item(i, worker); };
    if (items.splits == 1) return parallel_items(count, run, in_runs ? Take::run : Take::one, workers);
    parallel_items(count, run, Take::run, workers);  // splits of a sequence one after the other
    parallel_items(items.count() / items.splits, [this](int64_t i, int) { merge_item(i); });
  }
};

inline void attend_forward(const AttendParams& p) {
  switch (p.dtype) {
    case DType::f32: return ForwardCall<float>(p).run();
    case DType::f64: return ForwardCall<double>(p).run();
    case DType::bf16: return ForwardCall<bf16>(p).run();
    case DType::f16: return ForwardCall<f16>(p).run();
  }
}

ATTN_NAMESPACE_END
