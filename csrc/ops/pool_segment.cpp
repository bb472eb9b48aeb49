// Segment pooling, by segment ids or by cu_seqlens.
#include "ops/backend.h"
#include "ops/pool_args.h"

namespace attn::ops {
namespace {

struct SegmentArguments {
  SegmentPoolParams p{};
  std::vector<int32_t> offsets;  // on the CPU
  IdView ids{nullptr, 0, 0};     // on a GPU, where offsets are yet to be found
  std::optional<Tensor> offsets_there;
};

PoolReduce reduction(const Check& check, const Text& name) {
  constexpr std::pair<const char*, PoolReduce> all[] = {{"max", PoolReduce::max},
                                                        {"mean", PoolReduce::mean},
                                                        {"sum", PoolReduce::sum},
                                                        {"first", PoolReduce::first},
                                                        {"last", PoolReduce::last}};
  for (const auto& [text, reduce] : all) {
    if (name == text) return reduce;
  }
  check.fail("reduce must be 'max', 'mean', 'sum', 'first' or 'last', got '", name.value, "'");
}

// Offsets [B, segments + 1] of the segments that ids name.
std::vector<int32_t> offsets_of(const Check& check, const IdView& ids, const Sequences& s, const MaskView& mask,
                                int64_t segments) {
  const std::vector<int32_t> ascending = ascending_ids(check, ids, s, mask);
  std::vector<int32_t> offsets(s.batch * (segments + 1));
  for (int64_t b = 0; b < s.batch; ++b) {
    int32_t* row = offsets.data() + b * (segments + 1);
    int64_t next = 0;  // the first segment without a bound
    for (int64_t t = 0; t < s.tokens; ++t) {
      const int64_t id = ascending[b * s.tokens + t];
      check.require(id < segments, "segment_ids must be below num_segments (", segments, "), got ", id, " at token ", t,
                    " of batch entry ", b);
      while (next <= id) row[next++] = static_cast<int32_t>(t);
    }
    while (next <= segments) row[next++] = static_cast<int32_t>(s.tokens);
  }
  return offsets;
}

// Which tokens make a segment, and which are kept. Batch and tokens are known.
void set_places(const Check& check, SegmentArguments& a, const OptionalTensor& segment_ids,
                const OptionalTensor& cu_seqlens, int64_t num_segments, const OptionalTensor& mask) {
  SegmentPoolParams& p = a.p;
  check.require(!segment_ids || !cu_seqlens, "segment_ids and cu_seqlens exclude each other");
  check.length(p.tokens, "the number of tokens");
  if (cu_seqlens) {
    p.offsets = bounds_argument(check, *cu_seqlens, "cu_seqlens", p.tokens);
    p.segments = cu_seqlens->size(0) - 1;
    if (mask) {
      check.on_device(*mask, "mask");
      check.type(*mask, "mask", ScalarType::Bool);
      check.shape(*mask, "mask", {p.tokens}, "[N]");
      check.nonnegative_strides(*mask, "mask");
      p.mask = {static_cast<const uint8_t*>(mask->data_ptr()), 0, mask->stride(0)};
    }
    return;
  }
  p.mask = mask_argument(check, mask, "mask", p.batch, p.tokens);
  check.require(num_segments >= 0 && num_segments < INT32_MAX, "num_segments must be >= 0, got ", num_segments);
  p.segments = segment_ids ? num_segments : 1;
  if (segment_ids) {
    const Sequences entries{p.batch, p.tokens, nullptr, p.batch};
    a.ids = ids_argument(check, *segment_ids, entries);
    if (!check.values_known()) return;
    a.offsets = offsets_of(check, a.ids, entries, p.mask, p.segments);
  } else if (!check.values_known()) {
    return;  // kernels know the offsets of one segment
  } else {
    for (int64_t b = 0; b < p.batch; ++b) {
      a.offsets.push_back(0);
      a.offsets.push_back(static_cast<int32_t>(p.tokens));
    }
  }
  p.offsets = a.offsets.data();
}

// Rows [B, L, C], packed [N, C].
TokenView rows_view(const Check& check, const Tensor& t, const char* name, bool packed) {
  if (!packed) return token_view(check, t, name);
  check.on_device(t, name);
  check.rank(t, name, 2, "[N, C] with cu_seqlens");
  check.last_contiguous(t, name);
  return {t.data_ptr(), 0, t.stride(0)};
}

std::vector<int64_t> row_sizes(const SegmentPoolParams& p, int64_t rows, bool packed) {
  if (packed) return {rows, p.channels};
  return {p.batch, rows, p.channels};
}

// What rows say of a call, those of x or of its result.
void set_sizes(const Check& check, SegmentPoolParams& p, const Tensor& rows, const char* name, int64_t tokens,
               bool packed) {
  p.dtype = check.floating(rows, name);
  p.batch = packed ? 1 : rows.size(0);
  p.tokens = tokens;
  p.channels = rows.size(rows.dim() - 1);
}

SegmentArguments arguments(const Check& check, const Tensor& x, const OptionalTensor& segment_ids,
                           const OptionalTensor& cu_seqlens, int64_t num_segments, PoolReduce reduce,
                           const OptionalTensor& mask) {
  SegmentArguments a;
  a.p.reduce = reduce;
  a.p.x = rows_view(check, x, "x", cu_seqlens.has_value());
  set_sizes(check, a.p, x, "x", x.size(x.dim() - 2), cu_seqlens.has_value());
  set_places(check, a, segment_ids, cu_seqlens, num_segments, mask);
  return a;
}

// Where the segments of ids begin, found on a GPU.
void find_offsets(const Check& check, SegmentArguments& a, const Tensor& x) {
  if (check.values_known() || !a.ids.data) return;
  SegmentPoolParams& p = a.p;
  const int64_t ids = p.batch * p.tokens;
  a.offsets_there = new_tensor(x, {ids + p.batch * (p.segments + 1)}, ScalarType::Int);
  int32_t* data = static_cast<int32_t*>(a.offsets_there->data_ptr());
  segment_offsets_on(check, {{p.batch, p.tokens, nullptr, p.batch}, a.ids, p.mask, data}, p.segments, data + ids);
  p.offsets = data + ids;
}

Tensor segment_pool_forward(const Tensor& x, const OptionalTensor& segment_ids, const OptionalTensor& cu_seqlens,
                            int64_t num_segments, const Text& reduce, const OptionalTensor& mask) {
  const Check check("segment_pool_forward", x);
  SegmentArguments a = arguments(check, x, segment_ids, cu_seqlens, num_segments, reduction(check, reduce), mask);
  check_segment_pool_forward_on(check, a.p);
  Tensor out = new_tensor(x, row_sizes(a.p, a.p.segments, cu_seqlens.has_value()), x.scalar_type());
  a.p.out = out.data_ptr();
  if (out.numel() == 0) return out;
  find_offsets(check, a, x);
  const Scratch scratch(x, segment_pool_forward_scratch_on(check, a.p));
  segment_pool_forward_on(check, a.p, scratch.floats());
  return out;
}

// Only a maximum's gradient reads x, unless `token` says where the maxima are (segment_max_forward). Where x isn't
// given, `tokens` is its length.
Tensor segment_pool_backward(const Tensor& dout, const OptionalTensor& x, const OptionalTensor& segment_ids,
                             const OptionalTensor& cu_seqlens, int64_t num_segments, const Text& reduce,
                             const OptionalTensor& mask, const Text& tie, const OptionalTensor& token, int64_t tokens) {
  const Check check("segment_pool_backward", dout);
  const bool packed = cu_seqlens.has_value(), maximum = reduce == "max";
  SegmentArguments a;
  SegmentPoolParams& p = a.p;
  p.reduce = reduction(check, reduce);
  check.require(tie == "first" || tie == "even", "tie must be 'first' or 'even', got '", tie.value, "'");
  check.require(x || !maximum || token, "a maximum needs x, or token from segment_max_forward; got neither");
  check.require(!token || (maximum && tie == "first"), "token goes with reduce='max' and tie='first', got reduce='",
                reduce.value, "' and tie='", tie.value, "'");
  check.require(x || tokens >= 0, "tokens must be >= 0 where x isn't given, got ", tokens);
  const TokenView rows = rows_view(check, x ? *x : dout, x ? "x" : "dout", packed);
  if (maximum && !token) p.x = rows;
  set_sizes(check, p, x ? *x : dout, x ? "x" : "dout", x ? x->size(x->dim() - 2) : tokens, packed);
  set_places(check, a, segment_ids, cu_seqlens, num_segments, mask);
  const std::vector<int64_t> sizes = row_sizes(p, p.segments, packed);
  if (x) check.same_type(dout, "dout", *x, "x");
  check.shape(dout, "dout", sizes, "the result of segment_pool_forward");
  if (token) {
    check.on_device(*token, "token");
    check.type(*token, "token", ScalarType::Int);
    check.shape(*token, "token", sizes, "the result of segment_max_forward");
    check.contiguous(*token, "token");
    check.require(!check.on_cuda(),
                  "token isn't supported on CUDA, whose kernels find the maxima again; give x instead");
    p.token = static_cast<int32_t*>(token->data_ptr());
  }
  SegmentPoolBackwardParams b{};
  b.tie = tie == "even" ? TieRule::even : TieRule::first;
  b.dout = rows_view(check, dout, "dout", packed);
  b.forward = p;
  check_segment_pool_backward_on(check, b);
  Tensor dx = new_tensor(dout, row_sizes(p, p.tokens, packed), dout.scalar_type());
  if (dx.numel() == 0) return dx;
  find_offsets(check, a, dout);
  b.forward = p;
  b.dx = dx.data_ptr();
  const Scratch scratch(dout, segment_pool_backward_scratch_on(check, b));
  segment_pool_backward_on(check, b, scratch.floats());
  return dx;
}

// The maxima, and which token has each of them first: what the gradient needs, instead of x.
std::tuple<Tensor, Tensor> segment_max_forward(const Tensor& x, const OptionalTensor& segment_ids,
                                               const OptionalTensor& cu_seqlens, int64_t num_segments,
                                               const OptionalTensor& mask) {
  const Check check("segment_max_forward");
  SegmentArguments a = arguments(check, x, segment_ids, cu_seqlens, num_segments, PoolReduce::max, mask);
  const std::vector<int64_t> sizes = row_sizes(a.p, a.p.segments, cu_seqlens.has_value());
  Tensor out = new_tensor(x, sizes, x.scalar_type()), token = new_tensor(x, sizes, ScalarType::Int);
  a.p.out = out.data_ptr();
  a.p.token = static_cast<int32_t*>(token.data_ptr());
  if (out.numel() > 0) segment_pool_forward_on(check, a.p, nullptr);
  return {out, token};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attn, CPU, m) {
  m.impl("segment_max_forward", TORCH_BOX(&segment_max_forward));
  m.impl("segment_pool_forward", TORCH_BOX(&segment_pool_forward));
  m.impl("segment_pool_backward", TORCH_BOX(&segment_pool_backward));
}

STABLE_TORCH_LIBRARY_IMPL(attn, CUDA, m) {
  m.impl("segment_pool_forward", TORCH_BOX(&segment_pool_forward));
  m.impl("segment_pool_backward", TORCH_BOX(&segment_pool_backward));
}

}  // namespace attn::ops
