// HiP attention: a tree search chooses short blocks of keys per query block, attention adds sinks and a window.
#include "ops/attend_args.h"
#include "ops/backend.h"
#include "ops/text.h"

namespace attn::ops {
namespace {

// What both halves need to know.
struct HipOptions {
  int64_t block_size_q, block_size_k, sliding_window;
  bool causal;
};

void check_options(const Check& check, const HipOptions& o) {
  constexpr int64_t kMaxBlock = 1 << 20;
  for (const auto& [block, name] :
       {std::pair{o.block_size_q, "block_size_q"}, std::pair{o.block_size_k, "block_size_k"}}) {
    check.require(block >= 1 && block <= kMaxBlock, name, " must be in [1, ", kMaxBlock, "], got ", block);
  }
  check.require(o.sliding_window >= 0 && o.sliding_window <= INT32_MAX, "sliding_window must be in [0, 2**31), got ",
                o.sliding_window);
}

struct SearchOptions {
  int64_t mask_k, block_stride_q;
  const Text &representative, &reduce_heads;
};

// Everything but the lists.
SelectParams select_params(const Check& check, const Tensor& q, const Tensor& k, const HipOptions& o,
                           const SearchOptions& s) {
  constexpr int64_t kMaxKeys = int64_t{1} << 30;
  const AttendParams sizes = attend_params(check, q, k, k, plain_options(o.causal, 1.0));
  check_options(check, o);
  check.require(s.mask_k >= o.block_size_k && s.mask_k <= kMaxKeys, "mask_k must be in [block_size_k, 2**30] = [",
                o.block_size_k, ", ", kMaxKeys, "], got ", s.mask_k);
  check.require(s.block_stride_q >= 1 && s.block_stride_q <= INT32_MAX, "block_stride_q must be >= 1, got ",
                s.block_stride_q);
  check.require(s.representative == "center" || s.representative == "first",
                "representative must be 'center' or 'first', got '", s.representative.value, "'");
  check.require(s.reduce_heads == "none" || s.reduce_heads == "group" || s.reduce_heads == "all",
                "reduce_heads must be 'none', 'group' or 'all', got '", s.reduce_heads.value, "'");
  SelectParams p{};
  p.dtype = sizes.dtype;
  p.batch = sizes.batch;
  p.heads = sizes.heads;
  p.heads_kv = sizes.heads_kv;
  p.tq = sizes.tq;
  p.tk = sizes.tk;
  p.dim = sizes.dim;
  p.q = sizes.q;
  p.k = sizes.k;
  p.mask_k = s.mask_k;
  p.block_q = o.block_size_q;
  p.block_k = o.block_size_k;
  p.stride_q = s.block_stride_q;
  p.window = o.sliding_window;
  p.center = s.representative == "center";
  p.causal = o.causal;
  p.heads_mask = s.reduce_heads == "none" ? p.heads : s.reduce_heads == "group" ? p.heads_kv : 1;
  return p;
}

std::tuple<Tensor, Tensor> select(const Check& check, SelectParams& p, const Tensor& q) {
  const int64_t rows = (p.tq + p.block_q - 1) / p.block_q, length = (p.mask_k + p.block_k - 1) / p.block_k;
  check_hip_select_on(check, p);
  Tensor index = new_tensor(q, {p.batch, p.heads_mask, rows, length}, ScalarType::Int);
  Tensor count = new_tensor(q, {p.batch, p.heads_mask, rows}, ScalarType::Int);
  p.index = static_cast<int32_t*>(index.data_ptr());
  p.count = static_cast<int32_t*>(count.data_ptr());
  if (p.heads > 0) {
    hip_select_on(check, p);
  } else {  // "all" has a list all the same
    torch::stable::zero_(count);
    torch::stable::fill_(index, INT32_MAX);
  }
  return {index, count};
}

// Are the first n entries ascending keys in [0, keys)? No branches, so that a long list is checked at memory speed.
bool is_list(const int32_t* row, int32_t n, int64_t keys) {
  int32_t wrong = n > 0 && row[0] < 0;
  for (int32_t j = 1; j < n; ++j) wrong |= row[j] < row[j - 1];
  return !wrong && (n == 0 || row[n - 1] < keys);
}

[[noreturn]] void refuse_list(const Check& check, const int32_t* row, int32_t n, int64_t keys, const std::string& at) {
  for (int32_t j = 0; j < n; ++j) {
    check.require(row[j] >= 0 && row[j] < keys, "index must hold keys in [0, ", keys,
                  ") in its first count entries, got ", row[j], " at ", at, " entry ", j);
    check.require(j == 0 || row[j] >= row[j - 1], "index must be ascending in its first count entries, got ",
                  row[j - (j > 0)], " before ", row[j], " at ", at, "; sort each row");
  }
  check.fail("index was written to while the call read it; wait for that to end");  // is_list had found a reason
}

// Counts and first keys of a selection that may come from anywhere.
void check_selection(const Check& check, const SelectionView& s, int64_t batch, int64_t rows, int64_t width,
                     int64_t keys) {
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < s.heads; ++h) {
      for (int64_t i = 0; i < rows; ++i) {
        const int32_t n = s.count[b * s.count_batch + h * s.count_head + i];
        const int32_t* row = s.index + b * s.index_batch + h * s.index_head + i * s.index_row;
        if (n >= 0 && n <= width && is_list(row, n, keys)) continue;
        const std::string at = shape_text(std::vector<int64_t>{b, h, i});
        check.require(n >= 0 && n <= width, "count must be in [0, ", width, "] (the width of index), got ", n, " at ",
                      at);
        refuse_list(check, row, n, keys, at);
      }
    }
  }
}

