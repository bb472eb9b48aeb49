// How token-wise work is cut: chunks of consecutive tokens that never cross a sequence and are counted from its start,
// so that a sequence's result depends neither on the number of threads nor on its neighbours in the batch.
#pragma once

#include "attn/parallel.h"
#include "attn/pool.h"
#include "cpu/lanes.h"
#include "cpu/work.h"

ATTN_NAMESPACE_BEGIN
namespace pool {

// Tokens a chunk: about 32 K elements, a few hundred KB over all the tensors an op reads.
ATTN_INLINE int64_t chunk_tokens(int64_t channels) {
  const int64_t n = (int64_t{1} << 15) / (channels > 0 ? channels : 1) / 16 * 16;
  return n < 16 ? 16 : n > 512 ? 512 : n;
}

struct Chunk {
  int64_t sequence;
  SequenceSpan span;
  int64_t begin, end;  // positions within the sequence
  int64_t index;       // number of the chunk among all
  int64_t first;       // number of its sequence's first chunk
};

class Chunks {
 public:
  Chunks(const Sequences& sequences, int64_t tokens) : sequences_(sequences), tokens_(tokens) {
    first_ = new int64_t[sequences.count + 1];
    first_[0] = 0;
    for (int64_t s = 0; s < sequences.count; ++s) {
      first_[s + 1] = first_[s] + (sequence_span(sequences, s).length + tokens - 1) / tokens;
    }
  }
  ~Chunks() { delete[] first_; }
  Chunks(const Chunks&) = delete;
  Chunks& operator=(const Chunks&) = delete;

  int64_t count() const { return first_[sequences_.count]; }
  int64_t tokens() const { return tokens_; }
  int64_t first(int64_t sequence) const { return first_[sequence]; }  // also for sequence == count: one past the last

  Chunk at(int64_t index) const {
    int64_t lo = 0, hi = sequences_.count;
    while (hi - lo > 1) {
      const int64_t mid = (lo + hi) / 2;
      if (first_[mid] <= index) lo = mid;
      else hi = mid;
    }
    // Sequences without tokens have no chunk: the last sequence that starts here is the one that has.
    Chunk c{lo, sequence_span(sequences_, lo), 0, 0, index, first_[lo]};
    c.begin = (index - c.first) * tokens_;
    c.end = c.begin + tokens_ < c.span.length ? c.begin + tokens_ : c.span.length;
    return c;
  }

 private:
  Sequences sequences_;
  int64_t tokens_;
  int64_t* first_;
};

// Uninitialised memory for partial results of a call.
template <class T> class Buffer {
 public:
  explicit Buffer(int64_t n) : data_(new T[n > 0 ? n : 1]) {}
  ~Buffer() { delete[] data_; }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  operator T*() const { return data_; }

 private:
  T* data_;
};

// A work item's scratch: X takes its arrays from the Carve that its constructor is given first.
template <class X, class... Args> ATTN_INLINE X carve(const Args&... args) {
  Carve measure{nullptr};
  X{measure, args...};
  Carve c{static_cast<char*>(thread_scratch(measure.used))};
  return X{c, args...};
}

// Tokens of a packed batch that belong to no sequence come out as 0.
template <class T> inline void clear_tail(const Sequences& s, int64_t channels, void* out) {
  if (!out || !s.cu) return;
  const int64_t end = s.cu[s.count];
  clear_row(static_cast<T*>(out) + end * channels, (s.tokens - end) * channels);
}

template <class T> ATTN_INLINE T* token_row(const TokenView& v, int64_t batch, int64_t token) {
  return static_cast<T*>(v.data) + batch * v.batch + token * v.token;
}

// Runs f<T>(args) for the element type of a call.
#define ATTN_POOL_DISPATCH(dtype, f, ...)           \
  switch (dtype) {                                  \
    case DType::f32: return f<float>(__VA_ARGS__);  \
    case DType::f64: return f<double>(__VA_ARGS__); \
    case DType::bf16: return f<bf16>(__VA_ARGS__);  \
    case DType::f16: return f<f16>(__VA_ARGS__);    \
  }

}  // namespace pool
ATTN_NAMESPACE_END
