// The runner itself: right kernels run and are right, each kind of wrong one is reported.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "cuda/seam.h"
#include "simt/runner.h"

namespace attn {
namespace {

using namespace seam;

template <class F> std::string error_of(F&& f) {
  try {
    f();
  } catch (const simt::Error& e) { return e.what(); }
  return "";
}
#define EXPECT_REPORT(call, part) \
  EXPECT_NE(error_of([&] { call; }).find(part), std::string::npos) << error_of([&] { call; })

enum class Fault { none, no_barrier, no_second_barrier, two_places, other_barrier, early_exit, half_warp };

// out[i] = sum of the block's inputs up to and including i, through shared memory. With faults.
template <Fault kFault> struct PrefixSum {
  static constexpr int kThreads = 128;
  struct Params {
    const float* in;
    float* out;
    int n;
  };
  struct Shared { float x[kThreads]; };
  static void run(const Params& p, Shared& s) {
    const int t = thread(), at = block_x() * kThreads + t;
    s.x[t] = at < p.n ? p.in[at] : 0;
    if (kFault == Fault::early_exit && at >= p.n) return;
    if (kFault == Fault::two_places) {
      if (warp() == 2) sync_block();
      else sync_block();
    }
    if (kFault == Fault::other_barrier && warp() == 3) sync_named(3, kThreads);
    if (kFault == Fault::half_warp && lane() < 16) sync_warp();
    if (kFault == Fault::half_warp && lane() >= 16) ballot(true);
    if (kFault != Fault::no_barrier) sync_block();
    for (int step = 1; step < kThreads; step *= 2) {
      const float add = t >= step ? s.x[t - step] : 0;
      if (kFault != Fault::no_second_barrier) sync_block();
      s.x[t] += add;
      sync_block();
    }
    if (at < p.n) p.out[at] = s.x[t];
  }
};

template <Fault kFault> void run_prefix(simt::Order order = simt::Order::forward) {
  const int n = 300;
  std::vector<float> in, out(n, NAN);
  for (int i = 0; i < n; ++i) in.push_back(static_cast<float>(i % 7));
  simt::launch<PrefixSum<kFault>>({3}, {in.data(), out.data(), n}, order);
  for (int i = 0; i < n; ++i) {
    const float want = in[i] + (i % 128 ? out[i - 1] : 0);
    ASSERT_EQ(out[i], want) << i;
  }
}

TEST(Simt, RunsAKernelInAnyOrder) {
  run_prefix<Fault::none>();
  run_prefix<Fault::none>(simt::Order::backward);
  run_prefix<Fault::none>(simt::Order::mixed);
}

TEST(Simt, MissingAndDivergentBarriersAreReported) {
  EXPECT_REPORT(run_prefix<Fault::two_places>(), "divergence: thread 0 waits at barrier 0");
  EXPECT_REPORT(run_prefix<Fault::other_barrier>(),
                "deadlock in block 0,0,0: 96 of 128 threads (first: 0) wait at barrier 0");
  EXPECT_REPORT(run_prefix<Fault::early_exit>(), "deadlock in block 2,0,0: 44 of 128 threads");
  EXPECT_REPORT(run_prefix<Fault::half_warp>(), "waits at sync_warp");
  // The runner is fit for use after an error.
  run_prefix<Fault::none>();
}

#if defined(ATTN_SIMT_RACES)
TEST(Simt, SharedMemoryRacesAreReported) {
  for (simt::Order order : {simt::Order::forward, simt::Order::backward, simt::Order::mixed}) {
    EXPECT_REPORT(run_prefix<Fault::no_barrier>(order), "shared memory");
    EXPECT_REPORT(run_prefix<Fault::no_second_barrier>(order), "shared memory race");
  }
}

// Warps exchange through a named barrier, lanes through sync_warp; a shuffle orders nothing.
template <int kVariant> struct Exchange {
  static constexpr int kThreads = 128;
  struct Params { int* out; };
  struct Shared { int x[kThreads]; };
  static void run(const Params& p, Shared& s) {
    const int t = thread();
    s.x[t] = 3 * t;
    int from = t;
    if (kVariant == 0) sync_warp();
    if (kVariant == 1) shuffle(t, 0);
    if (kVariant <= 1) from = t ^ 1;
    if (kVariant == 2 || kVariant == 3) sync_named(1 + warp() / 2, 64);
    if (kVariant == 2) from = t ^ 32;
    if (kVariant == 3) from = t ^ 64;
    p.out[t] = s.x[from];
  }
};

template <int kVariant> void run_exchange() {
  std::vector<int> out(128);
  simt::launch<Exchange<kVariant>>({}, {out.data()});
  for (int t = 0; t < 128; ++t) ASSERT_EQ(out[t], 3 * (t ^ (kVariant == 0 ? 1 : 32)));
}

TEST(Simt, WhatOrdersMemory) {
  run_exchange<0>();
  run_exchange<2>();
  EXPECT_REPORT(run_exchange<1>(), "shared memory race: read");
  EXPECT_REPORT(run_exchange<3>(), "shared memory");
}

struct Unwritten {
  static constexpr int kThreads = 32;
  struct Params { float* out; };
  struct Shared { float x[33]; };
  static void run(const Params& p, Shared& s) {
    s.x[thread()] = 1;
    sync_block();
    p.out[thread()] = s.x[thread() + 1];
  }
};

TEST(Simt, UnwrittenSharedMemoryIsReported) {
  float out[32];
  EXPECT_REPORT(simt::launch<Unwritten>({}, {out}), "read of what nobody wrote by thread 31 at byte 128");
}
#endif

// Every lane gets the sum of its own warp.
struct WarpSum {
  static constexpr int kThreads = 64;
  using Params = int32_t*;
  struct Shared {};
  static void run(const Params& out, Shared&) { out[thread()] = reduce_add(thread() * thread() - 1000); }
};

TEST(SimtRunner, ReduceAddIsTheSumOfAWarp) {
  std::vector<int32_t> out(64, 7);
  simt::launch<WarpSum>({}, out.data(), simt::Order::mixed);
  int32_t want[2] = {};
  for (int t = 0; t < 64; ++t) want[t / 32] += t * t - 1000;
  for (int t = 0; t < 64; ++t) EXPECT_EQ(out[static_cast<size_t>(t)], want[t / 32]);
  EXPECT_EQ(popcount(0x80000101u), 3u);
}

enum class Whole { right, misaligned_load, misaligned_store, unordered };

// Each thread moves eight bytes as one to its neighbour, through shared memory, and reads a word of the other one's.
template <Whole kFault> struct WholeAccesses {
  static constexpr int kThreads = 32;
  struct alignas(8) Pair { float low, high; };
  struct Params {
    const float* in;
    float* out;
    uint32_t* words;
  };
  struct Shared { Pair x[kThreads]; };
  static void run(const Params& p, Shared& s) {
    const int t = thread(), other = t ^ 1;
    const float* in = p.in + 2 * t + (kFault == Whole::misaligned_load);
    store_whole(&s.x[t], load_whole<Pair>(in));
    if (kFault != Whole::unordered) sync_warp();
    p.words[t] = load_word(reinterpret_cast<const uint32_t*>(&s.x[other].high));
    store_whole(p.out + 2 * t + (kFault == Whole::misaligned_store), load_whole<Pair>(&s.x[other]));
  }
};

template <Whole kFault> void run_whole() {
  alignas(8) float in[66], out[66];
  uint32_t words[32];
  for (int i = 0; i < 66; ++i) in[i] = static_cast<float>(i) - 20.5f, out[i] = NAN;
  simt::launch<WholeAccesses<kFault>>({}, {in, out, words}, simt::Order::mixed);
  for (int t = 0; t < 32; ++t) {
    EXPECT_EQ(out[2 * t], in[2 * (t ^ 1)]);
    EXPECT_EQ(out[2 * t + 1], in[2 * (t ^ 1) + 1]);
    EXPECT_EQ(float_of(words[t]), in[2 * (t ^ 1) + 1]);
  }
  EXPECT_TRUE(std::isnan(out[64]));
}

TEST(Simt, WholeAccessesAreAligned) {
  run_whole<Whole::right>();
  EXPECT_REPORT(run_whole<Whole::misaligned_load>(), "an access to 8 bytes isn't aligned");
  EXPECT_REPORT(run_whole<Whole::misaligned_store>(), "an access to 8 bytes isn't aligned");
#if defined(ATTN_SIMT_RACES)
  EXPECT_REPORT(run_whole<Whole::unordered>(), "shared memory");
#endif
}

// A word that is or-ed to an operand to make it wait must never change it.
TEST(Simt, ZeroAfterIsZero) {
  for (float x : {0.f, -0.f, 1.5f, -INFINITY, std::nanf("")}) EXPECT_EQ(zero_after({x, 1, NAN, -INFINITY}), 0u) << x;
  EXPECT_EQ(bits_of(-2), 0xc0000000u);
  EXPECT_EQ(float_of(bits_of(0x1p-140f)), 0x1p-140f);
}

// out = A B for one 64 x 16 tile per warp's 16 rows, k = 32, via copy16_async, ldmatrix and mma.
template <class T, bool kWait> struct TileProduct {
  static constexpr int kThreads = 128;
  static constexpr int kDepth = 32;
  struct Params {
    const T *a, *b;
    float* out;
    int rows;
  };
  struct Shared { alignas(16) T a[64][kDepth + 8], b[kDepth][24]; };
  static void run(const Params& p, Shared& s) {
    for (int i = thread(); i < 64 * kDepth / 8; i += kThreads) {
      const int row = i / (kDepth / 8), column = i % (kDepth / 8) * 8;
      copy16_async(&s.a[row][column], p.a + row * kDepth + column, row < p.rows ? 16 : 0);
    }
    copy_commit();
    for (int i = thread(); i < kDepth * 2; i += kThreads)
      copy16_async(&s.b[i / 2][i % 2 * 8], p.b + i / 2 * 16 + i % 2 * 8, 16);
    copy_commit();
    if (kWait) copy_wait<0>();
    else copy_wait<1>();
    sync_block();
    float c[2][4] = {};
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t a[4], b[4];
      ldmatrix4(a, &s.a[16 * warp() + lane() % 16][k + lane() / 16 * 8]);
      ldmatrix4_transposed(b, &s.b[k + lane() % 16][lane() / 16 * 8]);
      const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
      mma<T>(c[0], a, b0);
      mma<T>(c[1], a, b1);
    }
    for (int n = 0; n < 2; ++n)
      for (int r = 0; r < 4; ++r) {
        const int row = 16 * warp() + lane() / 4 + 8 * (r / 2);
        if (row < p.rows) p.out[row * 16 + 8 * n + 2 * (lane() % 4) + r % 2] = c[n][r];
      }
  }
};

template <class T, bool kWait = true> void run_product(int rows) {
  std::vector<T> a(64 * 32), b(32 * 16);
  for (size_t i = 0; i < a.size(); ++i) a[i] = from_float<T>(static_cast<float>(static_cast<int>(i * 37 % 19) - 9) / 8);
  for (size_t i = 0; i < b.size(); ++i) b[i] = from_float<T>(static_cast<float>(static_cast<int>(i * 23 % 17) - 8) / 4);
  std::vector<float> out(64 * 16, NAN);
  simt::launch<TileProduct<T, kWait>>({}, {a.data(), b.data(), out.data(), rows});
  for (int m = 0; m < 64; ++m)
    for (int n = 0; n < 16; ++n) {
      double want = 0;
      for (int k = 0; k < 32; ++k) want += static_cast<double>(to_float(a[m * 32 + k])) * to_float(b[k * 16 + n]);
      if (m < rows) ASSERT_FLOAT_EQ(out[m * 16 + n], static_cast<float>(want)) << m << " " << n;
      else ASSERT_TRUE(std::isnan(out[m * 16 + n]));
    }
}

TEST(Simt, CopiesMatricesAndProducts) {
  run_product<Bf16>(64);
  run_product<F16>(51);
#if defined(ATTN_SIMT_RACES)
  EXPECT_REPORT((run_product<Bf16, false>(64)), "before its copy was waited for");
#endif
}

enum class Copied { right, not_committed, not_waited_for };

// A copy that a thread leaves behind would arrive in the shared memory of whatever block comes next.
template <Copied kFault> struct CopyAndEnd {
  static constexpr int kThreads = 32;
  using Params = const float*;
  struct Shared { alignas(16) float x[4 * kThreads]; };
  static void run(const Params& from, Shared& s) {
    copy16_async(&s.x[4 * thread()], from + 4 * thread(), 16);
    if (kFault != Copied::not_committed) copy_commit();
    if (kFault != Copied::not_waited_for) copy_wait<0>();
  }
};

TEST(Simt, CopiesLeftBehindAreReported) {
  alignas(16) const float from[128] = {};
  const char* left = "thread 0 ended before its copies were committed and waited for";
  EXPECT_EQ(error_of([&] { simt::launch<CopyAndEnd<Copied::right>>({}, from); }), "");
  EXPECT_REPORT(simt::launch<CopyAndEnd<Copied::not_committed>>({}, from), left);
  EXPECT_REPORT(simt::launch<CopyAndEnd<Copied::not_waited_for>>({}, from), left);
}

// Operands of tf32 products are rounded before: the hardware would cut them off.
template <bool kRounded> struct Tf32Product {
  static constexpr int kThreads = 32;
  using Params = float*;
  struct Shared {};
  static void run(const Params& out, Shared&) {
    const float x = kRounded ? tf32(1 + 0x1p-11f) : 1 + 0x1p-11f, a[4] = {x, x, x, x}, b[2] = {2, 2};
    float c[4] = {};
    mma_tf32(c, a, b);
    for (int i = 0; i < 4; ++i) out[4 * thread() + i] = c[i];
  }
};

TEST(Simt, Tf32) {
  std::vector<float> out(128, NAN);
  simt::launch<Tf32Product<true>>({}, out.data());
  for (float x : out) EXPECT_EQ(x, 16 * (1 + 0x1p-10f));
  EXPECT_REPORT(simt::launch<Tf32Product<false>>({}, out.data()), "not rounded by tf32()");
  EXPECT_EQ(tf32(1 + 0x1p-12f), 1);
  EXPECT_EQ(tf32(-INFINITY), -INFINITY);
  EXPECT_TRUE(std::isnan(tf32(NAN)));
}

// Rounding of the host's conversions: to nearest, ties to even.
TEST(Simt, Conversions) {
  for (float x : {0.f, -1.5f, 65504.f, 0x1p-24f, INFINITY, -INFINITY}) {
    EXPECT_EQ(to_float(from_float<F16>(x)), x);
    EXPECT_EQ(to_float(from_float<F16>(x * (1 + 0x1p-12f))), x);
  }
  EXPECT_EQ(from_float<Bf16>(1 + 0x1p-8f).bits, 0x3f80);
  EXPECT_EQ(from_float<Bf16>(1 + 3 * 0x1p-8f).bits, 0x3f82);
  EXPECT_TRUE(std::isnan(to_float(from_float<Bf16>(NAN))));
  EXPECT_EQ(pack<Bf16>(1, -2), 0xc0003f80u);
}

// What a test of a kernel must notice: an output that isn't written, a mask that is off by one.
template <int kOff, bool kSkip> struct MaskedSum {
  static constexpr int kThreads = 32;
  struct Params {
    const float* x;
    float* out;
    int n;
  };
  struct Shared {};
  static void run(const Params& p, Shared&) {
    float sum = 0;
    for (int j = 0; j < p.n; ++j) sum += j <= thread() + kOff ? p.x[j] : 0;
    if (!kSkip || thread() != 31) p.out[thread()] = sum;
  }
};

template <int kOff, bool kSkip> int wrong_rows() {
  std::vector<float> x(32), out(32, NAN);
  for (int i = 0; i < 32; ++i) x[i] = static_cast<float>(1 + i);
  simt::launch<MaskedSum<kOff, kSkip>>({}, {x.data(), out.data(), 32});
  int wrong = 0;
  for (int i = 0; i < 32; ++i) wrong += !(out[i] == static_cast<float>((i + 1) * (i + 2) / 2));
  return wrong;
}

TEST(Simt, UnwrittenOutputsAndShiftedMasksShow) {
  EXPECT_EQ((wrong_rows<0, false>()), 0);
  EXPECT_EQ((wrong_rows<0, true>()), 1);
  EXPECT_EQ((wrong_rows<1, false>()), 31);
}

}  // namespace
}  // namespace attn
