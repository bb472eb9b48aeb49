// The gradients of an attention call: tensors for them, and the comparison with the textbook's in double.
#pragma once

#include <gtest/gtest.h>

#include "attend_case.h"

namespace attn {

// Largest error allowed, as a share of the gradient's largest entry; kSmallest stands for a gradient that cancels to 0
// out of products <dout, v>, whose size goes with the root of dim_v.
template <class E> constexpr double kGradientTolerance = 0;
template <> constexpr double kGradientTolerance<F32> = 2e-5;
template <> constexpr double kGradientTolerance<F64> = 1e-12;
template <> constexpr double kGradientTolerance<BF16> = 0.02;
template <> constexpr double kGradientTolerance<F16> = 0.003;

constexpr double kSmallest = 0.2;

// Gradient tensors, contiguous and full of NaN before the call.
template <class E> struct GradientTensors {
  using Element = typename E::type;
  std::vector<Element> dq, dk, dv;
  std::vector<float> dkey_weight, dsink, dgate;

  explicit GradientTensors(const AttendParams& p)
      : dq(static_cast<size_t>(p.batch * p.heads * p.tq * p.dim), E::put(std::nan(""))),
        dk(static_cast<size_t>(p.batch * p.heads_kv * p.tk * p.dim), E::put(std::nan(""))),
        dv(static_cast<size_t>(p.batch * p.heads_kv * p.tk * p.dim_v), E::put(std::nan(""))),
        dkey_weight(static_cast<size_t>(p.batch * p.heads_kv * p.tk), std::nanf("")),
        dsink(static_cast<size_t>(p.heads), std::nanf("")),
        dgate(static_cast<size_t>(p.batch * p.heads * p.tq), std::nanf("")) {}

  bool same_bits(const GradientTensors& other) const {
    auto same = [](const auto& x, const auto& y) {
      if (x.size() != y.size()) return false;
      return x.empty() || std::memcmp(x.data(), y.data(), x.size() * sizeof(x[0])) == 0;
    };
    return same(dq, other.dq) && same(dk, other.dk) && same(dv, other.dv) && same(dkey_weight, other.dkey_weight) &&
           same(dsink, other.dsink) && same(dgate, other.dgate);
  }
};

template <class E> inline AttendBackwardParams backward_params(AttendCase<E>& c, GradientTensors<E>& g) {
  AttendBackwardParams b{};
  b.forward = c.params();
  const AttendParams& p = b.forward;
  auto view = [](auto& x, int64_t heads, int64_t tokens, int64_t dim) {
    return View4{x.data(), heads * tokens * dim, tokens * dim, dim};
  };
  b.dout = c.dout.view();
  b.dlse = c.o.dlse ? c.dlse.data() : nullptr;
  b.dq = view(g.dq, p.heads, p.tq, p.dim);
  b.dk = view(g.dk, p.heads_kv, p.tk, p.dim);
  b.dv = view(g.dv, p.heads_kv, p.tk, p.dim_v);
  if (c.o.key_weights) b.dkey_log_weight = g.dkey_weight.data();
  if (c.o.sinks) b.dsink_logits = g.dsink.data();
  if (c.o.gate && !c.o.skip_gated) b.dhead_gate = g.dgate.data();
  return b;
}

template <class Get>
inline void compare_gradient(const char* name, Expected& want, int64_t batch, double tolerance, double smallest,
                             Get&& get) {
  double largest = smallest;
  for (size_t r = 0; r < want.known.size(); ++r) {
    for (int64_t d = 0; want.known[r] && d < want.dim; ++d) {
      largest = std::max(largest, std::abs(want.value[r * static_cast<size_t>(want.dim) + static_cast<size_t>(d)]));
    }
  }
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < want.heads; ++h) {
      for (int64_t t = 0; t < want.tokens; ++t) {
        if (!want.known[want.row(b, h, t)]) continue;
        for (int64_t d = 0; d < want.dim; ++d) {
          const double x = want.at(b, h, t)[d];
          ASSERT_NEAR(get(want.row(b, h, t) * static_cast<size_t>(want.dim) + static_cast<size_t>(d)), x,
                      tolerance * largest)
              << name << " of " << b << " " << h << " " << t << " feature " << d;
        }
      }
    }
  }
}

template <class E>
inline void compare_gradients(AttendCase<E>& c, const AttendBackwardParams& b, const GradientTensors<E>& g) {
  typename AttendCase<E>::Gradients want;
  c.expect_backward(want);
  // The forward's own rounding of a logit goes with the logit's size.
  const double tolerance = kGradientTolerance<E> * std::max(1., c.scale * std::sqrt(c.o.dim));
  const int64_t batch = b.forward.batch;
  const double smallest = kSmallest * std::sqrt(c.o.dim_v);
  auto element = [](const auto& x) { return [&x](size_t i) { return E::get(x[i]); }; };
  auto number = [](const auto& x) { return [&x](size_t i) { return x[i]; }; };
  compare_gradient("dq", want.dq, batch, tolerance, smallest, element(g.dq));
  compare_gradient("dk", want.dk, batch, tolerance, smallest, element(g.dk));
  compare_gradient("dv", want.dv, batch, tolerance, smallest, element(g.dv));
  const double as_float = std::max(tolerance, 2e-7);  // these are float32 for every input type
  if (b.dkey_log_weight)
    compare_gradient("dkey_log_weight", want.dkey_weight, batch, as_float, smallest, number(g.dkey_weight));
  if (b.dsink_logits && batch > 0) compare_gradient("dsink_logits", want.dsink, 1, as_float, smallest, number(g.dsink));
  if (b.dhead_gate) compare_gradient("dhead_gate", want.dgate, batch, as_float, smallest, number(g.dgate));
}

// Per-sequence key lengths are decoding's, which has no backward.
inline AttendOptions trained(AttendOptions o) {
  o.schedule.key_lengths.clear();
  return o;
}

}  // namespace attn
