// Decoding: a few new tokens against caches, contiguous or in pages, each sequence as long as it says.
#include <algorithm>
#include <optional>

#include "ops/layout_args.h"

namespace attn::ops {
namespace {

// Pages a sequence of `keys` keys uses.
int64_t pages_of(int64_t keys, int64_t page) { return (keys + page - 1) / page; }

PageTable check_pages(const Check& check, const Tensor& table, const Tensor& k_cache, int64_t batch) {
  check.index(table, "block_table", 2, "[B, pages]");
  check.require(table.size(0) == batch, "block_table must be [B, pages] with B = ", batch, ", got shape ",
                shape_text(table));
  check.contiguous(table, "block_table");
  check.rank(k_cache, "k_cache", 4, "[P, Hkv, page, D]");
  check.require(k_cache.size(2) > 0, "k_cache must have pages of at least 1 key, got shape ", shape_text(k_cache));
  const int64_t pages = table.size(1), page = k_cache.size(2);
  constexpr int64_t kMaxTokens = int64_t{1} << 30;
  check.require(pages <= kMaxTokens / page, "block_table must span at most 2**30 keys, got ", pages, " pages of ",
                page);
  return {static_cast<const int32_t*>(table.data_ptr()), pages, page, k_cache.size(0)};
}

// Lengths, and every page that they say is read.
void check_lengths(const Check& check, const Tensor& seqlens, const AttendParams& p, const PageTable& t,
                   int64_t stored_pages) {
  check.index(seqlens, "seqlens", 1, "[B]");
  check.shape(seqlens, "seqlens", {p.batch}, "[B]");
  check.contiguous(seqlens, "seqlens");
  if (!check.values_known()) return;  // kernels read no key past the capacity and no page that isn't there
  const int32_t* n = static_cast<const int32_t*>(seqlens.data_ptr());
  for (int64_t b = 0; b < p.batch; ++b) {
    check.require(n[b] >= 0 && n[b] <= p.tk, "seqlens must be in [0, ", p.tk, "] (what the cache can hold), got ", n[b],
                  " at entry ", b);
    if (!t.table) continue;
    for (int64_t i = 0; i < pages_of(n[b], t.page); ++i) {
      const int32_t entry = t.table[b * t.pages + i];
      check.require(entry >= 0 && entry < stored_pages, "block_table must hold pages in [0, ", stored_pages,
                    ") as far as seqlens reaches, got ", entry, " at [", b, ", ", i, "]");
    }
  }
}

std::tuple<Tensor, Tensor> decode_forward(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                                          const Tensor& seqlens, const OptionalTensor& block_table,
                                          const OptionalTensor& kv_count, const OptionalTensor& kv_index,
                                          const OptionalTensor& full_count, const OptionalTensor& full_index,
                                          const OptionalTensor& partial_slot, const OptionalTensor& partial_bits,
                                          int64_t block_q, int64_t block_k, int64_t layout_keys, int64_t window_left,
                                          int64_t window_right, int64_t sink_tokens, std::optional<double> scale,
                                          const OptionalTensor& key_log_weight) {
  const Check check("decode_forward", q);
  const OptionalTensor& none = AttendOptions::none;
  check.rank(q, "q", 4, "[B, H, Tq, D]");
  PageTable pages{nullptr, 0, 0, 0};
  if (block_table) pages = check_pages(check, *block_table, k_cache, q.size(0));
  AttendParams p =
      attend_params(check, q, k_cache, v_cache,
                    {true, window_left, window_right, sink_tokens, scale, 0, key_log_weight, none, none, none, none,
                     none, none, false, block_table ? KeyStore::pages : KeyStore::caches, pages.pages * pages.page});
  check_lengths(check, seqlens, p, pages, k_cache.size(0));
  p.key_lengths = static_cast<const int32_t*>(seqlens.data_ptr());
  p.paging = pages;
  check.require(kv_count.has_value() == kv_index.has_value(), "kv_count and kv_index must be given together");
  check.require(kv_count || (!full_count && !full_index && !partial_slot && !partial_bits),
                "full_count, full_index, partial_slot and partial_bits need kv_count");
  if (kv_count) {
    set_layout(check, {*kv_count, *kv_index, full_count, full_index, partial_slot, partial_bits, block_q, block_k}, p);
    check.require(layout_keys >= -1 && layout_keys <= p.tk, "layout_keys must be in [0, ", p.tk,
                  "] or -1 (all that the cache can hold), got ", layout_keys);
    if (layout_keys >= 0) p.layout.keys = layout_keys;
  }
  // Work is shared out by what is there, not by what there is room for.
  const int32_t* lengths = p.key_lengths;
  if (check.values_known()) p.tk = p.batch > 0 ? *std::max_element(lengths, lengths + p.batch) : 0;
  return run_forward(check, p, q);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attn, CPU, m) { m.impl("decode_forward", TORCH_BOX(&decode_forward)); }
STABLE_TORCH_LIBRARY_IMPL(attn, CUDA, m) { m.impl("decode_forward", TORCH_BOX(&decode_forward)); }

}  // namespace attn::ops
