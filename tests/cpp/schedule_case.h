// A call's schedule and token rule as random data, and what each query row sees by the definitions in the
// documentation. Nothing here uses attn/schedule.h or attn/mask.h beyond their plain structs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <ostream>
#include <random>
#include <vector>

#include "attn/params.h"

namespace attn {

struct ScheduleOptions {
  ScheduleKind kind = ScheduleKind::range;
  int64_t batch = 1, heads = 2, heads_kv = 2, tq = 64, tk = 64;
  std::vector<int32_t> cu_q, cu_k;   // packed sequences: batch is 1, tq and tk are the tokens
  std::vector<int32_t> key_lengths;  // per batch entry
  bool causal = false;
  int64_t left = -1, right = -1, sink = 0;
  int64_t block_q = 32, block_k = 32;  // layout and gathered
  double density = 0.5;                // of listed blocks
  bool full_list = false, bits = false, shared_batch = false, shared_heads = false;
  int64_t local = 2, stride = 3, head_step = 1, head_offset = 0, dense_heads = 0;  // strided; blocks are block_q
  bool bidirectional = false;
  int64_t selection_heads = 2;  // gathered
  bool rows_at_end = false;

  friend std::ostream& operator<<(std::ostream& out, const ScheduleOptions& o) {
    const char* kinds[] = {"range", "layout", "strided", "gathered"};
    out << kinds[static_cast<int>(o.kind)] << " B" << o.batch << " H" << o.heads << "/" << o.heads_kv << " T" << o.tq
        << "x" << o.tk << (o.causal ? " causal" : "") << " window " << o.left << "," << o.right << " sink " << o.sink;
    if (!o.cu_q.empty()) out << " packed " << o.cu_q.size() - 1;
    if (!o.key_lengths.empty()) out << " key lengths";
    if (o.kind != ScheduleKind::range) out << " blocks " << o.block_q << "x" << o.block_k << " density " << o.density;
    if (o.full_list) out << " full list";
    if (o.bits) out << " bits";
    if (o.kind == ScheduleKind::strided) {
      out << " local " << o.local << " stride " << o.stride << " step " << o.head_step << " offset " << o.head_offset
          << " dense " << o.dense_heads << (o.bidirectional ? " bidirectional" : "");
    }
    if (o.kind == ScheduleKind::gathered)
      out << " selection heads " << o.selection_heads << " at end " << o.rows_at_end;
    return out;
  }
};

// One sequence of the call.
struct TestSequence { int64_t batch, q_token, k_token, queries, keys; };

class ScheduleCase {
 public:
  ScheduleCase(const ScheduleOptions& options, uint32_t seed) : o(options), random_(seed) {
    if (o.kind == ScheduleKind::layout) make_layout();
    if (o.kind == ScheduleKind::gathered) make_selection();
  }
  ScheduleCase(const ScheduleCase&) = delete;  // params() points into it
  ScheduleCase& operator=(const ScheduleCase&) = delete;

  const ScheduleOptions o;

  // Everything but the tensors.
  AttendParams params() const {
    AttendParams p{};
    p.batch = o.batch;
    p.heads = o.heads;
    p.heads_kv = o.heads_kv;
    p.tq = o.tq;
    p.tk = o.tk;
    if (!o.cu_q.empty()) {
      p.cu_q = o.cu_q.data();
      p.cu_k = o.cu_k.data();
      p.sequences = static_cast<int64_t>(o.cu_q.size()) - 1;
    }
    if (!o.key_lengths.empty()) p.key_lengths = o.key_lengths.data();
    p.rule = {o.causal, o.left, o.right, o.sink};
    p.rows_at_end = o.rows_at_end;
    p.schedule = o.kind;
    if (o.kind == ScheduleKind::layout) p.layout = layout_view();
    if (o.kind == ScheduleKind::strided) {
      p.strided = {o.block_q,      o.local, o.stride, o.head_step, o.head_offset, o.heads_kv - o.dense_heads,
                   o.bidirectional};
    }
    if (o.kind == ScheduleKind::gathered) {
      const int64_t k = entries_;
      p.selection = {o.block_q,
                     o.block_k,
                     index_.data(),
                     o.selection_heads * rows_ * k,
                     rows_ * k,
                     k,
                     k,
                     count_.data(),
                     o.selection_heads * rows_,
                     rows_,
                     o.selection_heads};
    }
    return p;
  }

