// What this machine can do, measured on the spot: multiply-add peak in float32 and bf16, and reading scattered memory.
// Built by common.py with -march=native for the machine it runs on; not part of the package.
#include <immintrin.h>

#include <chrono>
#include <cstdint>
#include <cstring>

namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
typedef float vec __attribute__((vector_size(kLanes * 4)));

}  // namespace

extern "C" {

// GFLOP/s of one thread.
double fma_peak(double duration) {
  constexpr int kChains = 12;  // more than latency x throughput of any current core
  vec a[kChains];
  for (int i = 0; i < kChains; ++i) a[i] = vec{} + 0.1f * i;
  vec b = vec{} + 0.999f, c = vec{} + 1e-3f;
  double best = 0;
  const double end = seconds() + duration;
  while (seconds() < end) {
    constexpr int64_t kSteps = 200000;
    const double start = seconds();
    for (int64_t n = 0; n < kSteps; ++n) {
      for (int i = 0; i < kChains; ++i) a[i] = a[i] * b + c;
      asm volatile("" : "+x"(b), "+x"(c));
    }
    const double rate = kSteps * kChains * kLanes * 2 / (seconds() - start) * 1e-9;
    if (rate > best) best = rate;
  }
  volatile float sink = 0;
  for (int i = 0; i < kChains; ++i) sink = sink + a[i][0];
  return best;
}

// GFLOP/s of the bf16 dot instruction, 0 where there is none.
double bf16_peak(double duration) {
#if defined(__AVX512BF16__)
  __m512 a[12];
  for (auto& x : a) x = _mm512_set1_ps(0.5f);
  __m512bh b = (__m512bh)_mm512_set1_epi16(0x3f00), c = (__m512bh)_mm512_set1_epi16(0x3f00);
  double best = 0;
  const double end = seconds() + duration;
  while (seconds() < end) {
    constexpr int64_t kSteps = 200000;
    const double start = seconds();
    for (int64_t n = 0; n < kSteps; ++n) {
      for (auto& x : a) x = _mm512_dpbf16_ps(x, b, c);
      asm volatile("" : "+v"(b), "+v"(c));
    }
    const double rate = kSteps * 12 * 64 / (seconds() - start) * 1e-9;
    if (rate > best) best = rate;
  }
  volatile float sink = 0;
  for (auto& x : a) sink = sink + x[0];
  return best;
#else
  (void)duration;
  return 0;
#endif
}

// Sums `count` pieces of `bytes` each, in turn, fetching ahead: every line of the next piece, and the translation of
// its addresses six pieces before.
float read_pieces(const char* const* pieces, int64_t count, int64_t bytes) {
  vec sum[4] = {};
  for (int64_t i = 0; i < count; ++i) {
    const char *p = pieces[i], *next = pieces[i + 1 < count ? i + 1 : i], *later = pieces[i + 6 < count ? i + 6 : i];
    for (int64_t x = 0; x < bytes; x += 4096) __builtin_prefetch(later + x, 0, 2);
    for (int64_t x = 0; x + static_cast<int64_t>(sizeof sum) <= bytes; x += sizeof sum) {
      for (int k = 0; k < 4; ++k) {
        __builtin_prefetch(next + x + k * sizeof(vec), 0, 3);
        vec y;
        std::memcpy(&y, p + x + k * sizeof(vec), sizeof y);
        sum[k] += y;
      }
    }
  }
  float total = 0;
  for (auto& v : sum) total += v[0];
  return total;
}
}
