#include "simt/async.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <vector>

namespace attn::simt {
namespace {

struct Load {
  char* to;
  const TiledTensor* tensor;
  int at[4];
};

struct Barrier {
  int arrivals = 0;         // of a phase
  int pending = 0;          // still to come in this one
  int64_t bytes = 0;        // expected less arrived
  uint32_t phase = 0;       // phases completed
  Clock clock;              // what those who arrived have done
  Clock completed;          // the same at the end of the last phase
  std::vector<Load> loads;  // not arrived
};

struct Product {
  GroupProduct lane[kGroup];
  int group = 0;  // of commits
};

struct Warpgroup {
  bool begun = false;
  int committed = 0;
  std::vector<Product> products;  // not computed, oldest first
};

struct State {
  std::map<const void*, Barrier> barriers;
  bool published = false;
  std::map<int, Warpgroup> groups;
};
State state;

std::string name_of(const void* barrier) {
  return "mbarrier at byte " + std::to_string(shared_offset("mbarrier", barrier, 8));
}

void join(Clock& to, const Clock& from) {
  to.resize(std::max(to.size(), from.size()), 0);
  for (size_t i = 0; i < from.size(); ++i) to[i] = std::max(to[i], from[i]);
}

Barrier& find(const void* barrier) {
  const auto found = state.barriers.find(barrier);
  if (found == state.barriers.end()) fail(name_of(barrier) + " was never initialised");
  touch(barrier, 8, Touch::read);
  return found->second;
}

void complete(Barrier& b) {
  if (b.pending != 0 || b.bytes != 0) return;
  b.pending = b.arrivals;
  ++b.phase;
  b.completed = b.clock;
}

// Bits 4 to 6 of an address are xored with bits 7 to 9.
size_t swizzle(size_t offset) { return offset ^ (offset >> 3 & 0x70); }

void deliver(Barrier& b) {
  std::vector<Load> loads;
  loads.swap(b.loads);
  for (const Load& l : loads) {
    const TiledTensor& t = *l.tensor;
    const size_t base = static_cast<size_t>(l.to - shared_base());
    for (int row = 0; row < t.box_rows; ++row) {
      const int64_t at[4] = {l.at[0], int64_t{l.at[1]} + row, l.at[2], l.at[3]};
      const char* from = static_cast<const char*>(t.data);
      bool inside = true;
      for (int d = 1; d < 4; ++d) {
        inside &= at[d] >= 0 && at[d] < t.size[d];
        if (inside) from += at[d] * t.stride[d - 1];
      }
      for (int e = 0; e < 64; ++e) {
        uint16_t x = 0;
        if (inside && at[0] + e >= 0 && at[0] + e < t.size[0]) std::memcpy(&x, from + 2 * (at[0] + e), 2);
        std::memcpy(shared_base() + swizzle(base + static_cast<size_t>(128 * row + 2 * e)), &x, 2);
      }
    }
    if (Shadow* s = shadow()) s->tma_arrived(l.to, static_cast<size_t>(128 * t.box_rows));
    b.bytes -= 128 * t.box_rows;
    complete(b);
  }
}

float to_float(uint16_t bits, bool bf16) {
  float f;
  if (bf16) {
    const uint32_t u = static_cast<uint32_t>(bits) << 16;
    std::memcpy(&f, &u, 4);
  } else {
    _Float16 h;
    std::memcpy(&h, &bits, 2);
    f = static_cast<float>(h);
  }
  return f;
}

// Element `row`, k of an operand with K = 16.
size_t offset_of(const GroupOperand& x, int row, int k) {
  const size_t start = static_cast<size_t>(static_cast<const char*>(x.start) - shared_base());
  const int r = x.rows_are_k ? k : row, c = x.rows_are_k ? row : k;
  return start + static_cast<size_t>(r / 8 * 1024 + r % 8 * 128 + c % 64 * 2 + c / 64 * x.next_features);
}
uint16_t element(const GroupOperand& x, int row, int k) {
  uint16_t bits;
  std::memcpy(&bits, shared_base() + swizzle(offset_of(x, row, k)), 2);
  return bits;
}

// The shadow's word on what a warp reads.
void touch_operand(const GroupOperand& x, int rows) {
  const int lines = x.rows_are_k ? 16 : rows, chunks = x.rows_are_k ? rows / 8 : 2;
  for (int r = 0; r < lines; ++r)
    for (int c = 0; c < chunks; ++c) {
      const size_t at = x.rows_are_k ? offset_of(x, 8 * c, r) : offset_of(x, r, 8 * c);
      touch(shared_base() + swizzle(at), 16, Touch::group_read);
    }
}
void touch_operands(const GroupProduct& p) {
  if (thread_index() % kWarp != 0) return;
  GroupOperand mine = p.a_shared;  // each warp has 16 rows of A
  if (!p.a) {
    mine.start = static_cast<const char*>(mine.start) + thread_index() % kGroup / kWarp * 2048;
    touch_operand(mine, 16);
  }
  touch_operand(p.b, p.n);
}

void check_operand(const char* what, const GroupOperand& x, int rows) {
  const size_t first = shared_offset(what, x.start, 16);
  const int last = rows - 1;
  shared_offset(what, shared_base() + offset_of(x, last, 15), 2);
  if (first % 16) fail(std::string(what) + ": not a multiple of 16 bytes");
  // Else the descriptor would need a base offset.
  if (first / 128 % 8) fail(std::string(what) + ": the swizzle's pattern begins elsewhere (1024 bytes)");
  if (x.rows_are_k ? first % 128 != 0 : first % 128 % 32 != 0)
    fail(std::string(what) + ": begins in the middle of a step of k");
}

void compute(const Product& product) {
  const GroupProduct& p = product.lane[0];
  static float a[64][16], b[16][256];
  for (int m = 0; m < 64; ++m)
    for (int k = 0; k < 16; ++k) {
      // Lane (g, t) of warp w holds rows 16 w + g and + 8, elements 2 t, 2 t + 1 and 8 more.
      const GroupProduct& lane = product.lane[m / 16 * 32 + m % 8 * 4 + k % 8 / 2];
      const uint16_t bits =
          p.a ? static_cast<uint16_t>(lane.a[m % 16 / 8 + k / 8 * 2] >> (k % 2 * 16)) : element(p.a_shared, m, k);
      a[m][k] = to_float(bits, p.bf16);
    }
  for (int k = 0; k < 16; ++k)
    for (int n = 0; n < p.n; ++n) b[k][n] = to_float(element(p.b, n, k), p.bf16);
  for (int m = 0; m < 64; ++m) {
    float sum[256] = {};
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < p.n; ++n) sum[n] += a[m][k] * b[k][n];
    for (int n = 0; n < p.n; ++n) {
      float& d = product.lane[m / 16 * 32 + m % 8 * 4 + n % 8 / 2].d[n / 8 * 4 + m % 16 / 8 * 2 + n % 2];
      d = p.accumulate ? d + sum[n] : sum[n];
    }
  }
}

Warpgroup& my_group() { return state.groups[thread_index() / kGroup]; }

template <class F> void for_group(const char* name, F&& f, const Where& where) {
  meet_group(
      name, &f, [](void* const* arguments) { (*static_cast<std::remove_reference_t<F>*>(arguments[kGroup - 1]))(); },
      where);
}

}  // namespace