  std::vector<TestSequence> sequences() const {
    std::vector<TestSequence> all;
    if (o.cu_q.empty()) {
      for (int64_t b = 0; b < o.batch; ++b)
        all.push_back({b, 0, 0, o.tq, o.key_lengths.empty() ? o.tk : o.key_lengths[b]});
    }
    for (size_t s = 0; s + 1 < o.cu_q.size(); ++s) {
      all.push_back({0, o.cu_q[s], o.cu_k[s], o.cu_q[s + 1] - o.cu_q[s], o.cu_k[s + 1] - o.cu_k[s]});
    }
    return all;
  }

  // Does row i of head h of the sequence see key j of it?
  bool sees(const TestSequence& s, int64_t h, int64_t i, int64_t j) const {
    const int64_t position = o.rows_at_end ? s.keys - 1 : i + s.keys - s.queries;
    if (o.causal && j > position) return false;
    const bool in_window = (o.left < 0 || j >= position - o.left) && (o.right < 0 || j <= position + o.right);
    const bool near = in_window || j < o.sink;
    const int64_t kv = h / (o.heads / o.heads_kv);
    switch (o.kind) {
      case ScheduleKind::range: return near;
      case ScheduleKind::layout: return near && kept_[layout_at(s.batch, h, i, j)];
      case ScheduleKind::strided: return near && strided_keeps_pair(kv, floor_div(position, o.block_q), j / o.block_q);
      case ScheduleKind::gathered: return near || listed(s.batch, h, kv, i, j);
    }
    return false;
  }

 private:
  std::mt19937 random_;
  int64_t rows_ = 0, columns_ = 0, entries_ = 0;  // block rows and columns, length of a list
  std::vector<int32_t> count_, index_, full_count_, full_index_, slot_, bits_;
  std::vector<char> kept_;  // [B|1, H|1, Tq, Tk]

  static int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }
  bool chance(double p) { return std::uniform_real_distribution<>(0, 1)(random_) < p; }

  int64_t layout_batches() const { return o.shared_batch ? 1 : o.batch; }
  int64_t layout_heads() const { return o.shared_heads ? 1 : o.heads; }
  size_t layout_at(int64_t b, int64_t h, int64_t i, int64_t j) const {
    return static_cast<size_t>(
        (((o.shared_batch ? 0 : b) * layout_heads() + (o.shared_heads ? 0 : h)) * o.tq + i) * o.tk + j);
  }

  bool strided_keeps_pair(int64_t kv, int64_t row, int64_t column) const {
    if (kv >= o.heads_kv - o.dense_heads) return true;
    if (o.bidirectional) {
      // Distance past the local band, in blocks, must be a multiple of the stride.
      const int64_t distance = row > column ? row - column : column - row;
      return distance < o.local || (distance - o.local + 1) % o.stride == 0;
    }
    const int64_t shifted = column + kv * o.head_step + o.head_offset;
    return column <= row && (row - column < o.local || ((shifted % o.stride) + o.stride) % o.stride == 0);
  }

  bool listed(int64_t b, int64_t h, int64_t kv, int64_t i, int64_t j) const {
    const int64_t mask_head = o.selection_heads == o.heads ? h : o.selection_heads == o.heads_kv ? kv : 0;
    const int64_t at = (b * o.selection_heads + mask_head) * rows_ + i / o.block_q;
    for (int32_t n = 0; n < count_[at]; ++n) {
      const int64_t first = index_[at * entries_ + n];
      if (first >= 0 && j >= first && j < first + o.block_k) return true;
    }
    return false;
  }

