#include "ops/attend_args.h"

#include <algorithm>
#include <cmath>

#include "attn/cpu.h"
#include "ops/token_args.h"

namespace attn::ops {

const OptionalTensor AttendOptions::none = std::nullopt;

AttendOptions plain_options(bool causal, std::optional<double> scale) {
  const OptionalTensor& none = AttendOptions::none;
  return {causal, -1, -1, 0, scale, 0, none, none, none, none, none, none, none, false};
}

bool tokens_first(const Tensor& t) { return t.stride(2) > t.stride(1); }

Tensor new_in_order_of(const Tensor& like, int64_t features) {
  const int64_t b = like.size(0), h = like.size(1), t = like.size(2);
  // Strides as torch.empty gives them: a dimension of size 0 counts as 1.
  const int64_t f1 = std::max<int64_t>(features, 1), h1 = std::max<int64_t>(h, 1), t1 = std::max<int64_t>(t, 1);
  const bool by_token = tokens_first(like);
  const int64_t sizes[4] = {b, h, t, features};
  const int64_t strides[4] = {h1 * t1 * f1, by_token ? f1 : t1 * f1, by_token ? h1 * f1 : f1, 1};
  int32_t dtype, device_type, device_index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle;
  // Not empty().transpose(): a view returned from an autograd Function can't be modified in place.
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(4, sizes, strides, dtype, device_type, device_index, &handle));
  return Tensor(handle);
}