void mbarrier_init(const void* barrier, int arrivals, const Where&) {
  if (reinterpret_cast<uintptr_t>(barrier) % 8) fail("mbarrier: not a multiple of 8 bytes");
  if (arrivals < 1) fail(name_of(barrier) + ": " + std::to_string(arrivals) + " arrivals");
  touch(barrier, 8, Touch::write);
  Barrier& b = state.barriers[barrier];
  b = {};
  b.arrivals = b.pending = arrivals;
  state.published = false;
}

void mbarrier_publish_init() { state.published = true; }

void mbarrier_arrive(const void* barrier, int64_t expected, const Where&) {
  Barrier& b = find(barrier);
  if (Shadow* s = shadow()) join(b.clock, s->release(thread_index() / kWarp));
  b.bytes += expected;
  --b.pending;
  complete(b);
}

void mbarrier_wait(const void* barrier, int parity, const Where& where) {
  Barrier& b = find(barrier);
  const auto over = [&b, parity] { return static_cast<int>(b.phase % 2) != parity; };
  if (!over()) {
    deliver(b);
    if (!over()) {
      wait_until(
          [&b, over] {
            deliver(b);
            return over();
          },
          name_of(barrier) + ", parity " + std::to_string(parity), where);
    }
  }
  if (Shadow* s = shadow()) {
    if (!b.completed.empty()) s->acquire(thread_index() / kWarp, b.completed);
  }
}

