#include "ops/layout_args.h"

namespace attn::ops {
namespace {

// One (count, index) pair of a layout.
struct List {
  const char *count_name, *index_name;
  int64_t batch, heads, rows, width;
  const int32_t *count, *index;
  int64_t count_batch, count_head, index_batch, index_head, index_row;

  const int32_t* row(int64_t b, int64_t h, int64_t i) const {
    return index + b * index_batch + h * index_head + i * index_row;
  }
  int32_t used(int64_t b, int64_t h, int64_t i) const { return count[b * count_batch + h * count_head + i]; }
};

// A dimension of size 1 is shared: stride 0.
int64_t stride_or_shared(const Tensor& t, int64_t dim) { return t.size(dim) == 1 ? 0 : t.stride(dim); }

List open_list(const Check& check, const Tensor& count, const Tensor& index, const char* count_name,
               const char* index_name, const AttendParams& p, int64_t rows) {
  check.index(count, count_name, 3, "[B|1, H|1, M]");
  check.index(index, index_name, 4, "[B|1, H|1, M, N]");
  for (const auto& [t, name] : {std::pair{&count, count_name}, std::pair{&index, index_name}}) {
    check.require((t->size(0) == 1 || t->size(0) == p.batch) && (t->size(1) == 1 || t->size(1) == p.heads), name,
                  " must have a batch size of 1 or ", p.batch, " and 1 or ", p.heads, " heads, got shape ",
                  shape_text(*t));
    check.require(t->size(2) == rows, name, " must have M = ceil(Tq / block_q) = ", rows, " rows, got shape ",
                  shape_text(*t));
  }
  check.require(index.size(0) == count.size(0) && index.size(1) == count.size(1), index_name,
                " must have the batch size and heads of ", count_name, " ", shape_text(count), ", got shape ",
                shape_text(index));
  return {count_name,
          index_name,
          count.size(0),
          count.size(1),
          rows,
          index.size(3),
          static_cast<const int32_t*>(count.data_ptr()),
          static_cast<const int32_t*>(index.data_ptr()),
          stride_or_shared(count, 0),
          stride_or_shared(count, 1),
          stride_or_shared(index, 0),
          stride_or_shared(index, 1),
          index.stride(2)};
}

std::string place(int64_t b, int64_t h, int64_t i) { return shape_text(std::vector<int64_t>{b, h, i}); }

// Calls fn(b, h, i) once for every stored row.
template <class F> void for_each_row(const List& l, F&& fn) {
  for (int64_t b = 0; b < l.batch; ++b) {
    for (int64_t h = 0; h < l.heads; ++h) {
      for (int64_t i = 0; i < l.rows; ++i) fn(b, h, i);
    }
  }
}

void check_values(const Check& check, const List& l, int64_t columns) {
  for_each_row(l, [&](int64_t b, int64_t h, int64_t i) {
    const int32_t n = l.used(b, h, i);
    check.require(n >= 0 && n <= l.width, l.count_name, " must be in [0, ", l.width, "] (the width of ", l.index_name,
                  "), got ", n, " at ", place(b, h, i));
    const int32_t* row = l.row(b, h, i);
    int32_t least = 0;  // ascending entries that start here and end below `columns` are all in range
    bool good = true;
    for (int32_t j = 0; j < n; ++j) {
      good &= row[j] >= least;
      least = row[j] < INT32_MAX ? row[j] + 1 : row[j];
    }
    if (good && (n == 0 || row[n - 1] < columns)) return;
    for (int32_t j = 0; j < n; ++j) {
      check.require(row[j] >= 0 && row[j] < columns, l.index_name, " must hold key blocks in [0, ", columns,
                    ") in its first ", l.count_name, " entries, got ", row[j], " at ", place(b, h, i), " entry ", j);
      check.require(j == 0 || row[j] > row[j - 1], l.index_name, " must be ascending without repeats in its first ",
                    l.count_name, " entries, got ", row[j - (j > 0)], " before ", row[j], " at ", place(b, h, i),
                    "; attn.BlockLayout merges repeats");
    }
  });
}

void check_disjoint(const Check& check, const List& kv, const List& full) {
  for_each_row(kv, [&](int64_t b, int64_t h, int64_t i) {
    const int32_t *x = kv.row(b, h, i), *y = full.row(b, h, i);
    const int32_t nx = kv.used(b, h, i), ny = full.used(b, h, i);
    for (int32_t j = 0, k = 0; j < nx && k < ny;) {
      check.require(x[j] != y[k], "full_index and kv_index must be disjoint, but block ", x[j], " of row ",
                    place(b, h, i), " is in both");
      if (x[j] < y[k]) ++j;
      else ++k;
    }
  });
}

void check_slots(const Check& check, const List& kv, const int32_t* slots, int64_t tiles) {
  for_each_row(kv, [&](int64_t b, int64_t h, int64_t i) {
    const int32_t* row = slots + (kv.row(b, h, i) - kv.index);
    for (int32_t j = 0; j < kv.used(b, h, i); ++j) {
      check.require(row[j] >= -1 && row[j] < tiles, "partial_slot must be -1 (wholly kept) or a tile in [0, ", tiles,
                    "), got ", row[j], " at ", place(b, h, i), " entry ", j);
    }
  });
}

void set_tiles(const Check& check, const LayoutTensors& t, const List& kv, LayoutView& l) {
  check.require(t.partial_slot.has_value() == t.partial_bits.has_value(),
                "partial_slot and partial_bits must be given together");
  if (!t.partial_slot) return;
  const Tensor &slot = *t.partial_slot, &bits = *t.partial_bits;
  check.index(slot, "partial_slot", 4, "[B|1, H|1, M, N]");
  check.shape(slot, "partial_slot", {kv.batch, kv.heads, kv.rows, kv.width}, "shaped like kv_index");
  for (int64_t dim = 0; dim < 4; ++dim) {
    check.require(slot.size(dim) <= 1 || slot.stride(dim) == t.kv_index.stride(dim),
                  "partial_slot must have the strides of kv_index; call .contiguous() on both");
  }
  check.index(bits, "partial_bits", 3, "[P, block_q, ceil(block_k / 32)]");
  check.shape(bits, "partial_bits", {bits.size(0), t.block_q, (t.block_k + 31) / 32},
              "[P, block_q, ceil(block_k / 32)]");
  check.contiguous(bits, "partial_bits");
  if (check.values_known()) check_slots(check, kv, static_cast<const int32_t*>(slot.data_ptr()), bits.size(0));
  l.slot = static_cast<const int32_t*>(slot.data_ptr());
  l.bits = static_cast<const int32_t*>(bits.data_ptr());
  l.num_slots = bits.size(0);
}

}  // namespace

void set_layout(const Check& check, const LayoutTensors& t, AttendParams& p) {
  constexpr int64_t kMaxBlock = 1 << 20;
  for (const auto& [block, name] : {std::pair{t.block_q, "block_q"}, std::pair{t.block_k, "block_k"}}) {
    check.require(block > 0 && block % 16 == 0 && block <= kMaxBlock, name,
                  " must be a positive multiple of 16, at most ", kMaxBlock, ", got ", block);
  }
  p.schedule = ScheduleKind::layout;
  LayoutView& l = p.layout;
  l.keys = p.tk;
  l.block_q = t.block_q;
  l.block_k = t.block_k;
  const int64_t rows = (p.tq + t.block_q - 1) / t.block_q, columns = (p.tk + t.block_k - 1) / t.block_k;
  const List kv = open_list(check, t.kv_count, t.kv_index, "kv_count", "kv_index", p, rows);
  if (check.values_known()) check_values(check, kv, columns);
  l.count = kv.count;
  l.count_batch = kv.count_batch;
  l.count_head = kv.count_head;
  l.index = kv.index;
  l.index_batch = kv.index_batch;
  l.index_head = kv.index_head;
  l.index_row = kv.index_row;
  l.width = kv.width;
  set_tiles(check, t, kv, l);
  check.require(t.full_count.has_value() == t.full_index.has_value(),
                "full_count and full_index must be given together");
  if (!t.full_count) return;
  const List full = open_list(check, *t.full_count, *t.full_index, "full_count", "full_index", p, rows);
  check.require(full.batch == kv.batch && full.heads == kv.heads, "full_count must have the shape of kv_count ",
                shape_text(t.kv_count), ", got shape ", shape_text(*t.full_count));
  if (check.values_known()) {
    check_values(check, full, columns);
    check_disjoint(check, kv, full);
  }
  l.full_count = full.count;
  l.full_count_batch = full.count_batch;
  l.full_count_head = full.count_head;
  l.full_index = full.index;
  l.full_index_batch = full.index_batch;
  l.full_index_head = full.index_head;
  l.full_index_row = full.index_row;
  l.full_width = full.width;
}

}  // namespace attn::ops
