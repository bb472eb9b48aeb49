// Prefix-softmax pooling: out_t = sum_{j <= t} e^{s_j} v_j / sum_{j <= t} e^{s_j}, against the running maximum, and its
// gradient, a sum over later tokens decayed by e^{lse_t - lse_u} so that nothing overflows:
//   g_t = dout_t + e^{lse_t - lse_{t+1}} g_{t+1},  c_t the same for dout_t . out_t - dlse_t
//   dv_t = e^{s_t - lse_t} g_t                     ds_t = e^{s_t - lse_t} (v_t . g_t - c_t)
// A score of -inf leaves its token out: its value is not read.
#pragma once

#include <limits>

#include "cpu/flow_rows.h"

ATTN_NAMESPACE_BEGIN
namespace scan {

template <class In> struct PrefixRows {
  using A = Acc<Operand<In>>;
  static constexpr A kNone = -std::numeric_limits<A>::infinity();
  const PrefixPoolParams& p;
  const int64_t ld, segment;

  explicit PrefixRows(const PrefixPoolParams& params)
      : p(params), ld((params.dim + Lanes<A>::n - 1) / Lanes<A>::n * Lanes<A>::n),
        segment(segment_tokens(params.dim, params.dim)) {}

  int64_t groups() const { return p.sequences * p.heads; }
  int64_t head(int64_t g) const { return g % p.heads; }
  Stretch tokens(int64_t g) const { return stretch(p.cu, g / p.heads, p.tokens); }
  A score(const Stretch& s, int64_t g, int64_t i) const {
    return to_float(static_cast<const In*>(
        p.score.data)[s.batch * p.score.batch + head(g) * p.score.head + (s.first + i) * p.score.token]);
  }
  const In* v(const Stretch& s, int64_t g, int64_t i) const {
    return row_at<const In>(p.v, s.batch, head(g) / (p.heads / p.heads_v), s.first + i);
  }
  A* lse(const Stretch& s, int64_t g, int64_t i) const {
    return static_cast<A*>(p.lse) + (s.batch * p.heads + head(g)) * p.tokens + s.first + i;
  }
  // fn(batch, token) past the last sequence.
  template <class F> void for_unused(F&& fn) const {
    for (int64_t t = p.cu ? p.cu[p.sequences] : p.tokens; t < p.tokens; ++t) fn(t);
  }
};

// A sum of e^{s - top} v and of e^{s - top}.
template <class A> struct PrefixState {
  A* sum;
  SoftmaxSum mass;

  // this = this + later
  void merge(const PrefixState& later, int64_t n) {
    const SoftmaxSum both = merge_sums(mass, later.mass);
    const A keep = mass.sum == 0 ? A{0} : static_cast<A>(std::exp(mass.top - both.top));
    const A take = later.mass.sum == 0 ? A{0} : static_cast<A>(std::exp(later.mass.top - both.top));
    for (int64_t x = 0; x < n; x += Lanes<A>::n) { store(sum + x, load(sum + x) * keep + load(later.sum + x) * take); }
    mass = both;
  }
};

template <class In> class PrefixPoolForward {
  using Rows = PrefixRows<In>;
  using A = typename Rows::A;

 public:
  explicit PrefixPoolForward(const PrefixPoolParams& params) : p_(params), rows_(params) {}

  void run() const {
    const SegmentGrid grid(rows_.groups(), rows_.segment, [this](int64_t g) { return rows_.tokens(g).count; });
    const int64_t ld = rows_.ld;
    if (grid.by_group(0.5)) {
      grid.for_groups([&](int64_t g) {
        const Workspace<A> sums(2 * ld);
        PrefixState<A> before{sums.get(), {0, 0}}, added{sums.get() + ld, {0, 0}};
        std::memset(before.sum, 0, ld * sizeof(A));
        for (int64_t i = 0; i < grid.segments(g); ++i) {
          if (i + 1 < grid.segments(g)) sum_segment(g, i, added);
          write_segment(g, i, before);
          before.merge(added, ld);
        }
      });
    } else {
      const int64_t slots = grid.total() + grid.groups();
      const Workspace<A> sums(slots * ld);
      std::vector<PrefixState<A>> states(slots);
      for (int64_t i = 0; i < slots; ++i) states[i] = {sums.get() + i * ld, {0, 0}};
      grid.for_segments([&](int64_t g, int64_t i) { sum_segment(g, i, states[grid.item(g, i) + g + 1]); });
      grid.for_groups([&](int64_t g) {
        PrefixState<A>* s = &states[grid.item(g, 0) + g];
        std::memset(s[0].sum, 0, ld * sizeof(A));
        const Workspace<A> memory(ld);
        PrefixState<A> running{memory.get(), {0, 0}};
        std::memset(running.sum, 0, ld * sizeof(A));
        for (int64_t i = 0; i < grid.segments(g); ++i) {
          running.merge(s[i + 1], ld);
          std::memcpy(s[i + 1].sum, running.sum, ld * sizeof(A));
          s[i + 1].mass = running.mass;
        }
      });
      grid.for_segments([&](int64_t g, int64_t i) { write_segment(g, i, states[grid.item(g, i) + g]); });
    }
    rows_.for_unused([this](int64_t t) {
      for (int64_t h = 0; h < p_.heads; ++h) {
        store_zero_row(row_at<In>(p_.out, 0, h, t), p_.dim);
        static_cast<A*>(p_.lse)[h * p_.tokens + t] = Rows::kNone;
      }
    });
  }

 private:
  const PrefixPoolParams& p_;
  const Rows rows_;

  // num = num * decay + weight * v, out = num * scale.
  void advance(A* sum, A decay, A weight, const In* v, A scale, In* out) const {
    constexpr int L = Lanes<A>::n;
    int64_t x = 0;
    for (; x + L <= p_.dim; x += L) {
      vec<A> y = load(sum + x) * decay;
      if (weight != 0) y += weight * load_as(v + x, A{});
      store(sum + x, y);
      if (out) store_as(out + x, y * scale);
    }
    for (; x < p_.dim; ++x) {
      A y = sum[x] * decay;
      if (weight != 0) y += weight * to_float(v[x]);
      sum[x] = y;
      if (out) out[x] = From<In>::of(y * scale);
    }
  }

  void sum_segment(int64_t g, int64_t segment, PrefixState<A>& added) const {
    const Stretch s = rows_.tokens(g);
    std::memset(added.sum, 0, rows_.ld * sizeof(A));
    added.mass = {0, 0};
    in_segment(s.count, rows_.segment, segment, [&](int64_t begin, int64_t end) {
      A* weight = static_cast<A*>(thread_scratch(rows_.segment * sizeof(A)));
      A top = Rows::kNone;
      for (int64_t i = begin; i < end; ++i) {
        weight[i - begin] = rows_.score(s, g, i);
        if (weight[i - begin] > top) top = weight[i - begin];
      }
      if (top == Rows::kNone) {  // nothing, or NaN
        top = 0;
      }
      exp_block(weight, end - begin, top, weight);
      double sum = 0;
      for (int64_t i = begin; i < end; ++i) {
        sum += weight[i - begin];
        advance(added.sum, A{1}, weight[i - begin], rows_.v(s, g, i), A{0}, nullptr);
      }
      added.mass = {static_cast<double>(top), sum};
    });
  }

  void write_segment(int64_t g, int64_t segment, const PrefixState<A>& before) const {
    const Stretch s = rows_.tokens(g);
    in_segment(s.count, rows_.segment, segment, [&](int64_t begin, int64_t end) {
      const int64_t n = end - begin;
      A* weight = static_cast<A*>(thread_scratch((2 * rows_.segment + rows_.ld) * sizeof(A)));
      A *decay = weight + rows_.segment, *sum = decay + rows_.segment;
      std::memcpy(sum, before.sum, rows_.ld * sizeof(A));
      A top = before.mass.sum == 0 ? Rows::kNone : static_cast<A>(before.mass.top);
      double mass = before.mass.sum;
      A* lse = rows_.lse(s, g, begin);
      for (int64_t i = 0; i < n; ++i) {
        const A x = rows_.score(s, g, begin + i), last = top;
        top = x > top ? x : top;
        weight[i] = x == Rows::kNone ? x : x - top;
        decay[i] = last == top ? A{0} : last - top;
        lse[i] = top;
      }
      exp_block(weight, n, A{0}, weight);
      exp_block(decay, n, A{0}, decay);
      for (int64_t i = 0; i < n; ++i) {
        mass = mass * decay[i] + weight[i];
        lse[i] = mass == 0 ? Rows::kNone : lse[i] + static_cast<A>(std::log(mass));
        const A scale = mass == 0 ? A{0} : static_cast<A>(1 / mass);
        advance(sum, decay[i], weight[i], rows_.v(s, g, begin + i), scale,
                row_at<In>(p_.out, s.batch, rows_.head(g), s.first + begin + i));
      }
    });
  }
};

template <class In> class PrefixPoolBackward {
  using Rows = PrefixRows<In>;
  using A = typename Rows::A;

 public:
  explicit PrefixPoolBackward(const PrefixPoolBackwardParams& params)
      : b_(params), p_(params.forward), rows_(p_), size_(rows_.ld + Lanes<A>::n) {}

  void run() const {
    const SegmentGrid grid(rows_.groups(), rows_.segment, [this](int64_t g) { return rows_.tokens(g).count; });
    if (grid.by_group(0.5)) {
      grid.for_groups([&](int64_t g) {
        const Workspace<A> sums(2 * size_);
        A *after = sums.get(), *added = after + size_;
        std::memset(after, 0, size_ * sizeof(A));
        for (int64_t i = grid.segments(g) - 1; i >= 0; --i) {
          if (i > 0) sum_segment(g, i, added);
          write_segment(g, i, after);
          if (i > 0) combine(g, i, after, added);
          std::swap(after, added);
        }
      });
    } else {
      // Slot i: what segment i adds, then the sums at its first token.
      const Workspace<A> slots((grid.total() + grid.groups()) * size_);
      const auto slot = [&](int64_t g, int64_t i) { return slots.get() + (grid.item(g, i) + g) * size_; };
      grid.for_segments([&](int64_t g, int64_t i) { sum_segment(g, i, slot(g, i)); });
      grid.for_groups([&](int64_t g) {
        std::memset(slot(g, grid.segments(g)), 0, size_ * sizeof(A));
        for (int64_t i = grid.segments(g) - 1; i > 0; --i) combine(g, i, slot(g, i + 1), slot(g, i));
      });
      grid.for_segments([&](int64_t g, int64_t i) { write_segment(g, i, slot(g, i + 1)); });
    }
    rows_.for_unused([this](int64_t t) {
      for (int64_t h = 0; h < p_.heads; ++h) {
        store_zero_row(row_at<In>(b_.dv, 0, h, t), p_.dim);
        static_cast<In*>(b_.dscore)[h * p_.tokens + t] = From<In>::of(A{0});
      }
    });
  }

 private:
  const PrefixPoolBackwardParams& b_;
  const PrefixPoolParams& p_;
  const Rows rows_;
  const int64_t size_;  // g, then c in its first element

  const In* dout(const Stretch& s, int64_t g, int64_t i) const {
    return row_at<const In>(b_.dout, s.batch, rows_.head(g), s.first + i);
  }
  A dlse(const Stretch& s, int64_t g, int64_t i) const {
    if (!b_.dlse) return 0;
    return static_cast<const A*>(b_.dlse)[(s.batch * p_.heads + rows_.head(g)) * p_.tokens + s.first + i];
  }
  // dout . out - dlse
  A own(const Stretch& s, int64_t g, int64_t i) const {
    const In* out = row_at<const In>(p_.out, s.batch, rows_.head(g), s.first + i);
    return dot_elements_as<A>(dout(s, g, i), out, p_.dim) - dlse(s, g, i);
  }
  A decay(const Stretch& s, int64_t g, int64_t i, int64_t to) const {
    const A a = *rows_.lse(s, g, i), b = *rows_.lse(s, g, to);
    return a == Rows::kNone ? A{0} : std::exp(a - b);
  }

  // sums = decay sums + (dout_i, own_i)
  void take(const Stretch& s, int64_t g, int64_t i, A decay, A* sums) const {
    constexpr int L = Lanes<A>::n;
    const In* d = dout(s, g, i);
    int64_t x = 0;
    for (; x + L <= p_.dim; x += L) store(sums + x, load(sums + x) * decay + load_as(d + x, A{}));
    for (; x < p_.dim; ++x) sums[x] = sums[x] * decay + to_float(d[x]);
    sums[rows_.ld] = sums[rows_.ld] * decay + own(s, g, i);
  }

  __attribute__((noinline)) void sum_segment(int64_t g, int64_t segment, A* added) const {
    const Stretch s = rows_.tokens(g);
    std::memset(added, 0, size_ * sizeof(A));
    in_segment(s.count, rows_.segment, segment, [&](int64_t begin, int64_t end) {
      for (int64_t i = end - 1; i >= begin; --i) take(s, g, i, i + 1 < end ? decay(s, g, i, i + 1) : A{0}, added);
    });
  }

  // added = the sums at the first token of segment i, from those at the first token of the next.
  __attribute__((noinline)) void combine(int64_t g, int64_t i, const A* after, A* added) const {
    const Stretch s = rows_.tokens(g);
    const int64_t first = i * rows_.segment, next = first + rows_.segment;
    if (next >= s.count) return;
    add_scaled_row(added, decay(s, g, first, next), after, size_);
  }

  void write_segment(int64_t g, int64_t segment, const A* after) const {
    const Stretch s = rows_.tokens(g);
    in_segment(s.count, rows_.segment, segment, [&](int64_t begin, int64_t end) {
      A* sums = static_cast<A*>(thread_scratch(size_ * sizeof(A)));
      std::memcpy(sums, after, size_ * sizeof(A));
      for (int64_t i = end - 1; i >= begin; --i) {
        take(s, g, i, i + 1 < s.count ? decay(s, g, i, i + 1) : A{0}, sums);
        const A score = rows_.score(s, g, i);
        In* dv = row_at<In>(b_.dv, s.batch, rows_.head(g), s.first + i);
        A dscore = 0;
        if (score == Rows::kNone) {
          store_zero_row(dv, p_.dim);
        } else {
          const A weight = std::exp(score - *rows_.lse(s, g, i));
          store_scaled_row(dv, weight, sums, p_.dim);
          dscore = weight * (dot_elements_as<A>(sums, rows_.v(s, g, i), p_.dim) - sums[rows_.ld]);
        }
        static_cast<In*>(b_.dscore)[(s.batch * p_.heads + rows_.head(g)) * p_.tokens + s.first + i] =
            From<In>::of(dscore);
      }
    });
  }
};

}  // namespace scan
ATTN_NAMESPACE_END
