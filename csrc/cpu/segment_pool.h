// Segment pooling (attn/pool.h). Short segments share a work item; one longer than an item's tokens is cut from its
// start and the parts are combined in order.
#pragma once

#include "cpu/chunks.h"

ATTN_NAMESPACE_BEGIN
namespace pool {

constexpr int64_t kNone = -1;

// Part of a segment: tokens [begin, end) of a batch entry.
struct SegmentPart {
  int64_t batch, segment, begin, end;
  bool whole;      // the only part of its segment
  int64_t number;  // among the parts of segments that have several
};

// Work items: parts in order, gathered until they hold `tokens` tokens.
class SegmentItems {
 public:
  SegmentItems(const SegmentPoolParams& p, int64_t tokens) : p_(p), tokens_(tokens) {
    const int64_t segments = p.batch * p.segments;
    first_ = new Item[segments + p.batch * p.tokens / tokens + 2];
    int64_t held = 0;
    bool fresh = true;
    for (int64_t s = 0; s < segments; ++s) {
      const int64_t length = length_of(s), parts = parts_of(length);
      for (int64_t part = 0; part < parts; ++part) {
        if (fresh) first_[count_++] = {s, part, partial_};
        held += parts > 1 ? tokens : length + 1;  // an empty segment is work, too
        partial_ += parts > 1;
        fresh = held >= tokens;
        if (fresh) held = 0;
      }
    }
    first_[count_] = {segments, 0, partial_};
  }
  ~SegmentItems() { delete[] first_; }
  SegmentItems(const SegmentItems&) = delete;
  SegmentItems& operator=(const SegmentItems&) = delete;

  int64_t count() const { return count_; }
  int64_t partials() const { return partial_; }  // parts of segments that have several

  template <class F> void for_parts(int64_t item, F&& f) const {
    const Item end = first_[item + 1];
    int64_t part = first_[item].part, number = first_[item].number;
    for (int64_t s = first_[item].segment; s < end.segment || (s == end.segment && end.part > 0); ++s) {
      const int64_t length = length_of(s), parts = parts_of(length), begin = offset_of(s);
      const int64_t stop = s == end.segment ? end.part : parts;
      for (; part < stop; ++part) {
        const int64_t from = part * tokens_, to = from + tokens_ < length ? from + tokens_ : length;
        f(SegmentPart{s / p_.segments, s % p_.segments, begin + from, begin + to, parts == 1,
                      parts > 1 ? number : kNone});
        number += parts > 1;
      }
      part = 0;
    }
  }

  // Calls f(batch, segment, number of its first part, parts) for every segment in several parts.
  template <class F> void for_split(F&& f) const {
    int64_t number = 0;
    for (int64_t s = 0; s < p_.batch * p_.segments && number < partial_; ++s) {
      const int64_t parts = parts_of(length_of(s));
      if (parts == 1) continue;
      f(s / p_.segments, s % p_.segments, number, parts);
      number += parts;
    }
  }

 private:
  struct Item {
    int64_t segment, part, number;  // where it starts
  };

  int64_t offset_of(int64_t s) const { return p_.offsets[s / p_.segments * (p_.segments + 1) + s % p_.segments]; }
  int64_t length_of(int64_t s) const {
    return p_.offsets[s / p_.segments * (p_.segments + 1) + s % p_.segments + 1] - offset_of(s);
  }
  int64_t parts_of(int64_t length) const { return length > tokens_ ? (length + tokens_ - 1) / tokens_ : 1; }

