// PoNet's gradients. With t_l = dy_l o_l and G, m, p as in ponet.h:
//   do_l = dy_l (G + m),  dsegment: sum of t over a segment, to its maximum,  dlocal: dy to the window's maximum,
//   dG = sum_l t_l,  da_l = p_l (dG . k_l - dG . G) / sqrt d,  dk_l = p_l dG + da_l g,  dg = sum_l da_l k_l,  dq_l = dg
//   / n.
// First everything but k in one pass over dy, o, segment and local; then k; then dq. A segment longer than a chunk
// needs its maximum and its sum of t beforehand, which reads dy, o and segment there twice.
#pragma once

#include "cpu/few_queries_grad.h"
#include "cpu/max_share.h"
#include "cpu/ponet.h"

ATTN_NAMESPACE_BEGIN
namespace pool {

template <class T> class PonetBackward : PonetCall<T> {
  using S = Sum<T>;
  using Base = PonetCall<T>;
  using Base::C, Base::cut, Base::D, Base::p;

  struct Scratch {
    S *a, *b, *c, *q2, *q, *dout, *lse2, *delta, *winners;
    const T **rows, **taps;
    T* out;
    GradScratch<S> keys;

    Scratch(Carve& k, int64_t channels, int64_t heads, int64_t dim, int64_t tokens, int64_t winner_elements)
        : a(k.take<S>(channels)), b(k.take<S>(channels)), c(k.take<S>(channels)), q2(k.take<S>(heads * padded<S>(dim))),
          q(k.take<S>(heads * padded<S>(dim))), dout(k.take<S>(heads * padded<S>(dim))), lse2(k.take<S>(heads)),
          delta(k.take<S>(heads)), winners(k.take<S>(winner_elements)), rows(k.take<const T*>(tokens)),
          taps(k.take<const T*>(tokens)), out(k.take<T>(channels)), keys(k, 1, dim, dim) {}
  };

  // taps: a window holds at most `tokens` rows, but not more than a sequence has.
  Scratch scratch(const SequenceSpan& s) const {
    const WindowRows<T> local = this->local_rows(s);
    const int64_t tokens = cut.tokens() > local.taps_at_most() ? cut.tokens() : local.taps_at_most();
    return carve<Scratch>(C, p.heads, D, tokens, WindowMaxGrad<T>::winner_elements(local, cut.tokens()));
  }

  const PonetBackwardParams& b_;
  // Of runs that aren't whole segments: maximum; sum of t; share of the gradient (before: tie counts). [chunks][2][C]
  const Buffer<S> maxima_, totals_, shares_;
  const Buffer<S> global_parts_, query_parts_;  // [chunks][C], [chunks][heads][padded(D)]
  const Buffer<S> dglobal_, dquery_;            // [sequences][C]

  int64_t split_elements() const { return cut.may_split() ? 2 * cut.count() * C : 0; }
  int64_t padded_row() const { return p.heads * padded<S>(D); }

 public:
  explicit PonetBackward(const PonetBackwardParams& b)
      : Base(b.forward), b_(b), maxima_(split_elements()), totals_(split_elements()), shares_(split_elements()),
        global_parts_(cut.count() * C), query_parts_(cut.count() * padded_row()), dglobal_(p.sequences.count * C),
        dquery_(p.sequences.count * C) {}

  void run() const {
    if (cut.may_split()) {
      parallel_runs(cut.count(), [this](int64_t i, int) { split_parts(cut.at(i)); });
      parallel_runs(cut.count(), [this](int64_t i, int) { join_parts(cut.at(i)); });
    }
    parallel_runs(cut.count(), [this](int64_t i, int) { token_gradients(cut.at(i)); });
    if (b_.dk || b_.dq || b_.dquery) {
      parallel_items(p.sequences.count, [this](int64_t s, int) { join_global(s); });
      parallel_runs(cut.count(), [this](int64_t i, int) { key_gradients(cut.at(i)); });
      parallel_items(p.sequences.count, [this](int64_t s, int) { join_query(s); });
    }
    if (b_.dq) parallel_runs(cut.count(), [this](int64_t i, int) { query_rows(cut.at(i)); });
    void* const results[] = {b_.dq, b_.dk, b_.d_o, b_.dsegment, b_.dlocal};
    for (void* result : results) clear_tail<T>(p.sequences, C, result);
  }

 private:
  using Run = PonetCut::Run;

  const T* dy_row(const SequenceSpan& s, int64_t at) const { return this->row(b_.dout, s, at); }

  // Maximum of a run's kept tokens and, for tie rule "even", how many are equal to it.
  void run_maximum(const Chunk& c, const Run& run, const T** rows, S* m, S* count) const {
    this->segment_max(c.span, run.begin, run.end, rows, m);
    if (b_.tie != TieRule::even) return;
    int64_t n = 0;
    for (int64_t t = run.begin; t < run.end; ++t) {
      if (this->kept(c.span, t)) rows[n++] = this->row(p.segment, c.span, t);
    }
    count_equal(rows, n, m, count, C);
  }

  void split_parts(const Chunk& c) const {
    const Scratch z = scratch(c.span);
    cut.for_runs(c, [&](const Run& run) {
      if (run.whole()) return;
      const int64_t slot = cut.slot(c, run);
      run_maximum(c, run, z.rows, maxima_ + slot * C, shares_ + slot * C);
      S* total = totals_ + slot * C;
      clear_row(total, C);
      for (int64_t t = run.begin; t < run.end; ++t) {
        if (!this->kept(c.span, t) || this->special(c.span, t)) continue;
        add_product(total, dy_row(c.span, t), this->row(p.o, c.span, t), C);
      }
    });
  }

  // Maximum and shares of every split segment that starts in this chunk.
  void join_parts(const Chunk& c) const {
    const Scratch z = scratch(c.span);
    cut.for_runs(c, [&](const Run& run) {
      if (run.whole() || run.begin != run.segment_begin) return;
      const int64_t home = cut.slot(c, run), parts = cut.last_chunk(c, run) - c.index + 1;
      const auto slot = [&](int64_t i) { return (i == 0 ? home : 2 * (c.index + i)) * C; };
      S* gradient = totals_ + slot(0);
      for (int64_t i = 1; i < parts; ++i) add_row<S>(gradient, totals_ + slot(i), C);
      share_among_parts<S>(
          parts, [&](int64_t i) { return maxima_ + slot(i); }, [&](int64_t i) { return shares_ + slot(i); }, b_.tie,
          gradient, z.a, z.b, C);
    });
  }

  // do, dsegment, dlocal and the chunk's part of dG.
  void token_gradients(const Chunk& c) const {
    const Scratch z = scratch(c.span);
    const RowWriter<T> writer(this->stream(), z.out, C);
    const S* G = this->stat(p.global, c.sequence);
    S* dglobal = global_parts_ + c.index * C;
    clear_row(dglobal, C);
    cut.for_runs(c, [&](const Run& run) {
      S *m = z.a, *total = z.b, *share = z.b;
      if (run.whole()) {
        run_maximum(c, run, z.rows, m, z.c);
      } else {
        m = maxima_ + cut.slot(c, run) * C;
        share = shares_ + cut.slot(c, run) * C;
      }
      clear_row(total, C);
      for (int64_t t = run.begin; t < run.end; ++t) output_gate(c.span, t, m, G, total, dglobal, writer);
      add_row<S>(dglobal, total, C);
      if (!b_.dsegment) return;
      if (run.whole() && b_.tie == TieRule::even) divide_row(share, z.c, C);
      for (int64_t t = run.begin; t < run.end; ++t) {
        T* out = this->result(b_.dsegment, c.span, t);
        T* row = writer.row(out);
        if (!this->kept(c.span, t)) clear_row(row, C);
        else take_share(this->row(p.segment, c.span, t), m, share, b_.tie == TieRule::first, row, C);
        writer.done(out);
      }
    });
    if (!b_.dlocal || c.begin == c.end) return;
    const WindowMaxGrad<T> local(this->local_rows(c.span), dy_row(c.span, 0), b_.dout.token, C);
    local(c.begin, c.end, this->result(b_.dlocal, c.span, 0), C, z.winners, z.taps, writer);
  }

  // do of one token; t = dy o is added to `total`, for a special token, which has no segment, to `dglobal`.
  void output_gate(const SequenceSpan& s, int64_t at, const S* m, const S* G, S* total, S* dglobal,
                   const RowWriter<T>& writer) const {
    T* out = b_.d_o ? this->result(b_.d_o, s, at) : nullptr;
    T* row = out ? writer.row(out) : nullptr;
    if (!this->kept(s, at)) {
      if (row) clear_row(row, C);
    } else {
      const T *dy = dy_row(s, at), *o = this->row(p.o, s, at);
      const bool special = this->special(s, at);
      S* sum = special ? dglobal : total;
      for_lanes<S>(C, [&](int64_t i, auto w) {
        const vec<S> g = get(dy + i, w);
        put(sum + i, get(sum + i, w) + g * get(o + i, w), w);
        if (row) put(row + i, g * (special ? get(G + i, w) : get(G + i, w) + get(m + i, w)), w);
      });
    }
    if (row) writer.done(out);
  }

  void join_global(int64_t sequence) const {
    S* sum = dglobal_ + sequence * C;
    clear_row(sum, C);
    for (int64_t i = cut.first(sequence); i < cut.first(sequence + 1); ++i) add_row<S>(sum, global_parts_ + i * C, C);
  }

  void key_gradients(const Chunk& c) const {
    const Scratch z = scratch(c.span);
    const S scale = 1 / std::sqrt(static_cast<S>(D));
    const S *g = this->stat(p.pooled, c.sequence), *G = this->stat(p.global, c.sequence),
            *dG = dglobal_ + c.sequence * C;
    this->pad_heads(g, S{1}, z.q);
    this->pad_heads(g, static_cast<S>(kLog2e) * scale, z.q2);
    this->pad_heads(dG, S{1}, z.dout);
    for (int64_t h = 0; h < p.heads; ++h) {
      const S lse = static_cast<const S*>(p.lse)[c.sequence * p.heads + h];
      z.lse2[h] = lse == -kInf<S> ? kInf<S> : lse * static_cast<S>(kLog2e);
      z.delta[h] = 0;
      for (int64_t d = h * D; d < (h + 1) * D; ++d) z.delta[h] += dG[d] * G[d];
    }
    S* dq = query_parts_ + c.index * padded_row();
    clear_row(dq, padded_row());
    T* dk = b_.dk ? this->result(b_.dk, c.span, 0) : nullptr;
    stream_keys_grad<T>(this->key_rows(c.span), PoolActivation::softmax_keys, 1, 1, z.q2,
                        {z.q, z.dout, z.lse2, z.delta, scale, S{0}, dq}, c.begin, c.end,
                        {dk, nullptr, C, D, 0, 0, true}, z.keys);
    for (int64_t t = c.begin; dk && t < c.end; ++t) {
      if (!this->kept(c.span, t)) clear_row(dk + t * C, C);
    }
  }

  void join_query(int64_t sequence) const {
    S* sum = dquery_ + sequence * C;
    clear_row(sum, C);
    for (int64_t i = cut.first(sequence); i < cut.first(sequence + 1); ++i) {
      for (int64_t h = 0; h < p.heads; ++h)
        add_row<S>(sum + h * D, query_parts_ + i * padded_row() + h * padded<S>(D), D);
    }
    if (b_.dquery) std::memcpy(static_cast<S*>(b_.dquery) + sequence * C, sum, C * sizeof(S));
    const int64_t n = this->kept_count(sequence_span(p.sequences, sequence));
    scale_row<S>(sum, n > 0 ? 1 / static_cast<S>(n) : S{0}, sum, C);
  }

  void query_rows(const Chunk& c) const {
    const Scratch z = scratch(c.span);
    const RowWriter<T> writer(this->stream(), z.out, C);
    for (int64_t t = c.begin; t < c.end; ++t) {
      T* out = this->result(b_.dq, c.span, t);
      T* row = writer.row(out);
      if (this->kept(c.span, t)) scale_row<T>(row, S{1}, dquery_ + c.sequence * C, C);
      else clear_row(row, C);
      writer.done(out);
    }
  }
};

template <class T> inline void ponet_backward(const PonetBackwardParams& b) { PonetBackward<T>(b).run(); }

}  // namespace pool

inline void ponet_backward(const PonetBackwardParams& b){ATTN_POOL_DISPATCH(b.forward.dtype, pool::ponet_backward, b)}

ATTN_NAMESPACE_END
