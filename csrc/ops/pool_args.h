// Argument checks that the pool ops share.
#pragma once

#include "attn/pool.h"
#include "ops/text.h"
#include "ops/token_args.h"

namespace attn::ops {

using OptionalTensor = std::optional<Tensor>;

// A [B, L, C] argument.
inline TokenView token_view(const Check& check, const Tensor& t, const char* name, const char* layout = "[B, L, C]") {
  check.on_device(t, name);
  check.rank(t, name, 3, layout);
  check.last_contiguous(t, name);
  return {t.data_ptr(), t.stride(0), t.stride(1)};
}

// A [B, L, C] argument with the type and sizes of another one.
inline TokenView token_view_like(const Check& check, const Tensor& t, const char* name, const Tensor& like,
                                 const char* like_name) {
  check.same_type(t, name, like, like_name);
  check.shape(t, name, {like.size(0), like.size(1), like.size(2)}, like_name);
  return token_view(check, t, name);
}

// The sequences of a [B, L, ...] batch.
inline Sequences sequences(const Check& check, int64_t batch, int64_t tokens, const OptionalTensor& cu) {
  check.length(tokens, "the number of tokens");
  if (!cu) return {batch, tokens, nullptr, batch};
  check.require(batch == 1, "cu_seqlens needs a batch size of 1 (sequences are packed along tokens), got ", batch);
  return {batch, tokens, bounds_argument(check, *cu, "cu_seqlens", tokens), cu->size(0) - 1};
}

inline IdView ids_argument(const Check& check, const Tensor& ids, const Sequences& s) {
  check.on_device(ids, "segment_ids");
  check.type(ids, "segment_ids", ScalarType::Int);
  check.shape(ids, "segment_ids", {s.batch, s.tokens}, "[B, L]");
  check.nonnegative_strides(ids, "segment_ids");
  return {static_cast<const int32_t*>(ids.data_ptr()), ids.stride(0), ids.stride(1)};
}

// Segment ids [B, L] as kernels take them: contiguous and ascending within each sequence. A token that the mask drops
// takes the id before it, so that whatever stands in padding does no harm. On a GPU a kernel does this
// (segment_ids_on).
inline std::vector<int32_t> ascending_ids(const Check& check, const IdView& ids, const Sequences& s,
                                          const MaskView& mask) {
  std::vector<int32_t> ascending(s.batch * s.tokens);
  for (int64_t n = 0; n < s.count; ++n) {
    const SequenceSpan span = sequence_span(s, n);
    int32_t last = INT32_MIN;
    for (int64_t t = span.first; t < span.first + span.length; ++t) {
      const int32_t id = ids.data[span.batch * ids.batch + t * ids.token];
      if (taken(mask, span.batch, t)) {
        check.require(id >= last, "segment_ids must not decrease within a sequence, got ", last, " before ", id,
                      " at token ", t, " of batch entry ", span.batch);
        check.require(id >= 0, "segment_ids must be >= 0, got ", id, " at token ", t, " of batch entry ", span.batch);
        last = id;
      }
      ascending[span.batch * s.tokens + t] = last == INT32_MIN ? 0 : last;
    }
  }
  return ascending;
}

inline void wanted_count(const Check& check, const std::vector<bool>& wanted, size_t n) {
  check.require(wanted.size() == n, "wanted must have ", n, " entries, got ", wanted.size());
}

// A contiguous result shaped and typed like `like`; without elements if it isn't wanted.
inline Tensor gradient_like(const Tensor& like, bool wanted) {
  std::vector<int64_t> sizes{0};
  if (wanted) {
    sizes.clear();
    for (int64_t i = 0; i < like.dim(); ++i) sizes.push_back(like.size(i));
  }
  return new_tensor(like, sizes, like.scalar_type());
}

inline void* data_if(Tensor& t, bool wanted) { return wanted ? t.data_ptr() : nullptr; }

}  // namespace attn::ops