  void make_layout() {
    rows_ = (o.tq + o.block_q - 1) / o.block_q;
    columns_ = (o.tk + o.block_k - 1) / o.block_k;
    entries_ = columns_;
    const int64_t lists = layout_batches() * layout_heads() * rows_, words = (o.block_k + 31) / 32;
    count_.assign(lists, 0);
    full_count_.assign(lists, 0);
    index_.assign(lists * entries_, 1 << 20);  // what lies past the count must be ignored
    full_index_ = index_;
    slot_.assign(lists * entries_, 1 << 20);
    kept_.assign(layout_batches() * layout_heads() * o.tq * o.tk, 0);
    for (int64_t list = 0; list < lists; ++list) {
      for (int64_t column = 0; column < columns_; ++column) {
        if (!chance(o.density)) continue;
        const int64_t row = list % rows_, batch_head = list / rows_;
        const bool full = o.full_list && chance(0.5), cut = !full && o.bits && chance(0.6);
        int32_t slot = -1;
        if (cut) {
          slot = static_cast<int32_t>(bits_.size() / (o.block_q * words));
          for (int64_t w = 0; w < o.block_q * words; ++w) bits_.push_back(static_cast<int32_t>(random_()));
        }
        if (full) full_index_[list * entries_ + full_count_[list]++] = static_cast<int32_t>(column);
        else {
          slot_[list * entries_ + count_[list]] = slot;
          index_[list * entries_ + count_[list]++] = static_cast<int32_t>(column);
        }
        for (int64_t r = 0; r < o.block_q && row * o.block_q + r < o.tq; ++r) {
          for (int64_t c = 0; c < o.block_k && column * o.block_k + c < o.tk; ++c) {
            const bool keep = !cut || (bits_[(slot * o.block_q + r) * words + c / 32] >> (c % 32)) & 1;
            kept_[(batch_head * o.tq + row * o.block_q + r) * o.tk + column * o.block_k + c] = keep;
          }
        }
      }
    }
  }

  LayoutView layout_view() const {
    LayoutView l{};
    l.block_q = o.block_q;
    l.block_k = o.block_k;
    l.keys = o.tk;
    l.count = count_.data();
    l.count_batch = o.shared_batch ? 0 : layout_heads() * rows_;
    l.count_head = o.shared_heads ? 0 : rows_;
    l.index = index_.data();
    l.index_batch = l.count_batch * entries_;
    l.index_head = l.count_head * entries_;
    l.index_row = l.width = entries_;
    if (o.full_list) {
      l.full_count = full_count_.data();
      l.full_count_batch = l.count_batch;
      l.full_count_head = l.count_head;
      l.full_index = full_index_.data();
      l.full_index_batch = l.index_batch;
      l.full_index_head = l.index_head;
      l.full_index_row = l.full_width = l.index_row;
    }
    if (o.bits) {
      l.slot = slot_.data();
      l.bits = bits_.data();
      l.num_slots = static_cast<int64_t>(bits_.size()) / (o.block_q * ((o.block_k + 31) / 32));
    }
    return l;
  }

  // Ascending first keys, with duplicates, overlaps, and entries past the keys.
  void make_selection() {
    rows_ = (o.tq + o.block_q - 1) / o.block_q;
    entries_ = static_cast<int64_t>(o.density * o.tk) / o.block_k + 3;
    const int64_t lists = o.batch * o.selection_heads * rows_;
    for (int64_t list = 0; list < lists; ++list) {
      std::vector<int32_t> first;
      const int64_t count = static_cast<int64_t>(random_() % (entries_ + 1));
      for (int64_t i = 0; i < count; ++i) {
        const int64_t key = static_cast<int64_t>(random_() % static_cast<uint64_t>(o.tk + o.block_k));
        first.push_back(static_cast<int32_t>(chance(0.5) ? key / o.block_k * o.block_k : key));
      }
      if (count > 0 && chance(0.2)) first.back() = INT32_MAX - 1;
      if (count > 1 && chance(0.3)) first[0] = first[1];
      std::sort(first.begin(), first.end());
      count_.push_back(static_cast<int32_t>(count));
      first.resize(entries_, INT32_MAX);
      index_.insert(index_.end(), first.begin(), first.end());
    }
  }
};

