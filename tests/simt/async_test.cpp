// The runner's mbarriers, TMA and wgmma: a pipeline that uses them right is right, each kind of wrong use is reported.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "cuda/seam_sm90.h"
#include "simt/runner.h"

namespace attn {
namespace {

using namespace seam;

enum class Fault {
  none,
  no_init,
  no_sync_after_init,
  no_publish_barriers,
  no_publish_shared,
  no_expectation,
  too_many_bytes,
  no_wait,
  wrong_parity,
  no_empty_wait,
  early_release,
  no_begin,
  no_begin_of_second,
  results_too_early,
  never_waited,
  unnamed,
  one_warp_ahead,
  misplaced_operand,
  no_turn,
};

// out[64][kDim] = sum over tiles of bf16(Q K^T) V, with a producer warp and one warpgroup of consumers, two stages.
template <class T, int kKeys, int kDim, Fault kFault> struct Pipeline {
  static constexpr int kThreads = 256, kStages = 2, kTileBytes = kKeys * kDim * 2;
  struct Params {
    const T* q;
    TensorMap k, v;
    float* out;
    int tokens, head, batch;
  };
  template <int kRows> struct Tile { alignas(1024) T panel[kDim / 64][kRows][64]; };
  struct Shared {
    Tile<64> q;
    Tile<kKeys> k[kStages], v[kStages];
    Barrier full[kStages], empty[kStages];
    int first[kStages];
  };

  static void produce(const Params& p, Shared& s) {
    for (int n = 0, key = 0; key < p.tokens; ++n, key += kKeys) {
      const int stage = n % kStages, parity = n / kStages % 2;
      if (kFault != Fault::no_empty_wait) wait_barrier(s.empty[stage], parity ^ 1);
      if (lane() == 0) s.first[stage] = key;
      if (kFault == Fault::no_expectation) arrive_warp(s.full[stage]);
      else arrive_warp_expecting(s.full[stage], 2 * kTileBytes + (kFault == Fault::too_many_bytes ? 64 : 0));
      if (lane() != 0) continue;
      for (int d = 0; d < kDim; d += 64) {
        load_box(s.k[stage].panel[d / 64], p.k, s.full[stage], d, key, p.head, p.batch);
        load_box(s.v[stage].panel[d / 64], p.v, s.full[stage], d, key, p.head, p.batch);
      }
    }
  }

  static void consume(const Params& p, Shared& s) {
    for (int i = thread(); i < 64 * kDim; i += 128) {  // swizzled as SharedRows
      const int row = i / kDim, d = i % kDim;
      s.q.panel[d / 64][row][((d % 64 / 8) ^ (row % 8)) * 8 + d % 8] = p.q[i];
    }
    if (kFault != Fault::no_publish_shared) publish_shared();
    sync_named(1, 128);
    float out[kDim / 8][4] = {}, product[kKeys / 8][4];
    uint32_t a[kKeys / 16][4];
    for (int n = 0, key = 0; key < p.tokens; ++n, key += kKeys) {
      const int stage = n % kStages, parity = n / kStages % 2;
      if (kFault != Fault::no_wait) wait_barrier(s.full[stage], parity ^ (kFault == Fault::wrong_parity));
      if (s.first[stage] != key) simt::fail("another tile's key");
      if (kFault != Fault::no_begin) group_begin(product);
      for (int d = 0; d < kDim; d += 16) {
        const int off = kFault == Fault::misplaced_operand ? 8 : d % 64;
        group_mma<T, kKeys>(product, OperandK{&s.q.panel[d / 64][0][d % 64]},
                            OperandK{&s.k[stage].panel[d / 64][0][off]}, d > 0);
      }
      group_commit();
      if (kFault == Fault::unnamed) group_wait<0>(out);
      else if (kFault == Fault::results_too_early) group_wait<1>(product);
      else group_wait<0>(product);
      for (int k = 0; k < kKeys / 16; ++k)
        for (int i = 0; i < 4; ++i)
          a[k][i] = pack<T>(product[2 * k + i / 2][i % 2 * 2], product[2 * k + i / 2][i % 2 * 2 + 1]);
      if (kFault != Fault::no_begin_of_second) group_begin(out);
      for (int k = 0; k < kKeys / 16; ++k)
        group_mma<T, kDim>(out, a[k], OperandMn{s.v[stage].panel[0][16 * k], kKeys * 128});
      group_commit();
      if (kFault == Fault::early_release) arrive_warp(s.empty[stage]);
      if (kFault == Fault::results_too_early) group_wait<0>(product, out);
      else if (kFault != Fault::never_waited) group_wait<0>(out);
      if (kFault == Fault::one_warp_ahead && warp() == 0) break;
      if (kFault != Fault::early_release) arrive_warp(s.empty[stage]);
    }
    for (int n = 0; n < kDim / 8; ++n)
      for (int e = 0; e < 4; ++e) {
        const int row = 16 * warp() + lane() / 4 + 8 * (e / 2);
        p.out[row * kDim + 8 * n + 2 * (lane() % 4) + e % 2] = out[n][e];
      }
  }

  static void run(const Params& p, Shared& s) {
    if (thread() == 0 && kFault != Fault::no_init) {
      for (int i = 0; i < kStages; ++i) {
        init_barrier(s.full[i], 1);
        init_barrier(s.empty[i], 4);
      }
      if (kFault != Fault::no_publish_barriers) publish_barriers();
    }
    if (kFault != Fault::no_sync_after_init) sync_block();
    if (warp() < 4) {
      more_registers<240>();
      consume(p, s);
    } else {
      fewer_registers<24>();
      if (warp() == 4) produce(p, s);
    }
  }
};

template <class T> T small(size_t i, int spread) {
  return from_float<T>(static_cast<float>(static_cast<int>(i * 2654435761u >> 7) % spread - spread / 2));
}

// Tokens 64-element-aligned rows apart, as [batch, token, head, feature]; products are whole numbers, so exact.
template <class T, int kKeys, int kDim, Fault kFault = Fault::none>
void run_pipeline(int tokens, simt::Order order = simt::Order::forward) {
  const int heads = 2, batches = 2, head = 1, batch = 1;
  std::vector<T> q(64 * kDim), k(static_cast<size_t>(batches * tokens * heads * kDim)), v(k.size());
  for (size_t i = 0; i < q.size(); ++i) q[i] = from_float<T>(i * 7 % 5 == 0 ? 1.f : 0.f);
  for (size_t i = 0; i < k.size(); ++i) k[i] = small<T>(i, 3), v[i] = small<T>(i + 5, 5);
  const auto map = [&](const std::vector<T>& x) {
    return TensorMap{x.data(),
                     {kDim, tokens, heads, batches},
                     {int64_t{heads} * kDim * 2, kDim * 2, int64_t{tokens} * heads * kDim * 2},
                     kKeys};
  };
  std::vector<float> out(q.size(), NAN);
  using K = Pipeline<T, kKeys, kDim, kFault>;
  simt::launch<K>({1}, typename K::Params{q.data(), map(k), map(v), out.data(), tokens, head, batch}, order);
  std::vector<float> want(q.size(), 0);
  const auto at = [&](const std::vector<T>& x, int t, int d) {
    return to_float(x[static_cast<size_t>(((batch * tokens + t) * heads + head) * kDim + d)]);
  };
  for (int row = 0; row < 64; ++row)
    for (int t = 0; t < tokens; ++t) {
      float s = 0;
      for (int d = 0; d < kDim; ++d) s += to_float(q[static_cast<size_t>(row * kDim + d)]) * at(k, t, d);
      for (int d = 0; d < kDim; ++d) want[static_cast<size_t>(row * kDim + d)] += s * at(v, t, d);
    }
  if (out != want) throw simt::Error("wrong result");
}

template <class F> std::string error_of(F&& f) {
  try {
    f();
  } catch (const simt::Error& e) { return e.what(); }
  return "";
}

TEST(SimtAsync, APipelineIsRightInAnyOrder) {
  for (simt::Order order : {simt::Order::forward, simt::Order::backward, simt::Order::mixed}) {
    EXPECT_EQ(error_of([&] { run_pipeline<Bf16, 64, 64>(256, order); }), "");
    EXPECT_EQ(error_of([&] { run_pipeline<F16, 64, 128>(300, order); }), "");
    EXPECT_EQ(error_of([&] { run_pipeline<Bf16, 128, 128>(400, order); }), "");
    EXPECT_EQ(error_of([&] { run_pipeline<F16, 128, 64>(1, order); }), "");
  }
}

template <Fault kFault> std::string report(simt::Order order = simt::Order::forward, int tokens = 300) {
  return error_of([&] { run_pipeline<Bf16, 64, 64, kFault>(tokens, order); });
}
#define EXPECT_REPORT(fault, part) \
  EXPECT_NE(report<Fault::fault>().find(part), std::string::npos) << #fault ": " << report<Fault::fault>()

TEST(SimtAsync, WrongBarriersAreReported) {
  EXPECT_REPORT(no_init, "was never initialised");
  EXPECT_REPORT(no_publish_barriers, "initialised and not published");
  EXPECT_REPORT(too_many_bytes, "deadlock");
  EXPECT_REPORT(too_many_bytes, "waits at mbarrier at byte");
  EXPECT_REPORT(one_warp_ahead, "deadlock");
}

TEST(SimtAsync, WrongProductsAreReported) {
  EXPECT_REPORT(no_begin, "wgmma without group_begin");
  EXPECT_REPORT(no_begin_of_second, "wgmma without group_begin");
  EXPECT_REPORT(unnamed, "aren't named by group_wait");
  EXPECT_REPORT(results_too_early, "wrong result");
  EXPECT_REPORT(never_waited, "aren't named by group_wait");
  EXPECT_NE(report<Fault::never_waited>(simt::Order::forward, 60).find("didn't wait for"), std::string::npos);
  EXPECT_REPORT(misplaced_operand, "begins in the middle of a step of k");
}

#if defined(ATTN_SIMT_RACES)
TEST(SimtAsync, WrongOrderOfMemoryIsReported) {
  EXPECT_REPORT(no_sync_after_init, "shared memory");
  EXPECT_REPORT(no_publish_shared, "wrote without a publish_shared");
  EXPECT_REPORT(no_expectation, "shared memory");
  EXPECT_REPORT(no_wait, "shared memory");
  EXPECT_REPORT(wrong_parity, "shared memory");
  for (simt::Order order : {simt::Order::forward, simt::Order::backward, simt::Order::mixed}) {
    EXPECT_NE(report<Fault::no_empty_wait>(order).find("shared memory"), std::string::npos);
    EXPECT_NE(report<Fault::early_release>(order).find("shared memory"), std::string::npos);
  }
}
#endif

// Two warpgroups take turns at a list through named barriers: each arrives for the other and waits for its own.
template <Fault kFault> struct Turns {
  static constexpr int kThreads = 256;
  struct Params { int* out; };
  struct Shared { int count; };
  static void run(const Params& p, Shared& s) {
    const int group = warp() / 4;
    if (thread() == 0) s.count = 0;
    sync_block();
    if (group == 1) arrive_named(1, 256);
    for (int i = 0; i < 3; ++i) {
      if (kFault != Fault::no_turn) sync_named(1 + group, 256);
      if (thread() % 128 == 0) p.out[s.count++] = group;
      if (group == 0 || i < 2) arrive_named(2 - group, 256);
    }
  }
};

TEST(SimtAsync, WarpgroupsTakeTurns) {
  for (simt::Order order : {simt::Order::forward, simt::Order::backward, simt::Order::mixed}) {
    std::vector<int> out(6, -1);
    simt::launch<Turns<Fault::none>>({}, {out.data()}, order);
    EXPECT_EQ(out, (std::vector<int>{0, 1, 0, 1, 0, 1}));
#if defined(ATTN_SIMT_RACES)
    EXPECT_NE(error_of([&] { simt::launch<Turns<Fault::no_turn>>({}, {out.data()}, order); }), "");
#endif
  }
}

}  // namespace
}  // namespace attn
