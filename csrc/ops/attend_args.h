// What the attend ops share: their options, the way from checked tensors to kernel params, and running a pass.
#pragma once

#include <array>
#include <tuple>

#include "attn/params.h"
#include "ops/check.h"

namespace attn::ops {

using OptionalTensor = std::optional<Tensor>;

// What k and v are: one entry per batch entry, the same as caches (only their names in errors differ), or pages that
// all batch entries share.
enum class KeyStore { tensors, caches, pages };

// Everything but q, k, v and the schedule. Tensors are held by reference: an Options lives inside one op call.
struct AttendOptions {
  bool causal = false;
  int64_t window_left = -1, window_right = -1;  // -1 = unlimited
  int64_t sink_tokens = 0;
  std::optional<double> scale;  // default D ** -0.5
  double softcap = 0;           // 0 = off
  const OptionalTensor& key_log_weight;
  const OptionalTensor& segment_q;
  const OptionalTensor& segment_k;
  const OptionalTensor& cu_seqlens_q;
  const OptionalTensor& cu_seqlens_k;
  const OptionalTensor& sink_logits;
  const OptionalTensor& head_gate;
  bool skip_gated = false;
  KeyStore store = KeyStore::tensors;
  int64_t capacity = 0;  // pages: logical keys a sequence may have; k and v are [P, Hkv, page, D]

  static const OptionalTensor none;
};

// Options of a mechanism without modifiers.
AttendOptions plain_options(bool causal, std::optional<double> scale);

// Checks q, k, v and the options and fills everything but the schedule, out and lse.
AttendParams attend_params(const Check& check, const Tensor& q, const Tensor& k, const Tensor& v,
                           const AttendOptions& options);

// What an op was given for its backward pass.
struct BackwardTensors {
  const Tensor& dout;
  const OptionalTensor& dlse;
  const Tensor &q, &k, &v, &out, &lse;
};

// Gradients of q, k, v, key_log_weight, sink_logits, head_gate, in this order; `wanted` says which are computed.
enum Gradient { kQ, kK, kV, kKeyLogWeight, kSinkLogits, kHeadGate, kGradients };
using Gradients = std::array<Tensor, kGradients>;

// Runs the forward pass for params that lack only out and lse; returns (out, lse).
std::tuple<Tensor, Tensor> run_forward(const Check& check, AttendParams& p, const Tensor& q);

// Runs the backward pass for params that lack only out and lse. A gradient that isn't wanted has no elements.
Gradients run_backward(const Check& check, AttendParams& p, const BackwardTensors& t, const std::vector<bool>& wanted);

// What mechanisms without modifiers return.
inline std::tuple<Tensor, Tensor, Tensor> first_three(const Gradients& g) { return {g[kQ], g[kK], g[kV]}; }

// An uninitialised [B, H, T, features] tensor. It lies in memory as [B, T, H, features] where `like` is a transposed
// view of that form, so that models which hold tokens before heads get their own order back.
Tensor new_in_order_of(const Tensor& like, int64_t features);

// Whether `t` [B, H, T, D] holds tokens before heads.
bool tokens_first(const Tensor& t);

}  // namespace attn::ops
