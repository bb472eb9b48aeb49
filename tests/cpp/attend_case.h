// A whole attention call as random data: tensors with gaps between rows (filled with NaN), optional modifiers, and the
// result and gradients by the textbook formulas in double.
#pragma once

#include <cmath>
#include <limits>
#include <memory>
#include <ostream>

#include "schedule_case.h"
#include "test_tensor.h"

namespace attn {

// Sanitizers make a call several times slower.
#if defined(__SANITIZE_ADDRESS__)
constexpr int kRandomCalls = 24;
#else
constexpr int kRandomCalls = 80;
#endif

struct AttendOptions {
  ScheduleOptions schedule;
  int64_t dim = 32, dim_v = 32;
  double scale = 0, softcap = 0;  // scale 0: dim^-1/2
  bool segments = false, key_weights = false, sinks = false, gate = false, skip_gated = false, dlse = false;
  bool token_major = false;  // [B, T, H, D] in memory
  int64_t page = 0;          // > 0: k and v are paged (forward only)
  int nan_keys = 0;          // keys that hold NaN and infinity; rows that see one are not compared
  int64_t gap = 2;           // elements between the rows of a tensor

  friend std::ostream& operator<<(std::ostream& out, const AttendOptions& o) {
    out << o.schedule << " D" << o.dim << "/" << o.dim_v << " scale " << o.scale << " softcap " << o.softcap;
    if (o.segments) out << " segments";
    if (o.key_weights) out << " key weights";
    if (o.sinks) out << " sinks";
    if (o.gate) out << " gate";
    if (o.skip_gated) out << " skip gated";
    if (o.dlse) out << " dlse";
    if (o.token_major) out << " token major";
    if (o.page) out << " pages of " << o.page;
    if (o.nan_keys) out << " NaN keys " << o.nan_keys;
    return out;
  }
};

// A result in double, and which of its rows are comparable.
struct Expected {
  int64_t heads, tokens, dim;
  std::vector<double> value;
  std::vector<char> known;  // by row
  Expected() = default;
  Expected(int64_t b, int64_t h, int64_t t, int64_t d)
      : heads(h), tokens(t), dim(d), value(static_cast<size_t>(b * h * t * d), 0),
        known(static_cast<size_t>(b * h * t), 1) {}
  size_t row(int64_t b, int64_t h, int64_t t) const { return static_cast<size_t>((b * heads + h) * tokens + t); }
  double* at(int64_t b, int64_t h, int64_t t) { return value.data() + row(b, h, t) * static_cast<size_t>(dim); }
};

template <class E> class AttendCase {
 public:
  using Stat = typename E::stat;

  AttendCase(const AttendOptions& options, uint32_t seed)
      : o(options), schedule(options.schedule, seed), s(schedule.o), scale(o.scale ? o.scale : 1 / std::sqrt(o.dim)),
        random_(seed + 1) {
    q = tensor(s.heads, s.tq, o.dim);
    k = tensor(s.heads_kv, s.tk, o.dim);
    v = tensor(s.heads_kv, s.tk, o.dim_v);
    out = tensor(s.heads, s.tq, o.dim_v);
    dout = tensor(s.heads, s.tq, o.dim_v);
    for (auto* x : {&q, &k, &v, &dout}) x->randomize(random_);
    // Callers mark rows outside every sequence as empty; all others are the kernel's to write.
    lse.assign(rows(), -std::numeric_limits<Stat>::infinity());
    for (const TestSequence& seq : schedule.sequences())
      for (int64_t h = 0; h < s.heads; ++h) {
        Stat* first = lse.data() + (seq.batch * s.heads + h) * s.tq + seq.q_token;
        std::fill(first, first + seq.queries, std::numeric_limits<Stat>::quiet_NaN());
      }
    if (o.segments) make_segments();
    if (o.key_weights) fill(key_weight, s.batch * s.heads_kv * s.tk, 1);
    if (o.sinks) fill(sink, s.heads, 1);
    if (o.gate) make_gate();
    if (o.dlse) {
      dlse.resize(rows());
      for (Stat& x : dlse) x = static_cast<Stat>(normal_(random_));
    }
    make_unseen_nan();
    for (int i = 0; i < o.nan_keys && s.tk > 0; ++i) make_nan_key();
    if (o.page) make_pages();
    q_ = q.exact();
    k_ = k.exact();
    v_ = v.exact();
    dout_ = dout.exact();
  }
  AttendCase(const AttendCase&) = delete;
  AttendCase& operator=(const AttendCase&) = delete;

  const AttendOptions o;
  const ScheduleCase schedule;
  const ScheduleOptions& s;
  const double scale;
  TestTensor<E> q, k, v, out, dout;
  std::vector<Stat> lse, dlse;
  std::vector<float> key_weight, sink, gate;
  std::vector<int32_t> segment_q, segment_k;

  size_t rows() const { return static_cast<size_t>(s.batch * s.heads * s.tq); }

  AttendParams params() {
    AttendParams p = schedule.params();
    p.dtype = E::dtype;
    p.dim = o.dim;
    p.dim_v = o.dim_v;
    p.q = q.view();
    p.k = o.page ? k_pages_.view() : k.view();
    p.v = o.page ? v_pages_.view() : v.view();
    if (o.page) p.paging = {table_.data(), pages_, o.page, k_pages_.batch};
    p.out = out.view();
    p.lse = lse.data();
    p.scale = scale;
    p.softcap = o.softcap;
    if (o.segments) {
      p.segment_q = {segment_q.data(), s.tq, 1};
      p.segment_k = {segment_k.data(), s.tk, 1};
    }
    if (o.key_weights) p.key_log_weight = {key_weight.data(), s.heads_kv * s.tk, s.tk, 1};
    if (o.sinks) p.sink_logits = sink.data();
    if (o.gate) p.head_gate = {gate.data(), s.heads * s.tq, s.tq, 1};
    p.skip_gated = o.skip_gated;
    return p;
  }

  bool sees(const TestSequence& q_seq, int64_t h, int64_t i, int64_t j) const {
    if (o.segments &&
        segment_q[q_seq.batch * s.tq + q_seq.q_token + i] != segment_k[q_seq.batch * s.tk + q_seq.k_token + j]) {
      return false;
    }
    return schedule.sees(q_seq, h, i, j);
  }

  double gate_of(int64_t b, int64_t h, int64_t t) const { return o.gate ? gate[(b * s.heads + h) * s.tq + t] : 1; }

  // out and lse; rows outside every sequence are not known.
  void expect_forward(Expected& want_out, Expected& want_lse) {
    want_out = Expected(s.batch, s.heads, s.tq, o.dim_v);
    want_lse = Expected(s.batch, s.heads, s.tq, 1);
    want_out.known.assign(want_out.known.size(), 0);
    want_lse.known = want_out.known;
    for_each_row([&](const Row& row) {
      double* to = want_out.at(row.b, row.h, row.t);
      for (size_t n = 0; n < row.key.size(); ++n)
        for (int64_t d = 0; d < o.dim_v; ++d)
          to[d] += gate_of(row.b, row.h, row.t) * row.weight[n] * v_row(row, row.key[n])[d];
      want_out.known[want_out.row(row.b, row.h, row.t)] = row.finite;
      *want_lse.at(row.b, row.h, row.t) = row.lse;
      want_lse.known[want_lse.row(row.b, row.h, row.t)] =
          row.finite && !(o.skip_gated && gate_of(row.b, row.h, row.t) == 0);
    });
  }

  struct Gradients { Expected dq, dk, dv, dkey_weight, dsink, dgate; };

  // Gradients of sum(out * dout) + sum(lse * dlse). Everything a NaN key touches is unknown.
  void expect_backward(Gradients& g) {
    g = {Expected(s.batch, s.heads, s.tq, o.dim),
         Expected(s.batch, s.heads_kv, s.tk, o.dim),
         Expected(s.batch, s.heads_kv, s.tk, o.dim_v),
         Expected(s.batch, s.heads_kv, s.tk, 1),
         Expected(1, s.heads, 1, 1),
         Expected(s.batch, s.heads, s.tq, 1)};
    g.dq.known.assign(g.dq.known.size(), 0);
    g.dgate.known = g.dq.known;
    g.dk.known.assign(g.dk.known.size(), 0);
    for (const TestSequence& seq : schedule.sequences())
      for (int64_t kv = 0; kv < s.heads_kv; ++kv)
        for (int64_t j = 0; j < seq.keys; ++j) g.dk.known[g.dk.row(seq.batch, kv, seq.k_token + j)] = 1;
    // Keys past key_lengths get a gradient too: zero.
    if (s.cu_q.empty()) g.dk.known.assign(g.dk.known.size(), 1);
    g.dv.known = g.dkey_weight.known = g.dk.known;
    for_each_row([&](const Row& row) {
      const size_t at = g.dq.row(row.b, row.h, row.t);
      g.dq.known[at] = g.dgate.known[at] = row.finite;
      if (!row.finite) {
        for (int64_t j : row.key) {
          const size_t key = g.dk.row(row.b, row.kv, j);
          g.dk.known[key] = g.dv.known[key] = g.dkey_weight.known[key] = 0;
        }
        g.dsink.known[static_cast<size_t>(row.h)] = 0;
        return;
      }
      const double row_gate = gate_of(row.b, row.h, row.t), d_lse = o.dlse ? dlse[at] : 0;
      std::vector<double> d_weight(row.key.size(), 0);
      double mean = 0;
      for (size_t n = 0; n < row.key.size(); ++n) {
        for (int64_t d = 0; d < o.dim_v; ++d) d_weight[n] += dout_row(row)[d] * v_row(row, row.key[n])[d];
        mean += row.weight[n] * d_weight[n];
      }
      *g.dgate.at(row.b, row.h, row.t) = mean;
      if (o.sinks && std::isfinite(row.lse))
        *g.dsink.at(0, row.h, 0) += std::exp(sink[row.h] - row.lse) * (d_lse - row_gate * mean);
      for (size_t n = 0; n < row.key.size(); ++n) {
        const int64_t j = row.key[n];
        const double d_logit = row.weight[n] * (row_gate * (d_weight[n] - mean) + d_lse);
        *g.dkey_weight.at(row.b, row.kv, j) += d_logit;
        const double d_dot = d_logit * row.slope[n] * scale;
        for (int64_t d = 0; d < o.dim; ++d) {
          g.dq.at(row.b, row.h, row.t)[d] += d_dot * k_row(row, j)[d];
          g.dk.at(row.b, row.kv, j)[d] += d_dot * q_row(row)[d];
        }
        for (int64_t d = 0; d < o.dim_v; ++d)
          g.dv.at(row.b, row.kv, j)[d] += row_gate * row.weight[n] * dout_row(row)[d];
      }
    });
  }

 private:
  // One row's softmax.
  struct Row {
    int64_t b, h, kv, t;       // t: token in the batch entry
    std::vector<int64_t> key;  // tokens it sees
    std::vector<double> weight, slope;
    double lse;
    bool finite;  // sees no NaN key
  };

  template <class F> void for_each_row(F&& f) {
    for (const TestSequence& seq : schedule.sequences()) {
      for (int64_t h = 0; h < s.heads; ++h) {
        for (int64_t i = 0; i < seq.queries; ++i) {
          Row row{seq.batch, h, h / (s.heads / s.heads_kv), seq.q_token + i, {}, {}, {}, 0, true};
          double top = o.sinks ? sink[h] : -INFINITY;
          for (int64_t j = 0; j < seq.keys; ++j) {
            if (!sees(seq, h, i, j)) continue;
            const int64_t token = seq.k_token + j;
            if (nan_key_[row.b * s.tk + token]) row.finite = false;
            double x = 0;
            const double *qr = q_row(row), *kr = k_row(row, token);
            for (int64_t d = 0; d < o.dim; ++d) x += qr[d] * kr[d];
            x *= scale;
            row.slope.push_back(1);
            if (o.softcap > 0) {
              const double t = std::tanh(x / o.softcap);
              x = o.softcap * t;
              row.slope.back() = 1 - t * t;
            }
            if (o.key_weights) x += key_weight[(row.b * s.heads_kv + row.kv) * s.tk + token];
            row.key.push_back(token);
            row.weight.push_back(x);
            top = std::max(top, x);
          }
          double sum = o.sinks ? std::exp(sink[h] - top) : 0;
          for (double& x : row.weight) sum += x = std::exp(x - top);
          for (double& x : row.weight) x /= sum;
          row.lse = sum == 0 ? -INFINITY : top + std::log(sum);
          f(row);
        }
      }
    }
  }

  static const double* row_of(const std::vector<double>& x, int64_t heads, int64_t tokens, int64_t dim, int64_t b,
                              int64_t h, int64_t t) {
    return x.data() + ((b * heads + h) * tokens + t) * dim;
  }
  const double* q_row(const Row& row) const { return row_of(q_, s.heads, s.tq, o.dim, row.b, row.h, row.t); }
  const double* dout_row(const Row& row) const { return row_of(dout_, s.heads, s.tq, o.dim_v, row.b, row.h, row.t); }
  const double* k_row(const Row& row, int64_t t) const { return row_of(k_, s.heads_kv, s.tk, o.dim, row.b, row.kv, t); }
  const double* v_row(const Row& row, int64_t t) const {
    return row_of(v_, s.heads_kv, s.tk, o.dim_v, row.b, row.kv, t);
  }

  TestTensor<E> tensor(int64_t heads, int64_t tokens, int64_t dim) const {
    return TestTensor<E>(s.batch, heads, tokens, dim, o.token_major, o.gap);
  }

  void fill(std::vector<float>& x, int64_t n, double spread) {
    x.resize(static_cast<size_t>(n));
    for (float& value : x) value = static_cast<float>(spread * normal_(random_));
  }

  void make_segments() {
    // Sorted ids for half of the cases (documents), any order for the rest.
    const bool sorted = random_() % 2;
    auto ids = [&](std::vector<int32_t>& x, int64_t tokens) {
      for (int64_t b = 0; b < s.batch; ++b) {
        std::vector<int32_t> one(static_cast<size_t>(tokens));
        for (int32_t& id : one) id = static_cast<int32_t>(random_() % 3);
        if (sorted) std::sort(one.begin(), one.end());
        x.insert(x.end(), one.begin(), one.end());
      }
    };
    ids(segment_q, s.tq);
    ids(segment_k, s.tk);
  }

  void make_gate() {
    fill(gate, s.batch * s.heads * s.tq, 1);
    for (int64_t h = 0; h < s.batch * s.heads; ++h) {
      const int kind = static_cast<int>(random_() % 3);  // a whole head off, single rows off, none off
      for (int64_t t = 0; t < s.tq; ++t) {
        if (kind == 0 || (kind == 1 && random_() % 2)) gate[static_cast<size_t>(h * s.tq + t)] = 0;
      }
    }
  }

  // Keys that no row sees may hold anything.
  void make_unseen_nan() {
    nan_key_.assign(static_cast<size_t>(s.batch * s.tk), 0);
    std::vector<char> seen(static_cast<size_t>(s.batch * s.heads_kv * s.tk), 0);
    for (const TestSequence& seq : schedule.sequences())
      for (int64_t h = 0; h < s.heads; ++h)
        for (int64_t i = 0; i < seq.queries; ++i)
          for (int64_t j = 0; j < seq.keys; ++j) {
            if (!sees(seq, h, i, j)) continue;
            seen[static_cast<size_t>((seq.batch * s.heads_kv + h / (s.heads / s.heads_kv)) * s.tk + seq.k_token + j)] =
                1;
          }
    for (int64_t b = 0; b < s.batch; ++b)
      for (int64_t h = 0; h < s.heads_kv; ++h)
        for (int64_t t = 0; t < s.tk; ++t) {
          if (!seen[static_cast<size_t>((b * s.heads_kv + h) * s.tk + t)]) poison(b, h, t);
        }
  }

  void make_nan_key() {
    const int64_t b = static_cast<int64_t>(random_() % s.batch), t = static_cast<int64_t>(random_() % s.tk);
    nan_key_[static_cast<size_t>(b * s.tk + t)] = 1;
    for (int64_t h = 0; h < s.heads_kv; ++h) poison(b, h, t);
  }

  void poison(int64_t b, int64_t h, int64_t t) {
    for (int64_t d = 0; d < o.dim; ++d) k.at(b, h, t, d) = E::put(d % 3 == 1 ? INFINITY : std::nan(""));
    for (int64_t d = 0; d < o.dim_v; ++d) v.at(b, h, t, d) = E::put(d % 3 == 1 ? -INFINITY : std::nan(""));
  }

  void make_pages() {
    pages_ = (s.tk + o.page - 1) / o.page;
    const int64_t spare = 2, total = s.batch * pages_ + spare;
    std::vector<int32_t> free_pages(static_cast<size_t>(total));
    for (int64_t i = 0; i < total; ++i) free_pages[static_cast<size_t>(i)] = static_cast<int32_t>(i);
    std::shuffle(free_pages.begin(), free_pages.end(), random_);
    table_.assign(free_pages.begin(), free_pages.begin() + s.batch * pages_);
    k_pages_ = TestTensor<E>(total, s.heads_kv, o.page, o.dim, o.token_major);
    v_pages_ = TestTensor<E>(total, s.heads_kv, o.page, o.dim_v, o.token_major);
    for (int64_t b = 0; b < s.batch; ++b)
      for (int64_t h = 0; h < s.heads_kv; ++h)
        for (int64_t t = 0; t < s.tk; ++t) {
          const int64_t page = table_[static_cast<size_t>(b * pages_ + t / o.page)];
          for (int64_t d = 0; d < o.dim; ++d) k_pages_.at(page, h, t % o.page, d) = k.at(b, h, t, d);
          for (int64_t d = 0; d < o.dim_v; ++d) v_pages_.at(page, h, t % o.page, d) = v.at(b, h, t, d);
        }
  }

  std::mt19937 random_;
  std::normal_distribution<double> normal_;
  std::vector<char> nan_key_;  // [B, Tk]
  TestTensor<E> k_pages_, v_pages_;
  std::vector<double> q_, k_, v_, dout_;  // the tensors' values, contiguous
  std::vector<int32_t> table_;
  int64_t pages_ = 0;
};

inline AttendOptions random_attend(std::mt19937& random) {
  auto pick = [&](std::initializer_list<int64_t> values) { return values.begin()[random() % values.size()]; };
  auto chance = [&](double p) { return std::uniform_real_distribution<>(0, 1)(random) < p; };
  AttendOptions o;
  o.schedule = random_schedule(random);
  o.dim = pick({1, 7, 16, 33, 64, 80, 136});
  o.dim_v = chance(0.6) ? o.dim : pick({1, 5, 24, 64, 128, 200});
  if (chance(0.3)) o.scale = 0.7;
  if (chance(0.2)) o.softcap = 2.5;
  o.segments = chance(0.2);
  o.key_weights = chance(0.25);
  o.sinks = chance(0.2);
  o.gate = chance(0.2);
  o.skip_gated = o.gate && chance(0.5);
  o.dlse = !o.skip_gated && chance(0.4);
  o.token_major = chance(0.5);
  o.nan_keys = chance(0.2) ? 2 : 0;
  return o;
}

}  // namespace attn
