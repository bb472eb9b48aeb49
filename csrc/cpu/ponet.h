// PoNet's mixing, forward (attn/pool.h, arXiv 2110.02442):
//   g = mean_l q_l,   G = sum_l softmax_l(g . k_l / sqrt d) k_l  per head,
//   y_l = (G + max_{segment of l} segment) o_l + max_{window of l} local.
// Each input is read once: q for its mean, k for scores and sum together, segment with o and local in the last pass. A
// segment longer than a chunk is the exception to the order, not to the count: its maximum is found in the first pass.
#pragma once

#include "cpu/few_queries.h"
#include "cpu/ponet_cut.h"
#include "cpu/window_max.h"

ATTN_NAMESPACE_BEGIN
namespace pool {

template <class T> struct PonetCall {
  using S = Sum<T>;
  const PonetParams& p;
  const int64_t C, D;  // channels, of a head
  const PonetCut cut;

  explicit PonetCall(const PonetParams& params)
      : p(params), C(params.channels), D(params.heads > 0 ? params.channels / params.heads : 0), cut(params) {}

  const T* row(const TokenView& v, const SequenceSpan& s, int64_t at) const {
    return token_row<const T>(v, s.batch, s.first + at);
  }
  T* result(void* data, const SequenceSpan& s, int64_t at) const {
    return static_cast<T*>(data) + (s.batch * p.sequences.tokens + s.first + at) * C;
  }
  S* stat(void* data, int64_t sequence) const { return static_cast<S*>(data) + sequence * C; }
  bool kept(const SequenceSpan& s, int64_t at) const { return taken(p.mask, s.batch, s.first + at); }
  bool special(const SequenceSpan& s, int64_t at) const {
    return p.special.data && taken(p.special, s.batch, s.first + at);
  }
  bool stream() const { return p.sequences.batch * p.sequences.tokens * C * int64_t{sizeof(T)} >= kStreamBytes; }

  WindowRows<T> local_rows(const SequenceSpan& s) const {
    return {row(p.local, s, 0), p.local.token, s.length, p.window, 1, s.batch, s.first, p.mask, p.special};
  }

  KeyRows<T> key_rows(const SequenceSpan& s) const {
    const T* k = row(p.k, s, 0);
    return {k, k, p.k.token, p.k.token, D, D, p.heads, D, D, s.batch, s.first, p.mask};
  }

  int64_t kept_count(const SequenceSpan& s) const {
    if (!p.mask.data) return s.length;
    int64_t n = 0;
    for (int64_t t = 0; t < s.length; ++t) n += kept(s, t);
    return n;
  }

  // A [C] statistic as rows of D channels padded to whole vectors, times `factor`.
  void pad_heads(const S* from, S factor, S* to) const {
    for (int64_t h = 0; h < p.heads; ++h) {
      S* row = to + h * padded<S>(D);
      clear_row(row, padded<S>(D));
      scale_row<S>(row, factor, from + h * D, D);
    }
  }

  // Maximum of the kept tokens of [begin, end) of the sequence's segment rows.
  void segment_max(const SequenceSpan& s, int64_t begin, int64_t end, const T** rows, S* m) const {
    int64_t n = 0;
    fill_row(m, -kInf<S>, C);
    for (int64_t t = begin; t < end; ++t) {
      if (kept(s, t)) rows[n++] = row(p.segment, s, t);
    }
    max_rows<T>(m, rows, n, C);
  }
};

template <class T> class PonetForward : PonetCall<T> {
  using S = Sum<T>;
  using Base = PonetCall<T>;
  using Base::C, Base::cut, Base::D, Base::p;

  struct Scratch {
    S *row, *x;
    const T **rows, **taps;
    T* out;

    Scratch(Carve& c, const PonetParams& p, int64_t tokens)
        : row(c.take<S>(p.heads * padded<S>(p.channels / p.heads) + p.channels)), x(c.take<S>(kBlockLanes<S>)),
          rows(c.take<const T*>(tokens)),
          taps(c.take<const T*>(p.window < p.sequences.tokens ? p.window : p.sequences.tokens)),
          out(c.take<T>(p.channels)) {}
  };

  Scratch scratch() const { return carve<Scratch>(p, cut.tokens()); }

  const Buffer<S> query_parts_, maxima_;  // [chunks][C], [chunks][2][C]
  const RowStates<S> states_;

 public:
  explicit PonetForward(const PonetParams& params)
      : Base(params), query_parts_(!params.query ? cut.count() * C : 0),
        maxima_(cut.may_split() ? 2 * cut.count() * C : 0), states_(cut.count(), p.heads, D) {}

  void run() const {
    const int64_t sequences = p.sequences.count;
    if (!p.query || cut.may_split()) {
      parallel_runs(cut.count(), [this](int64_t i, int) { sums_and_split_maxima(cut.at(i)); });
    }
    parallel_items(sequences, [this](int64_t s, int) { pool_query(s); });
    if (cut.may_split()) parallel_runs(cut.count(), [this](int64_t i, int) { join_maxima(cut.at(i)); });
    parallel_runs(cut.count(), [this](int64_t i, int) { aggregate(cut.at(i)); });
    parallel_items(sequences * p.heads, [this](int64_t i, int) { join_aggregates(i / p.heads, i % p.heads); });
    parallel_runs(cut.count(), [this](int64_t i, int) { mix(cut.at(i)); });
    clear_tail<T>(p.sequences, C, p.out);
  }

 private:
  void sums_and_split_maxima(const Chunk& c) const {
    const Scratch z = scratch();
    if (!p.query) {
      int64_t n = 0;
      for (int64_t t = c.begin; t < c.end; ++t) {
        if (this->kept(c.span, t)) z.rows[n++] = this->row(p.q, c.span, t);
      }
      S* sum = query_parts_ + c.index * C;
      clear_row(sum, C);
      sum_rows<T>(sum, z.rows, n, C);
    }
    if (!cut.may_split()) return;
    cut.for_runs(c, [&](const PonetCut::Run& run) {
      if (!run.whole()) this->segment_max(c.span, run.begin, run.end, z.rows, maxima_ + cut.slot(c, run) * C);
    });
  }

  void pool_query(int64_t sequence) const {
    S* g = this->stat(p.pooled, sequence);
    if (p.query) {
      std::memcpy(g, static_cast<const S*>(p.query) + sequence * C, C * sizeof(S));
      return;
    }
    clear_row(g, C);
    for (int64_t i = cut.first(sequence); i < cut.first(sequence + 1); ++i) add_row<S>(g, query_parts_ + i * C, C);
    const int64_t n = this->kept_count(sequence_span(p.sequences, sequence));
    scale_row<S>(g, n > 0 ? 1 / static_cast<S>(n) : S{0}, g, C);
  }

  // Gathers the maximum of every split segment that starts in this chunk.
  void join_maxima(const Chunk& c) const {
    cut.for_runs(c, [&](const PonetCut::Run& run) {
      if (run.whole() || run.begin != run.segment_begin) return;
      S* m = maxima_ + cut.slot(c, run) * C;
      const int64_t last = cut.last_chunk(c, run);
      for (int64_t i = c.index + 1; i <= last; ++i) max_row<S>(m, maxima_ + 2 * i * C, C);
    });
  }

  void aggregate(const Chunk& c) const {
    const Scratch z = scratch();
    this->pad_heads(this->stat(p.pooled, c.sequence), static_cast<S>(kLog2e / std::sqrt(static_cast<double>(D))),
                    z.row);
    const RowState<S> state = states_.at(c.index);
    state.clear(p.heads, D);
    stream_keys<T>(this->key_rows(c.span), PoolActivation::softmax_keys, 1, 1, z.row, c.begin, c.end, state, z.x);
  }

  void join_aggregates(int64_t sequence, int64_t head) const {
    S m, l;
    S* G = this->stat(p.global, sequence) + head * D;
    states_.join(cut.first(sequence), cut.first(sequence + 1), true, head, m, l, G);
    const S empty = m == -kInf<S>;
    scale_row<S>(G, empty != 0 ? S{0} : 1 / l, G, D);
    static_cast<S*>(p.lse)[sequence * p.heads + head] =
        empty != 0 ? -kInf<S> : (m + std::log2(l)) * static_cast<S>(kLn2);
  }

  void mix(const Chunk& c) const {
    const Scratch z = scratch();
    const RowWriter<T> writer(this->stream(), z.out, C);
    const WindowRows<T> local = this->local_rows(c.span);
    const S* G = this->stat(p.global, c.sequence);
    cut.for_runs(c, [&](const PonetCut::Run& run) {
      const S* m = z.row;
      if (run.whole()) this->segment_max(c.span, run.begin, run.end, z.rows, z.row);
      else m = maxima_ + cut.home(c, run) * C;
      for_lanes<S>(C, [&](int64_t i, auto w) { put(z.row + i, get(m + i, w) + get(G + i, w), w); });
      for (int64_t t = run.begin; t < run.end; ++t) {
        T* out = this->result(p.out, c.span, t);
        T* y = writer.row(out);
        const T* o = this->row(p.o, c.span, t);
        if (!this->kept(c.span, t)) {
          clear_row(y, C);
        } else if (this->special(c.span, t)) {
          for_lanes<S>(C, [&](int64_t i, auto w) { put(y + i, get(G + i, w) * get(o + i, w), w); });
        } else {
          const int n = local.taps(t, z.taps);
          const S* gate = z.row;
          with_taps<T>(z.taps, n, [&](const auto taps) {
            for_lanes<S>(C,
                         [&](int64_t i, auto w) { put(y + i, get(gate + i, w) * get(o + i, w) + taps.max(i, w), w); });
          });
        }
        writer.done(out);
      }
    });
  }
};

template <class T> inline void ponet_forward(const PonetParams& p) { PonetForward<T>(p).run(); }

}  // namespace pool

inline void ponet_forward(const PonetParams& p){ATTN_POOL_DISPATCH(p.dtype, pool::ponet_forward, p)}

ATTN_NAMESPACE_END
