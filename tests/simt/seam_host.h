// The seam under test: what cuda/seam.h lists, for the fiber that calls.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>

#include "cuda/seam.h"
#include "simt/runner.h"

#define ATTN_DEVICE inline

namespace attn::seam {

using simt::kWarp;
using simt::Where;

inline int thread() { return simt::thread_index(); }
inline int lane() { return thread() % kWarp; }
inline int warp() { return thread() / kWarp; }
inline int block_x() { return static_cast<int>(simt::block_index().x); }
inline int block_y() { return static_cast<int>(simt::block_index().y); }
inline int block_z() { return static_cast<int>(simt::block_index().z); }

inline void sync_block(const Where& where = Where::current()) { simt::barrier(0, simt::block_threads(), where); }
inline void sync_warp(const Where& where = Where::current()) { simt::meet("sync_warp", nullptr, nullptr, where); }
inline void sync_named(int id, int threads, const Where& where = Where::current()) {
  if (id == 0) simt::fail("sync_named(0): barrier 0 belongs to sync_block");
  simt::barrier(id, threads, where);
}

// f(lanes) with lanes[i] the argument of lane i; runs once, when all lanes are there.
template <class Lane, class F> void collective(const char* name, Lane& mine, F, const Where& where) {
  simt::meet(
      name, &mine,
      [](void* const* arguments) {
        Lane* lanes[kWarp];
        for (int i = 0; i < kWarp; ++i) lanes[i] = static_cast<Lane*>(arguments[i]);
        F()(lanes);
      },
      where);
}

template <class T> struct Shuffled {
  T in, out;
  int source;
};

template <class T> T shuffle(T x, int source, const Where& where = Where::current()) {
  if (source < 0 || source >= kWarp) simt::fail("shuffle from lane " + std::to_string(source));
  Shuffled<T> mine{x, {}, source};
  collective(
      "shuffle", mine,
      [](Shuffled<T>** l) {
        for (int i = 0; i < kWarp; ++i) l[i]->out = l[l[i]->source]->in;
      },
      where);
  return mine.out;
}
template <class T> T shuffle_xor(T x, int mask, const Where& where = Where::current()) {
  return seam::shuffle(x, lane() ^ mask, where);
}

struct Vote {
  bool in;
  uint32_t out;
};
inline uint32_t ballot(bool x, const Where& where = Where::current()) {
  Vote mine{x, 0};
  collective(
      "ballot", mine,
      [](Vote** l) {
        uint32_t bits = 0;
        for (int i = 0; i < kWarp; ++i) bits |= static_cast<uint32_t>(l[i]->in) << i;
        for (int i = 0; i < kWarp; ++i) l[i]->out = bits;
      },
      where);
  return mine.out;
}
inline bool any(bool x, const Where& where = Where::current()) { return ballot(x, where) != 0; }

struct Sum { int32_t in, out; };
inline int32_t reduce_add(int32_t x, const Where& where = Where::current()) {
  Sum mine{x, 0};
  collective(
      "reduce_add", mine,
      [](Sum** l) {
        int32_t sum = 0;
        for (int i = 0; i < kWarp; ++i) sum += l[i]->in;
        for (int i = 0; i < kWarp; ++i) l[i]->out = sum;
      },
      where);
  return mine.out;
}
inline uint32_t popcount(uint32_t x) { return static_cast<uint32_t>(std::popcount(x)); }

template <class P> void check_whole(const void* p) {
  static_assert(alignof(P) == sizeof(P) && sizeof(P) <= 16);
  if (reinterpret_cast<uintptr_t>(p) % alignof(P))
    simt::fail("an access to " + std::to_string(sizeof(P)) + " bytes isn't aligned");
}
template <class P> P load_whole(const void* p) {
  check_whole<P>(p);
  return *static_cast<const P*>(p);
}
template <class P> void store_whole(void* p, const P& x) {
  check_whole<P>(p);
  *static_cast<P*>(p) = x;
}

inline uint32_t bits_of(float x) { return std::bit_cast<uint32_t>(x); }
inline float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t zero_after(const float (&)[4]) { return 0; }

inline float to_float(float x) { return x; }
inline double to_float(double x) { return x; }
inline float to_float(Bf16 x) {
  const uint32_t u = static_cast<uint32_t>(x.bits) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline float to_float(F16 x) {
  _Float16 h;
  std::memcpy(&h, &x, 2);
  return static_cast<float>(h);
}
template <class T> T from_float(float x);
template <> inline float from_float<float>(float x) { return x; }
template <> inline F16 from_float<F16>(float x) {
  const _Float16 h = static_cast<_Float16>(x);
  F16 y;
  std::memcpy(&y, &h, 2);
  return y;
}
template <> inline Bf16 from_float<Bf16>(float x) {
  if (x != x) return {0x7fff};
  uint32_t u;
  std::memcpy(&u, &x, 4);
  u += 0x7fffu + ((u >> 16) & 1);  // to nearest, ties to even
  return {static_cast<uint16_t>(u >> 16)};
}
template <class T> uint32_t pack(float low, float high) {
  return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}
// As the device's ex2.approx.ftz: results below the normal range are 0.
inline float exp2_fast(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0 : y;
}

template <class T> float half_of(uint32_t pair, int which) {
  return to_float(T{static_cast<uint16_t>(pair >> (16 * which))});
}

// m16n8k16: lane (g, t) = (lane / 4, lane % 4) holds
//   a[r] = A[g + 8 (r % 2)][2 t + 8 (r / 2) + {0, 1}],  b[r] = B[2 t + 8 r + {0, 1}][g],  c[r] = C[g + 8 (r / 2)][2 t +
//   r % 2].
struct Mma {
  float* c;
  const uint32_t *a, *b;
};
template <class T>
void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Where& where = Where::current()) {
  Mma mine{c, a, b};
  collective(
      "mma", mine,
      [](Mma** l) {
        float x[16][16], y[16][8];  // A, B
        for (int i = 0; i < kWarp; ++i) {
          const int g = i / 4, t = i % 4;
          for (int h = 0; h < 2; ++h) {
            for (int r = 0; r < 4; ++r) x[g + 8 * (r % 2)][2 * t + 8 * (r / 2) + h] = half_of<T>(l[i]->a[r], h);
            for (int r = 0; r < 2; ++r) y[2 * t + 8 * r + h][g] = half_of<T>(l[i]->b[r], h);
          }
        }
        float sum[16][8] = {};
        for (int m = 0; m < 16; ++m)
          for (int k = 0; k < 16; ++k)
            for (int n = 0; n < 8; ++n) sum[m][n] += x[m][k] * y[k][n];
        for (int i = 0; i < kWarp; ++i)
          for (int r = 0; r < 4; ++r) l[i]->c[r] += sum[i / 4 + 8 * (r / 2)][2 * (i % 4) + r % 2];
      },
      where);
}

// The nearest number of 11 significant bits, halves away from zero; NaN and infinity stay.
inline float tf32(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  if ((u & 0x7f800000u) != 0x7f800000u) u = (u + 0x1000u) & ~0x1fffu;
  std::memcpy(&x, &u, 4);
  return x;
}

// Tensor cores cut off what a sum has more bits than a float; so they do between the terms of longer sums.
inline float cut_off(double x) {
  const float f = static_cast<float>(x);
  return std::abs(static_cast<double>(f)) > std::abs(x) ? std::nextafter(f, 0.f) : f;
}

// m16n8k8: lane (g, t) = (lane / 4, lane % 4) holds a[r] = A[g + 8 (r % 2)][t + 4 (r / 2)], b[r] = B[t + 4 r][g], c as
// above. Operands that tf32() didn't return are an error: the hardware would cut them off.
struct MmaTf32 {
  float* c;
  const float *a, *b;
};
inline void mma_tf32(float (&c)[4], const float (&a)[4], const float (&b)[2], const Where& where = Where::current()) {
  for (float x : {a[0], a[1], a[2], a[3], b[0], b[1]}) {
    if (x == x && tf32(x) != x) simt::fail("mma_tf32: an operand was not rounded by tf32()");
  }
  MmaTf32 mine{c, a, b};
  collective(
      "mma_tf32", mine,
      [](MmaTf32** l) {
        double x[16][8], y[8][8];  // A, B
        for (int i = 0; i < kWarp; ++i) {
          const int g = i / 4, t = i % 4;
          for (int r = 0; r < 4; ++r) x[g + 8 * (r % 2)][t + 4 * (r / 2)] = l[i]->a[r];
          for (int r = 0; r < 2; ++r) y[t + 4 * r][g] = l[i]->b[r];
        }
        for (int i = 0; i < kWarp; ++i) {
          for (int r = 0; r < 4; ++r) {
            double sum = l[i]->c[r];
            for (int k = 0; k < 8; ++k) sum += x[i / 4 + 8 * (r / 2)][k] * y[k][2 * (i % 4) + r % 2];
            l[i]->c[r] = cut_off(sum);
          }
        }
      },
      where);
}

// Lane 8 i + j names row j of 8x8 matrix i; lane (g, t) gets elements 2 t and 2 t + 1 of row g (of column g if
// transposed) of each.
struct LdMatrix {
  uint32_t* r;
  const void* row;
};
template <bool kTransposed> void ldmatrix_any(const char* name, uint32_t (&r)[4], const void* row, const Where& where) {
  if (reinterpret_cast<uintptr_t>(row) % 16) simt::fail("ldmatrix: row isn't a multiple of 16 bytes");
  simt::touch(row, 16, simt::Touch::read);
  LdMatrix mine{r, row};
  collective(
      name, mine,
      [](LdMatrix** l) {
        for (int matrix = 0; matrix < 4; ++matrix) {
          uint16_t x[8][8];
          for (int j = 0; j < 8; ++j) {
            const uint16_t* from = static_cast<const uint16_t*>(l[8 * matrix + j]->row);
            for (int e = 0; e < 8; ++e) x[j][e] = from[e];
          }
          for (int i = 0; i < kWarp; ++i) {
            const int g = i / 4, t = 2 * (i % 4);
            const uint32_t low = kTransposed ? x[t][g] : x[g][t], high = kTransposed ? x[t + 1][g] : x[g][t + 1];
            l[i]->r[matrix] = low | high << 16;
          }
        }
      },
      where);
}
inline void ldmatrix4(uint32_t (&r)[4], const void* row, const Where& where = Where::current()) {
  ldmatrix_any<false>("ldmatrix4", r, row, where);
}
inline void ldmatrix4_transposed(uint32_t (&r)[4], const void* row, const Where& where = Where::current()) {
  ldmatrix_any<true>("ldmatrix4_transposed", r, row, where);
}

inline uint32_t load_word(const uint32_t* shared) { return *shared; }

// Copies happen as late as they may: when they are waited for.
inline void copy16_async(void* shared, const void* global, int bytes) { simt::copy_later(shared, global, bytes); }
inline void copy_commit() { simt::commit_copies(); }
template <int kLeft> void copy_wait() { simt::wait_copies(kLeft); }

}  // namespace attn::seam
