// PoNet's token mixing.
#include "ops/backend.h"
#include "ops/pool_args.h"

namespace attn::ops {
namespace {

struct PonetOptions {
  int64_t num_heads;
  const OptionalTensor& segment_ids;
  int64_t segment_length, window;
  const OptionalTensor &mask, &special_mask, &cu_seqlens;
};

// Params and what they point to.
struct PonetArguments {
  PonetParams p{};
  std::vector<int32_t> ids;     // on the CPU
  IdView given{nullptr, 0, 0};  // on a GPU, where they are yet to be made ascending
  std::optional<Tensor> ids_there;
};

void set_inputs(const Check& check, PonetArguments& a, const Tensor& k, const Tensor& o, const Tensor& segment,
                const Tensor& local, const PonetOptions& options) {
  PonetParams& p = a.p;
  p.k = token_view(check, k, "k");
  p.dtype = check.floating(k, "k");
  p.o = token_view_like(check, o, "o", k, "k");
  p.segment = token_view_like(check, segment, "segment", k, "k");
  p.local = token_view_like(check, local, "local", k, "k");
  p.channels = k.size(2);
  p.heads = options.num_heads;
  check.require(p.heads >= 1 && p.channels % p.heads == 0, "num_heads must divide the number of channels (", p.channels,
                "), got ", p.heads);
  p.sequences = sequences(check, k.size(0), k.size(1), options.cu_seqlens);
  p.mask = mask_argument(check, options.mask, "mask", k.size(0), k.size(1));
  p.special = mask_argument(check, options.special_mask, "special_mask", k.size(0), k.size(1));
  p.window = options.window;
  check.require(p.window >= 1 && p.window % 2 == 1 && p.window < INT32_MAX, "window must be odd and positive, got ",
                p.window);
  p.segment_length = options.segment_length;
  check.require(p.segment_length >= 0, "segment_length must be positive, or 0 for one segment, got ", p.segment_length);
  if (!options.segment_ids) return;
  check.require(p.segment_length == 0, "segment_ids and segment_length exclude each other");
  const IdView ids = ids_argument(check, *options.segment_ids, p.sequences);
  if (!check.values_known()) {
    a.given = ids;
    p.ids = ids.data;  // so that a backend knows that there are some
    return;
  }
  a.ids = ascending_ids(check, ids, p.sequences, p.mask);
  p.ids = a.ids.data();
}

// Ids as kernels take them, made on a GPU.
void find_ids(const Check& check, PonetArguments& a, const Tensor& like) {
  if (!a.given.data) return;
  PonetParams& p = a.p;
  a.ids_there = new_tensor(like, {p.sequences.batch * p.sequences.tokens}, ScalarType::Int);
  int32_t* ids = static_cast<int32_t*>(a.ids_there->data_ptr());
  segment_ids_on(check, {p.sequences, a.given, p.mask, ids});
  p.ids = ids;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ponet_forward(
    const OptionalTensor& q, const Tensor& k, const Tensor& o, const Tensor& segment, const Tensor& local,
    const OptionalTensor& pooled_query, int64_t num_heads, const OptionalTensor& segment_ids, int64_t segment_length,
    int64_t window, const OptionalTensor& mask, const OptionalTensor& special_mask, const OptionalTensor& cu_seqlens) {
  const Check check("ponet_forward", k);
  PonetArguments a;
  set_inputs(check, a, k, o, segment, local,
             {num_heads, segment_ids, segment_length, window, mask, special_mask, cu_seqlens});
  PonetParams& p = a.p;
  check.require(q.has_value() != pooled_query.has_value(), "exactly one of q and pooled_query must be given");
  if (q) p.q = token_view_like(check, *q, "q", k, "k");
  const ScalarType type = statistics_type(k);
  const std::vector<int64_t> sizes{p.sequences.count, p.channels};
  if (pooled_query) {
    check.on_device(*pooled_query, "pooled_query");
    check.type(*pooled_query, "pooled_query", type);
    check.shape(*pooled_query, "pooled_query", sizes, "[sequences, C]");
    check.contiguous(*pooled_query, "pooled_query");
    p.query = pooled_query->data_ptr();
  }
  check_ponet_forward_on(check, p);
  Tensor out = gradient_like(k, true);
  Tensor query = new_tensor(k, sizes, type), aggregate = new_tensor(k, sizes, type);
  Tensor lse = new_tensor(k, {p.sequences.count, p.heads}, type);
  p.out = out.data_ptr();
  p.pooled = query.data_ptr();
  p.global = aggregate.data_ptr();
  p.lse = lse.data_ptr();
  if (p.channels == 0) {
    torch::stable::fill_(lse, -INFINITY);
    return {out, query, aggregate, lse};
  }
  find_ids(check, a, k);
  const Scratch scratch(k, ponet_forward_scratch_on(check, p));
  ponet_forward_on(check, p, scratch.floats());
  return {out, query, aggregate, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> ponet_backward(
    const Tensor& dout, const Tensor& k, const Tensor& o, const Tensor& segment, const Tensor& local,
    const Tensor& query, const Tensor& aggregate, const Tensor& lse, const std::vector<bool>& wanted, int64_t num_heads,
    const OptionalTensor& segment_ids, int64_t segment_length, int64_t window, const OptionalTensor& mask,
    const OptionalTensor& special_mask, const OptionalTensor& cu_seqlens, const Text& tie) {
  const Check check("ponet_backward", k);
  PonetArguments a;
  set_inputs(check, a, k, o, segment, local,
             {num_heads, segment_ids, segment_length, window, mask, special_mask, cu_seqlens});
  PonetParams& p = a.p;
  const ScalarType type = statistics_type(k);
  const auto statistic = [&](const Tensor& t, const char* name, int64_t width) {
    check.on_device(t, name);
    check.type(t, name, type);
    check.shape(t, name, {p.sequences.count, width}, "what ponet_forward returned");
    check.contiguous(t, name);
    return t.data_ptr();
  };
  p.pooled = statistic(query, "query", p.channels);
  p.global = statistic(aggregate, "aggregate", p.channels);
  p.lse = statistic(lse, "lse", p.heads);
  wanted_count(check, wanted, 6);
  PonetBackwardParams b{};
  check.require(tie == "first" || tie == "even", "tie must be 'first' or 'even', got '", tie.value, "'");
  b.tie = tie == "even" ? TieRule::even : TieRule::first;
  b.dout = token_view_like(check, dout, "dout", k, "k");
  b.forward = p;
  check_ponet_backward_on(check, b);
  Tensor dq = gradient_like(k, wanted[0]), dk = gradient_like(k, wanted[1]), d_o = gradient_like(k, wanted[2]);
  Tensor dsegment = gradient_like(k, wanted[3]), dlocal = gradient_like(k, wanted[4]);
  Tensor dquery = gradient_like(query, wanted[5]);
  b.dq = data_if(dq, wanted[0]);
  b.dk = data_if(dk, wanted[1]);
  b.d_o = data_if(d_o, wanted[2]);
  b.dsegment = data_if(dsegment, wanted[3]);
  b.dlocal = data_if(dlocal, wanted[4]);
  b.dquery = data_if(dquery, wanted[5]);
  if (p.channels > 0) {
    find_ids(check, a, k);
    b.forward = p;
    const Scratch scratch(k, ponet_backward_scratch_on(check, b));
    ponet_backward_on(check, b, scratch.floats());
  }
  return {dq, dk, d_o, dsegment, dlocal, dquery};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attn, CPU, m) {
  m.impl("ponet_forward", TORCH_BOX(&ponet_forward));
  m.impl("ponet_backward", TORCH_BOX(&ponet_backward));
}

STABLE_TORCH_LIBRARY_IMPL(attn, CUDA, m) {
  m.impl("ponet_forward", TORCH_BOX(&ponet_forward));
  m.impl("ponet_backward", TORCH_BOX(&ponet_backward));
}

}  // namespace attn::ops