// Everything but the selection.
AttendParams unselected_params(const Check& check, const Tensor& q, const Tensor& k, const Tensor& v,
                               const HipOptions& o, int64_t sink_tokens, std::optional<double> scale) {
  AttendParams p = attend_params(check, q, k, v, plain_options(o.causal, scale));
  check_options(check, o);
  check.require(sink_tokens >= 0 && sink_tokens <= INT32_MAX, "sink_tokens must be in [0, 2**31), got ", sink_tokens);
  p.rule.left = o.sliding_window == 0 ? kEmptyWindow : o.sliding_window - 1;
  p.rule.sink = sink_tokens;
  p.rows_at_end = !o.causal;
  p.schedule = ScheduleKind::gathered;
  return p;
}

// `fresh`: index and count are the search's own.
void set_selection(const Check& check, const Tensor& index, const Tensor& count, const HipOptions& o, bool fresh,
                   AttendParams& p) {
  const int64_t rows = (p.tq + o.block_size_q - 1) / o.block_size_q;
  check.index(count, "count", 3, "[B, Hm, M]");
  check.index(index, "index", 4, "[B, Hm, M, K]");
  const int64_t heads = count.size(1);
  check.require(heads == p.heads || heads == p.heads_kv || heads == 1, "count must have H = ", p.heads,
                ", Hkv = ", p.heads_kv, " or 1 heads, got shape ", shape_text(count));
  check.shape(count, "count", {p.batch, heads, rows}, "[B, Hm, ceil(Tq / block_size_q)]");
  check.shape(index, "index", {p.batch, heads, rows, index.size(3)}, "[B, Hm, ceil(Tq / block_size_q), K]");
  SelectionView& s = p.selection;
  s.block_q = o.block_size_q;
  s.block_k = o.block_size_k;
  s.index = static_cast<const int32_t*>(index.data_ptr());
  s.index_batch = index.stride(0);
  s.index_head = index.stride(1);
  s.index_row = index.stride(2);
  s.width = index.size(3);
  s.count = static_cast<const int32_t*>(count.data_ptr());
  s.count_batch = count.stride(0);
  s.count_head = count.stride(1);
  s.heads = heads;
  // On a GPU looking would mean waiting for it; kernels stay inside whatever the lists hold.
  if (!fresh && check.values_known()) check_selection(check, s, p.batch, rows, index.size(3), p.tk);
}

