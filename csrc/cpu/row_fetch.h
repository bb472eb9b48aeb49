// Rows that are needed soon, fetched into L2 a few at a time between products, so that memory is read while they run.
#pragma once

#include "cpu/simd.h"

ATTN_NAMESPACE_BEGIN

template <class In> struct RowFetch {
  const In* const* rows = nullptr;
  int64_t dim = 0, next = 0, end = 0, step = 0;

  // Rows [first, last) of a list of addresses, spread over `calls` calls.
  void start(const In* const* list, int64_t first, int64_t last, int64_t elements, int64_t calls) {
    rows = list;
    dim = elements;
    next = first;
    end = last;
    step = calls > 0 && last > first ? (last - first + calls - 1) / calls : 0;
  }
  void stop() { next = end = step = 0; }

  ATTN_INLINE void operator()() {
    const int64_t to = next + step < end ? next + step : end;
    for (; next < to; ++next) {
      // Two lines at a time: a branch less, of those that are hard to predict here.
      const char* at = reinterpret_cast<const char*>(rows[next]);
      for (int64_t byte = 0; byte < dim * int64_t{sizeof(In)}; byte += 128) {
        __builtin_prefetch(at + byte, 0, 2);
        __builtin_prefetch(at + byte + 64, 0, 2);
      }
    }
  }
};

ATTN_NAMESPACE_END
