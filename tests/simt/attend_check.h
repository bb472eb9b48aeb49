// What tests of CUDA kernels that attend share: random calls that are small enough, and the comparison with the
// textbook in double (the CPU tests' oracle).
#pragma once

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "../cpp/attend_edges.h"
#include "cuda/element.h"

namespace attn {

template <class E> using DeviceElement = cuda::Element<E::dtype>;

// As in the CPU's test: share of 1/2 + |value| (16-bit weights are rounded to E before they multiply v).
template <class E>
constexpr double kTolerance = E::dtype == DType::bf16  ? 0.008
                              : E::dtype == DType::f16 ? 0.001
                                                       : 4e-6;
constexpr double kLseTolerance = 4e-6;

// Calls f(integral_constant<kDim>) for the kernel that holds both head dimensions.
template <class F> inline void with_dim(const AttendParams& p, F&& f) {
  const int64_t dim = std::max(p.dim, p.dim_v);
  ASSERT_LE(dim, 256);
  if (dim <= 64) f(std::integral_constant<int, 64>{});
  else if (dim <= 128) f(std::integral_constant<int, 128>{});
  else f(std::integral_constant<int, 256>{});
}

template <class E> inline bool same_bits(const AttendCase<E>& a, const AttendCase<E>& b) {
  return std::memcmp(a.out.data.data(), b.out.data.data(), a.out.data.size() * sizeof(a.out.data[0])) == 0 &&
         std::memcmp(a.lse.data(), b.lse.data(), a.lse.size() * sizeof(a.lse[0])) == 0;
}

template <class E> inline void compare(AttendCase<E>& c) {
  const AttendParams p = c.params();
  const double logits = std::max(1., c.scale * std::sqrt(c.o.dim));
  Expected out, lse;
  c.expect_forward(out, lse);
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t h = 0; h < p.heads; ++h) {
      for (int64_t t = 0; t < p.tq; ++t) {
        const size_t row = lse.row(b, h, t);
        const auto where = [&] { return testing::Message() << "batch " << b << " head " << h << " row " << t; };
        if (lse.known[row]) {
          const double want = *lse.at(b, h, t), got = c.lse[row];
          if (std::isinf(want)) ASSERT_EQ(got, want) << "lse of " << where();
          else ASSERT_NEAR(got, want, logits * kLseTolerance * (1 + std::abs(want))) << "lse of " << where();
        }
        for (int64_t d = 0; out.known[row] && d < p.dim_v; ++d) {
          const double want = out.at(b, h, t)[d], bound = 0.5 * std::abs(c.gate_of(b, h, t)) + std::abs(want);
          ASSERT_NEAR(c.out.get(b, h, t, d), want, logits * kTolerance<E> * bound) << where() << " feature " << d;
        }
        for (int64_t d = p.dim_v; d < p.dim_v + c.out.gap; ++d)
          ASSERT_TRUE(std::isnan(c.out.get(b, h, t, d))) << where() << " was written past its end";
      }
    }
  }
}

// Fibers are slow: calls as random as the CPU's, with fewer heads. Rows of 62 and 126 elements lie 128 and 256 bytes
// apart, so that they are copied by cp.async; the others aren't aligned.
inline AttendOptions small_call(std::mt19937& random) {
  AttendOptions o;
  do o = random_attend(random);
  while (std::max(o.dim, o.dim_v) > 64 && random() % 4 != 0);
  if (random() % 2) o.dim = o.dim > 64 ? 126 : 62, o.dim_v = o.dim_v > 64 ? 126 : 62;
  ScheduleOptions& s = o.schedule;
  s.heads = std::min<int64_t>(s.heads / s.heads_kv, 2);
  s.heads_kv = std::min<int64_t>(s.heads_kv, 3 - s.heads);
  s.heads *= s.heads_kv;
  s.selection_heads = s.selection_heads > 1 ? s.heads : 1;
  s.dense_heads = std::min(s.dense_heads, s.heads_kv);
  return o;
}

// Index tensors that hold anything: on a GPU nobody looks at them before a kernel does, which then must end and stay
// inside the tensors (the sanitized build sees).
class AnyIndices {
 public:
  // In place of the call's: lists, or bounds of two packed sequences, of the queries or of the keys.
  void put(AttendParams& p, bool queries) {
    const auto lists = [&](int64_t block) { return p.heads * ((p.tq + block - 1) / block); };
    if (p.schedule == ScheduleKind::layout) {
      LayoutView& l = p.layout;
      l.count = l.full_count = take(lists(l.block_q), kFar);
      l.index = l.full_index = take(lists(l.block_q) * l.width, kFar);
      l.slot = take(lists(l.block_q) * l.width, kFar);
    } else if (p.schedule == ScheduleKind::gathered) {
      p.selection.count = take(lists(p.selection.block_q), kFar);
      p.selection.index = take(lists(p.selection.block_q) * p.selection.width, kFar);
    } else {
      const int32_t tokens = static_cast<int32_t>(p.tq);
      (queries ? p.cu_q : p.cu_k) =
          take(3, {-1000, -1, 0, 3, p.cu_q[1], tokens, tokens + 1, static_cast<int32_t>(p.tk), INT32_MAX, INT32_MIN});
    }
  }

 private:
  static inline const std::vector<int32_t> kFar{
      -1, 0, 1, 2, 3, 1000, INT32_MAX, INT32_MIN, INT32_MAX / 32, INT32_MAX / 64};

  const int32_t* take(int64_t n, const std::vector<int32_t>& values) {
    std::vector<int32_t>& x = kept_.emplace_back(n);
    for (int32_t& v : x) v = values[random_() % values.size()];
    return x.data();
  }

  std::mt19937 random_{5};
  std::vector<std::vector<int32_t>> kept_;
};

}  // namespace attn