void tma_load(void* shared, const TiledTensor& tensor, const void* barrier, const int (&at)[4], const Where&) {
  if (!state.published) fail("TMA: mbarriers were initialised and not published");
  Barrier& b = find(barrier);
  const size_t bytes = static_cast<size_t>(128 * tensor.box_rows);
  if (shared_offset("TMA: destination", shared, bytes) % 1024)
    fail("TMA: destination isn't a multiple of 1024 bytes, the swizzle's pattern");
  if (reinterpret_cast<uintptr_t>(tensor.data) % 16) fail("TMA: tensor isn't a multiple of 16 bytes");
  for (int64_t stride : tensor.stride)
    if (stride <= 0 || stride % 16) fail("TMA: a stride of " + std::to_string(stride) + " bytes");
  touch(shared, bytes, Touch::tma_write);
  if (Shadow* s = shadow()) {
    Clock counts(static_cast<size_t>(block_threads() / kWarp) + 1, 0);
    counts.back() = s->tma_epoch();
    join(b.clock, counts);
  }
  b.loads.push_back({static_cast<char*>(shared), &tensor, {at[0], at[1], at[2], at[3]}});
}

void group_begin(const Where& where) {
  for_group("group_begin", [] { my_group().begun = true; }, where);
}

void group_product(const GroupProduct& mine, const Where& where) {
  if (!mine.a) check_operand("wgmma: A", mine.a_shared, 64);
  check_operand("wgmma: B", mine.b, mine.n);
  touch_operands(mine);
  GroupProduct copy = mine;
  meet_group(
      "group_mma", &copy,
      [](void* const* arguments) {
        Warpgroup& g = my_group();
        if (!g.begun) fail("wgmma without group_begin since the last group of products");
        Product p;
        p.group = g.committed;
        for (int i = 0; i < kGroup; ++i) {
          p.lane[i] = *static_cast<const GroupProduct*>(arguments[i]);
          const GroupProduct &x = p.lane[i], &first = p.lane[0];
          if (x.b.start != first.b.start || x.a_shared.start != first.a_shared.start ||
              x.accumulate != first.accumulate)
            fail("wgmma: threads of a warpgroup name different operands");
        }
        g.products.push_back(p);
      },
      where);
}

void group_commit(const Where& where) {
  for_group(
      "group_commit",
      [] {
        Warpgroup& g = my_group();
        ++g.committed;
        g.begun = false;
      },
      where);
}

void group_wait(int groups_left, const Registers* named, int count, const Where& where) {
  Warpgroup& g = my_group();
  for (const Product& p : g.products) {
    if (p.group >= g.committed - groups_left) continue;
    const GroupProduct& mine = p.lane[thread_index() % kGroup];
    touch_operands(mine);
    const bool known = std::any_of(
        named, named + count, [&](const Registers& r) { return r.begin <= mine.d && mine.d + mine.n / 2 <= r.end; });
    if (!known) fail("wgmma: results that are over aren't named by group_wait");
  }
  struct Wait { int left; } mine{groups_left};
  meet_group(
      "group_wait", &mine,
      [](void* const* arguments) {
        Warpgroup& g = my_group();
        const int over = g.committed - static_cast<const Wait*>(arguments[0])->left;
        size_t n = 0;
        for (; n < g.products.size() && g.products[n].group < over; ++n) compute(g.products[n]);
        g.products.erase(g.products.begin(), g.products.begin() + static_cast<std::ptrdiff_t>(n));
      },
      where);
}

void reset_async() { state = {}; }

std::string left_async() {
  for (const auto& [at, b] : state.barriers) {
    if (!b.loads.empty()) return "TMA loads that nobody waited for";
  }
  for (const auto& [index, g] : state.groups) {
    if (!g.products.empty()) return "wgmma that warpgroup " + std::to_string(index) + " didn't wait for";
  }
  return {};
}

}  // namespace attn::simt