// A random call. Sizes stay small enough for oracles that look at every pair.
inline ScheduleOptions random_schedule(std::mt19937& random, bool many_kinds = true) {
  auto pick = [&](std::initializer_list<int64_t> values) { return values.begin()[random() % values.size()]; };
  auto chance = [&](double p) { return std::uniform_real_distribution<>(0, 1)(random) < p; };
  ScheduleOptions o;
  o.kind = many_kinds ? static_cast<ScheduleKind>(random() % 4) : ScheduleKind::range;
  o.batch = pick({1, 1, 2});
  o.heads_kv = pick({1, 2, 3});
  o.heads = o.heads_kv * pick({1, 2, 4});
  o.tq = pick({1, 2, 17, 63, 64, 65, 127, 128, 129, 200});
  o.tk = pick({0, 1, 15, 64, 129, 191, 192, 193, 260});
  if (chance(0.4)) o.tk = o.tq;
  o.causal = chance(0.5);
  if (chance(0.4)) o.left = pick({0, 1, 10, 64, 500});
  if (chance(0.3)) o.right = pick({0, 1, 10, 64, 500});
  if (chance(0.4)) o.sink = pick({1, 5, 70, 1000});
  o.density = std::uniform_real_distribution<>(0, 1)(random);
  switch (o.kind) {
    case ScheduleKind::range:
      if (chance(0.3)) {
        const int64_t n = pick({1, 2, 5});
        o.batch = 1;
        o.cu_q = o.cu_k = {0};
        for (int64_t s = 0; s < n; ++s) {
          o.cu_q.push_back(o.cu_q.back() + static_cast<int32_t>(pick({0, 1, 30, 64, 90})));
          o.cu_k.push_back(o.cu_k.back() + static_cast<int32_t>(pick({0, 1, 30, 64, 90})));
        }
        o.tq = o.cu_q.back() + pick({0, 3});
        o.tk = o.cu_k.back() + pick({0, 3});
      }
      break;
    case ScheduleKind::layout:
      o.block_q = pick({16, 32, 64, 128, 192});
      o.block_k = pick({16, 32, 48, 128, 256});
      o.full_list = chance(0.5);
      o.bits = chance(0.5);
      o.shared_batch = chance(0.5);
      o.shared_heads = chance(0.5);
      break;
    case ScheduleKind::strided:
      o.block_q = o.block_k = pick({16, 32, 64, 128});
      o.causal = chance(0.7);
      o.bidirectional = !o.causal;
      if (o.bidirectional || o.tk < o.tq) o.tk = o.tq;
      o.local = pick({1, 2, 5});
      o.stride = pick({1, 2, 4});
      o.head_step = pick({0, 1, 3});
      o.head_offset = pick({0, 1, 2, -1});
      o.dense_heads = chance(0.3) ? 1 : 0;
      break;
    case ScheduleKind::gathered:
      o.block_q = pick({1, 16, 32, 64, 128, 256});
      o.block_k = pick({1, 2, 7, 16, 64});
      o.selection_heads = pick({o.heads, o.heads_kv, 1});
      o.right = -1;
      if (o.left < 0) o.left = 20;
      o.rows_at_end = !o.causal;
      break;
  }
  if (o.cu_q.empty() && o.kind != ScheduleKind::strided && chance(0.15)) {
    for (int64_t b = 0; b < o.batch; ++b) o.key_lengths.push_back(static_cast<int32_t>(random() % (o.tk + 1)));
  }
  return o;
}

}  // namespace attn