AttendParams hip_params(const Check& check, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& index,
                        const Tensor& count, const HipOptions& o, int64_t sink_tokens, std::optional<double> scale) {
  AttendParams p = unselected_params(check, q, k, v, o, sink_tokens, scale);
  set_selection(check, index, count, o, false, p);
  return p;
}

std::tuple<Tensor, Tensor> hip_select(const Tensor& q, const Tensor& k, int64_t mask_k, int64_t block_size_q,
                                      int64_t block_size_k, int64_t block_stride_q, int64_t sliding_window,
                                      const Text& representative, const Text& reduce_heads, bool causal) {
  const Check check("hip_select", q);
  SelectParams p = select_params(check, q, k, {block_size_q, block_size_k, sliding_window, causal},
                                 {mask_k, block_stride_q, representative, reduce_heads});
  return select(check, p, q);
}

std::tuple<Tensor, Tensor> hip_attend(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& index,
                                      const Tensor& count, int64_t block_size_q, int64_t block_size_k,
                                      int64_t sliding_window, int64_t sink_tokens, bool causal,
                                      std::optional<double> scale) {
  const Check check("hip_attend", q);
  const HipOptions o{block_size_q, block_size_k, sliding_window, causal};
  AttendParams p = hip_params(check, q, k, v, index, count, o, sink_tokens, scale);
  return run_forward(check, p, q);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> hip_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                       int64_t mask_k, int64_t block_size_q, int64_t block_size_k,
                                                       int64_t block_stride_q, int64_t sliding_window,
                                                       int64_t sink_tokens, const Text& representative,
                                                       const Text& reduce_heads, bool causal,
                                                       std::optional<double> scale) {
  const Check check("hip_forward", q);
  const HipOptions o{block_size_q, block_size_k, sliding_window, causal};
  AttendParams p = unselected_params(check, q, k, v, o, sink_tokens, scale);
  SelectParams s = select_params(check, q, k, o, {mask_k, block_stride_q, representative, reduce_heads});
  check_attend_forward_on(check, p);  // before the search runs
  auto [index, count] = select(check, s, q);
  set_selection(check, index, count, o, true, p);
  auto [out, lse] = run_forward(check, p, q);
  return {out, lse, index, count};
}

std::tuple<Tensor, Tensor, Tensor> hip_backward(const Tensor& dout, const OptionalTensor& dlse, const Tensor& q,
                                                const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse,
                                                const std::vector<bool>& wanted, const Tensor& index,
                                                const Tensor& count, int64_t block_size_q, int64_t block_size_k,
                                                int64_t sliding_window, int64_t sink_tokens, bool causal,
                                                std::optional<double> scale) {
  const Check check("hip_backward", q);
  const HipOptions o{block_size_q, block_size_k, sliding_window, causal};
  AttendParams p = hip_params(check, q, k, v, index, count, o, sink_tokens, scale);
  return first_three(run_backward(check, p, {dout, dlse, q, k, v, out, lse}, wanted));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attn, CPU, m) {
  m.impl("hip_select", TORCH_BOX(&hip_select));
  m.impl("hip_attend", TORCH_BOX(&hip_attend));
  m.impl("hip_forward", TORCH_BOX(&hip_forward));
  m.impl("hip_backward", TORCH_BOX(&hip_backward));
}

STABLE_TORCH_LIBRARY_IMPL(attn, CUDA, m) {
  m.impl("hip_select", TORCH_BOX(&hip_select));
  m.impl("hip_attend", TORCH_BOX(&hip_attend));
  m.impl("hip_forward", TORCH_BOX(&hip_forward));
  m.impl("hip_backward", TORCH_BOX(&hip_backward));
}

}  // namespace attn::ops