  const SegmentPoolParams& p_;
  int64_t tokens_;
  Item* first_;
  int64_t count_ = 0, partial_ = 0;
};

// The kept rows of a part, and which of its tokens they are.
template <class T> struct PartRows {
  const T* row[512];  // chunk_tokens() at most
  Sum<T> number[512];
  int64_t n = 0;

  PartRows(const SegmentPoolParams& p, const SegmentPart& part) {
    for (int64_t t = part.begin; t < part.end; ++t) {
      if (!taken(p.mask, part.batch, t)) continue;
      number[n] = static_cast<Sum<T>>(t - part.begin);
      row[n++] = token_row<const T>(p.x, part.batch, t);
    }
  }
};

// Reduction of the rows of a part into acc [C]: the sum for a mean, anything where there are no rows.
template <class T> inline void reduce_part(const SegmentPoolParams& p, const PartRows<T>& rows, Sum<T>* acc) {
  using S = Sum<T>;
  const int64_t n = p.channels;
  switch (p.reduce) {
    case PoolReduce::max: fill_row(acc, -kInf<S>, n); return max_rows<T>(acc, rows.row, rows.n, n);
    case PoolReduce::mean:
    case PoolReduce::sum: clear_row(acc, n); return sum_rows<T>(acc, rows.row, rows.n, n);
    case PoolReduce::first:
    case PoolReduce::last:
      clear_row(acc, n);
      if (rows.n > 0) add_row<T>(acc, rows.row[p.reduce == PoolReduce::first ? 0 : rows.n - 1], n);
  }
}

// The maximum of the rows of a part, and the token [C] that has it first.
template <class T>
inline void maximum_of_part(const SegmentPart& part, const PartRows<T>& rows, Sum<T>* acc, Sum<T>* number,
                            int32_t* token, int64_t n) {
  using S = Sum<T>;
  if (rows.n == 0) return fill_row(token, int32_t{-1}, n);
  fill_row(acc, -kInf<S>, n);
  fill_row(number, rows.number[0], n);  // nothing is greater than it where all are -inf
  max_rows_at<T>(acc, number, rows.number, rows.row, rows.n, n);
  for (int64_t c = 0; c < n; ++c) {
    token[c] = acc[c] == acc[c] ? static_cast<int32_t>(part.begin) + static_cast<int32_t>(number[c]) : -1;
  }
}

template <class T>
inline void finish_segment(const SegmentPoolParams& p, int64_t batch, int64_t segment, const Sum<T>* acc,
                           int64_t count) {
  T* out = static_cast<T*>(p.out) + (batch * p.segments + segment) * p.channels;
  if (count == 0) return clear_row(out, p.channels);
  scale_row<T>(out, p.reduce == PoolReduce::mean ? 1 / static_cast<Sum<T>>(count) : Sum<T>{1}, acc, p.channels);
}

template <class T> struct SegmentScratch {
  Sum<T>*a, *b, *c;
  T* row;

  SegmentScratch(Carve& k, int64_t n)
      : a(k.take<Sum<T>>(n)), b(k.take<Sum<T>>(n)), c(k.take<Sum<T>>(n)), row(k.take<T>(n)) {}
};

// acc (op)= part, in the order of the parts.
template <class S> inline void combine_parts(PoolReduce reduce, S* acc, const S* part, int64_t n) {
  for_lanes<S>(n, [&](int64_t i, auto w) {
    const vec<S> a = get(acc + i, w), b = get(part + i, w);
    switch (reduce) {
      case PoolReduce::max: put(acc + i, max_or_nan(a, b), w); break;
      case PoolReduce::mean:
      case PoolReduce::sum: put(acc + i, a + b, w); break;
      case PoolReduce::first: break;
      case PoolReduce::last: put(acc + i, b, w); break;
    }
  });
}

// token = that of the part where its maximum is greater than m. Before m takes the part in.
template <class S> inline void combine_tokens(const S* m, const S* part, int32_t* token, const int32_t* other,
                                              int64_t n) {
  for (int64_t c = 0; c < n; ++c) token[c] = part[c] > m[c] || part[c] != part[c] ? other[c] : token[c];
}

template <class T> inline void segment_forward(const SegmentPoolParams& p) {
  using S = Sum<T>;
  const int64_t n = p.channels;
  const SegmentItems items(p, chunk_tokens(n));
  const Buffer<S> partial(items.partials() * n);
  const Buffer<int32_t> tokens(p.token ? items.partials() * n : 0);
  const Buffer<int64_t> kept(items.partials());
  const auto token_of = [&](int64_t batch, int64_t segment) { return p.token + (batch * p.segments + segment) * n; };
  parallel_runs(items.count(), [&](int64_t item, int) {
    const auto scratch = carve<SegmentScratch<T>>(n);
    items.for_parts(item, [&](const SegmentPart& part) {
      const PartRows<T> rows(p, part);
      S* acc = part.whole ? scratch.a : partial + part.number * n;
      if (p.token) {
        int32_t* token = part.whole ? token_of(part.batch, part.segment) : tokens + part.number * n;
        maximum_of_part<T>(part, rows, acc, scratch.b, token, n);
      } else {
        reduce_part<T>(p, rows, acc);
      }
      if (part.whole) finish_segment<T>(p, part.batch, part.segment, acc, rows.n);
      else kept[part.number] = rows.n;
    });
  });
  items.for_split([&](int64_t batch, int64_t segment, int64_t number, int64_t parts) {
    S* acc = nullptr;
    int64_t count = 0;
    int32_t* token = p.token ? token_of(batch, segment) : nullptr;
    if (token) fill_row(token, int32_t{-1}, n);
    for (int64_t i = number; i < number + parts; ++i) {
      if (kept[i] == 0) continue;
      const S* part = partial + i * n;
      if (!acc) {
        acc = partial + i * n;
        if (token) std::memcpy(token, tokens + i * n, n * sizeof(int32_t));
      } else {
        if (token) combine_tokens<S>(acc, part, token, tokens + i * n, n);
        combine_parts(p.reduce, acc, part, n);
      }
      count += kept[i];
    }
    finish_segment<T>(p, batch, segment, acc, count);
  });
}

}  // namespace pool

inline void segment_pool_forward(const SegmentPoolParams& p){ATTN_POOL_DISPATCH(p.dtype, pool::segment_forward, p)}

ATTN_NAMESPACE_END
