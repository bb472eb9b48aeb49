// What the backward pass knows about each query row before it starts: its lse, and
//   delta = <dout, out> - dlse,
// so that dS_ij = P_ij (gate_i <dout_i, v_j> - delta_i) also holds for branches that are merged later and for a
// gradient of the lse.
#pragma once

#include "attn/parallel.h"
#include "cpu/exp.h"
#include "cpu/row_items.h"
#include "cpu/tile_operand.h"

ATTN_NAMESPACE_BEGIN

template <class In> struct BackwardRows {
  using A = Acc<Operand<In>>;
  const AttendBackwardParams& b;
  const AttendParams& p;
  A* delta;  // [B, H, Tq]

  explicit BackwardRows(const AttendBackwardParams& params) : b(params), p(params.forward) {
    delta = new A[static_cast<uint64_t>(p.batch * p.heads * p.tq)];
  }
  ~BackwardRows() { delete[] delta; }
  BackwardRows(const BackwardRows&) = delete;
  BackwardRows& operator=(const BackwardRows&) = delete;

  int64_t row(int64_t batch, int64_t head, int64_t token) const { return (batch * p.heads + head) * p.tq + token; }

  void compute() const {
    constexpr int64_t kRows = 256;  // a few hundred KB an item
    const int64_t strips = (p.tq + kRows - 1) / kRows;
    parallel_items(p.batch * p.heads * strips, [&](int64_t item, int) {
      const int64_t batch = item / strips / p.heads, head = item / strips % p.heads, first = item % strips * kRows;
      const In* out = static_cast<const In*>(p.out.data) + batch * p.out.batch + head * p.out.head;
      const In* dout = static_cast<const In*>(b.dout.data) + batch * b.dout.batch + head * b.dout.head;
      for (int64_t t = first; t < p.tq && t < first + kRows; ++t) {
        const int64_t at = row(batch, head, t);
        if (static_cast<const A*>(p.lse)[at] == -__builtin_inff()) {
          delta[at] = 0;  // an empty row has no gradient, whatever stands in dout
          continue;
        }
        const A sum = inner_product(out + t * p.out.token, dout + t * b.dout.token, p.dim_v);
        delta[at] = b.dlse ? sum - static_cast<const A*>(b.dlse)[at] : sum;
      }
    });
  }

  static A inner_product(const In* x, const In* y, int64_t n) {
    constexpr int L = Lanes<A>::n;
    vec<A> sum{};
    int64_t i = 0;
    for (; i + L <= n; i += L) sum += load_as(x + i, A{}) * load_as(y + i, A{});
    A total = 0;
    for (; i < n; ++i) total += static_cast<A>(to_float(x[i])) * to_float(y[i]);
    for (int k = 0; k < L; ++k) total += sum[k];
    return total;
  }

  // The sink's weight exp(sink - lse) times its score gradient 0 - delta, summed over a head's rows in order.
  void sink_gradients() const {
    parallel_items(p.heads, [&](int64_t head, int) {
      double sum = 0;
      for (int64_t batch = 0; batch < p.batch; ++batch) {
        for (int64_t t = 0; t < p.tq; ++t) {
          const int64_t at = row(batch, head, t);
          const double lse = static_cast<const A*>(p.lse)[at];
          if (lse != -__builtin_inff()) sum -= std::exp(p.sink_logits[head] - lse) * delta[at];
        }
      }
      b.dsink_logits[head] = static_cast<float>(sum);
    });
  }

  // Rows of a block in the form the passes use. An empty row gets lse = +inf, hence weights of exactly 0.
  void load_block(const Sequence& seq, const RowBlock& rows, A* lse2, A* row_delta, A* gate) const {
    for (int32_t r = 0; r < rows.rows; ++r) {
      const int64_t token = seq.q_token + rows.query_of(r), head = rows.head_of(r), at = row(seq.batch, head, token);
      const A lse = static_cast<const A*>(p.lse)[at];
      lse2[r] = lse == -__builtin_inff() ? static_cast<A>(__builtin_inff()) : lse * static_cast<A>(kLog2e);
      row_delta[r] = delta[at];
      gate[r] = p.head_gate.data
                    ? static_cast<const float*>(p.head_gate.data)[seq.batch * p.head_gate.batch +
                                                                  head * p.head_gate.head + token * p.head_gate.token]
                    : 1;
    }
    for (int32_t r = rows.rows; r < rows.rows + 2 * kPanel<Operand<In>>; ++r) {
      lse2[r] = static_cast<A>(__builtin_inff());
      row_delta[r] = gate[r] = 0;
    }
  }
};

ATTN_NAMESPACE_END