namespace {

// Kernels count tokens and the sums of two positions in int32.
constexpr int64_t kMaxTokens = int64_t{1} << 30;
// Windows and sinks beyond it mean the same as it.
constexpr int64_t kMaxReach = int64_t{1} << 32;

void check_qkv(const Check& check, const Tensor& q, const Tensor& k, const Tensor& v, const AttendOptions& o,
               AttendParams& p) {
  const bool paged = o.store == KeyStore::pages;
  const char *k_name = o.store == KeyStore::tensors ? "k" : "k_cache",
             *v_name = o.store == KeyStore::tensors ? "v" : "v_cache",
             *k_shape = paged ? "[P, Hkv, page, D]" : "[B, Hkv, Tk, D]",
             *v_shape = paged ? "[P, Hkv, page, Dv]" : "[B, Hkv, Tk, Dv]";
  p.dtype = check.floating(q, "q");
  check.rank(q, "q", 4, "[B, H, Tq, D]");
  for (const auto& [t, name, shape] : {std::tuple{&k, k_name, k_shape}, std::tuple{&v, v_name, v_shape}}) {
    check.on_device(*t, name);
    check.same_type(*t, name, q, "q");
    check.rank(*t, name, 4, shape);
  }
  p.batch = q.size(0);
  p.heads = q.size(1);
  p.heads_kv = k.size(1);
  p.tq = q.size(2);
  p.tk = paged ? o.capacity : k.size(2);
  p.dim = q.size(3);
  p.dim_v = v.size(3);
  check.require(paged || k.size(0) == p.batch, k_name, " must have the batch size of q (", p.batch, "), got shape ",
                shape_text(k));
  check.require(k.size(3) == p.dim, k_name, " must have the head dimension of q (", p.dim, "), got shape ",
                shape_text(k));
  check.require(v.size(0) == k.size(0) && v.size(1) == p.heads_kv && v.size(2) == k.size(2), v_name,
                " must have the batch size, heads and tokens of ", k_name, " ", shape_text(k), ", got shape ",
                shape_text(v));
  check.require(p.heads_kv > 0 ? p.heads % p.heads_kv == 0 : p.heads == 0, "the number of heads of q (", p.heads,
                ") must be a multiple of that of k and v (", p.heads_kv, ")");
  check.require(p.dim > 0, "q and k must have a head dimension of at least 1, got shape ", shape_text(q));
  for (const auto& [t, name] : {std::pair{&q, "q"}, std::pair{&k, k_name}}) {
    check.require(t->size(2) <= kMaxTokens, name, " must have at most 2**30 tokens, got shape ", shape_text(*t));
  }
  check.last_contiguous(q, "q");
  check.last_contiguous(k, k_name);
  check.last_contiguous(v, v_name);
  p.q = check.view4(q);
  p.k = check.view4(k);
  p.v = check.view4(v);
}

void set_rule(const Check& check, const AttendOptions& o, AttendParams& p) {
  for (const auto& [value, name] :
       {std::pair{o.window_left, "window_left"}, std::pair{o.window_right, "window_right"}}) {
    check.require(value >= -1, name, " must be -1 (unlimited) or a number of keys, got ", value);
  }
  check.require(o.sink_tokens >= 0, "sink_tokens must be >= 0, got ", o.sink_tokens);
  p.rule = {o.causal, std::min(o.window_left, kMaxReach), std::min(o.window_right, kMaxReach),
            std::min(o.sink_tokens, kMaxReach)};
  p.scale = o.scale ? *o.scale : 1 / std::sqrt(static_cast<double>(p.dim));
  // Kernels hold both in the accumulator type, times log2 e.
  const double limit = p.dtype == DType::f64 ? 1e300 : 1e37;
  check.require(std::abs(p.scale) <= limit, "scale must be finite and at most ", limit, " in size, got ", p.scale);
  check.require(o.softcap == 0 || (o.softcap >= 1 / limit && o.softcap <= limit),
                "softcap must be positive and finite, or 0 for none, got ", o.softcap);
  p.softcap = o.softcap;
}

void set_sequences(const Check& check, const AttendOptions& o, AttendParams& p) {
  check.require(o.cu_seqlens_q.has_value() == o.cu_seqlens_k.has_value(),
                "cu_seqlens_q and cu_seqlens_k must be given together");
  if (!o.cu_seqlens_q) return;
  check.require(p.batch == 1, "cu_seqlens_q needs a batch size of 1 (sequences are packed along tokens), got ",
                p.batch);
  p.cu_q = bounds_argument(check, *o.cu_seqlens_q, "cu_seqlens_q", p.tq);
  p.cu_k = bounds_argument(check, *o.cu_seqlens_k, "cu_seqlens_k", p.tk);
  check.require(o.cu_seqlens_q->size(0) == o.cu_seqlens_k->size(0),
                "cu_seqlens_q and cu_seqlens_k must describe the same number of sequences, got shapes ",
                shape_text(*o.cu_seqlens_q), " and ", shape_text(*o.cu_seqlens_k));
  p.sequences = o.cu_seqlens_q->size(0) - 1;
}

IdView ids(const Check& check, const Tensor& t, const char* name, int64_t batch, int64_t tokens, const char* layout) {
  check.on_device(t, name);
  check.type(t, name, ScalarType::Int);
  check.shape(t, name, {batch, tokens}, layout);
  return {static_cast<const int32_t*>(t.data_ptr()), t.stride(0), t.stride(1)};
}

View3 float_rows(const Check& check, const Tensor& t, const char* name, const std::vector<int64_t>& sizes,
                 const char* layout) {
  check.on_device(t, name);
  check.type(t, name, ScalarType::Float);
  check.shape(t, name, sizes, layout);
  return check.view3(t);
}

void set_modifiers(const Check& check, const AttendOptions& o, AttendParams& p) {
  check.require(o.segment_q.has_value() == o.segment_k.has_value(), "segment_q and segment_k must be given together");
  if (o.segment_q) {
    p.segment_q = ids(check, *o.segment_q, "segment_q", p.batch, p.tq, "[B, Tq]");
    p.segment_k = ids(check, *o.segment_k, "segment_k", p.batch, p.tk, "[B, Tk]");
  }
  if (o.key_log_weight) {
    p.key_log_weight =
        float_rows(check, *o.key_log_weight, "key_log_weight", {p.batch, p.heads_kv, p.tk}, "[B, Hkv, Tk]");
  }
  if (o.sink_logits) {
    check.on_device(*o.sink_logits, "sink_logits");
    check.type(*o.sink_logits, "sink_logits", ScalarType::Float);
    check.shape(*o.sink_logits, "sink_logits", {p.heads}, "[H]");
    check.contiguous(*o.sink_logits, "sink_logits");
    p.sink_logits = static_cast<const float*>(o.sink_logits->data_ptr());
  }
  if (o.head_gate) {
    p.head_gate = float_rows(check, *o.head_gate, "head_gate", {p.batch, p.heads, p.tq}, "[B, H, Tq]");
  }
  p.skip_gated = o.skip_gated;
}

}  // namespace

AttendParams attend_params(const Check& check, const Tensor& q, const Tensor& k, const Tensor& v,
                           const AttendOptions& options) {
  AttendParams p{};
  check_qkv(check, q, k, v, options, p);
  set_rule(check, options, p);
  set_sequences(check, options, p);
  set_modifiers(check, options, p);
  return p;
}

}  // namespace attn::ops
