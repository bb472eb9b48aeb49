// How a call is cut into independent work items, and per-thread scratch memory. The cut depends on shapes only, never
// on the number of threads, so results don't either.
#pragma once

#include "attn/rows.h"

namespace attn {

// `bytes` of 64-byte aligned memory of the calling thread; valid until its next call. Contents are undefined.
void* thread_scratch(int64_t bytes);

}  // namespace attn

ATTN_NAMESPACE_BEGIN

// Carves typed arrays out of one scratch block: run it once with base = null to learn the size.
struct Carve {
  char* base;
  int64_t used = 0;
  template <class T> T* take(int64_t count) {
    T* p = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64 + 64;  // a line between arrays keeps sets apart
    return p;
  }
};

// Maps item numbers to (sequence, part): parts of a sequence are numbered by `parts(sequence)`.
struct ItemIndex {
  int64_t count = 0, uniform = 0;
  int64_t* first = nullptr;  // [sequences + 1] where sequences differ in length
  int64_t sequences = 0;

  template <class Parts> ItemIndex(const AttendParams& p, Parts&& parts) {
    sequences = sequence_count(p);
    if (!p.cu_q) {
      uniform = sequences ? parts(sequence(p, 0)) : 0;
      count = uniform * sequences;
      return;
    }
    first = new int64_t[sequences + 1];
    for (int64_t s = 0; s < sequences; ++s) {
      first[s] = count;
      count += parts(sequence(p, s));
    }
    first[sequences] = count;
  }
  ~ItemIndex() { delete[] first; }
  ItemIndex(const ItemIndex&) = delete;
  ItemIndex& operator=(const ItemIndex&) = delete;

  // First item of a sequence.
  int64_t start(int64_t sequence) const { return first ? first[sequence] : sequence * uniform; }

  void locate(int64_t item, int64_t& sequence, int64_t& part) const {
    if (!first) {
      sequence = item / uniform;
      part = item % uniform;
      return;
    }
    int64_t lo = 0, hi = sequences;
    while (hi - lo > 1) {
      const int64_t mid = (lo + hi) / 2;
      if (first[mid] <= item) lo = mid;
      else hi = mid;
    }
    sequence = lo;
    part = item - first[lo];
  }
};

ATTN_NAMESPACE_END
