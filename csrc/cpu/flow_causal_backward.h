// Causal flow attention backward: the passes of flow_causal_passes.h in one of two plans, groups in parallel, each from
// its first segment to its last and back, or segments in parallel, with a sum over segments between the passes.
#pragma once

#include "cpu/flow_causal_passes.h"

ATTN_NAMESPACE_BEGIN
namespace scan {

template <class In> class FlowCausalBackward {
  using Passes = FlowCausalPasses<In>;
  using A = typename Passes::A;
  using Segment = typename Passes::Segment;

 public:
  explicit FlowCausalBackward(const FlowBackwardParams& params) : b_(params), p_(params.forward), pass_(params) {}

  void run() {
    const auto& rows = pass_.rows();
    const SegmentGrid grid(rows.groups(), rows.segment, [&](int64_t g) { return rows.queries(g).count; });
    if (grid.by_group(0.5)) run_by_group(grid);
    else run_by_segment(grid);
    rows.query_lists.for_dropped([this](int64_t b, int64_t t) {
      for (int64_t h = 0; h < p_.heads; ++h) {
        store_zero_row(row_at<In>(b_.dq, b, h, t), p_.dim);
        store_zero_row(row_at<In>(b_.dk, b, h, t), p_.dim);
        store_zero_row(row_at<In>(b_.dv, b, h, t), p_.dim_v);
      }
    });
  }

 private:
  const FlowBackwardParams& b_;
  const FlowParams& p_;
  const Passes pass_;

  void run_by_group(const SegmentGrid& grid) const {
    grid.for_groups([&](int64_t g) {
      const int64_t segments = grid.segments(g), vectors = 4 * pass_.width();
      const Workspace<A> befores((segments + 1) * pass_.before_size()), sums(2 * (vectors + pass_.after_size()));
      std::memset(befores.get(), 0, pass_.before_size() * sizeof(A));
      for (int64_t i = 0; i + 1 < segments; ++i) {
        A* next = befores.get() + (i + 1) * pass_.before_size();
        pass_.with_segment(g, i, [&](const Segment& s) { pass_.sum_before(s, next); });
        add_row(next, befores.get() + i * pass_.before_size(), pass_.before_size());
      }
      A *after = sums.get(), *after_product = after + vectors, *added = after_product + pass_.after_size();
      A* added_product = added + vectors;
      double carry = 0;
      std::memset(after, 0, (vectors + pass_.after_size()) * sizeof(A));
      for (int64_t i = segments - 1; i >= 0; --i) {
        Line line{};
        pass_.with_segment(g, i, [&](const Segment& s) {
          pass_.weight_gradients(s, after_product, added_product);
          line = pass_.gamma_line(s);
          pass_.source_gradients(s, carry);
          pass_.sum_conserved(s, added);
          pass_.flow_gradients(s, after);
          pass_.sum_flows(s, added + 2 * pass_.width());
          pass_.write_rows(s, befores.get() + i * pass_.before_size(), after, after_product + pass_.tall(),
                           added_product + pass_.tall());
        });
        carry = line.at(carry);
        add_row(after, added, vectors);
        add_row(after_product, added_product, pass_.after_size());
      }
    });
  }

  void run_by_segment(const SegmentGrid& grid) const {
    // Slot i of the sums before a segment, slot i + 1 of those after it.
    const int64_t slots = grid.total() + grid.groups(), vectors = 2 * pass_.width();
    const Workspace<A> befores(slots * pass_.before_size()), products(slots * pass_.after_size()),
        conserved(slots * vectors), flows(slots * vectors);
    std::vector<Line> lines(slots);
    std::vector<double> carries(slots);
    const auto slot = [&](int64_t g, int64_t i) { return grid.item(g, i) + g; };
    const auto each = [&](auto&& fn) {
      grid.for_segments(
          [&](int64_t g, int64_t i) { pass_.with_segment(g, i, [&](const Segment& s) { fn(s, slot(g, i)); }); });
    };
    // In slot i lies what segment i adds; it becomes the sum over that segment and all later ones.
    const auto accumulate_reversed = [&](A* at, int64_t size) {
      grid.for_groups([&](int64_t g) {
        const int64_t n = grid.segments(g);
        std::memset(at + slot(g, n) * size, 0, size * sizeof(A));
        for (int64_t i = n - 1; i >= 0; --i) add_row(at + slot(g, i) * size, at + slot(g, i + 1) * size, size);
      });
    };
    each([&](const Segment& s, int64_t i) {
      pass_.sum_before(s, befores.get() + (i + 1) * pass_.before_size());
      pass_.sum_after(s, products.get() + i * pass_.after_size());
    });
    grid.for_groups([&](int64_t g) {
      std::memset(befores.get() + slot(g, 0) * pass_.before_size(), 0, pass_.before_size() * sizeof(A));
      for (int64_t i = 0; i < grid.segments(g); ++i) {
        add_row(befores.get() + slot(g, i + 1) * pass_.before_size(), befores.get() + slot(g, i) * pass_.before_size(),
                pass_.before_size());
      }
    });
    accumulate_reversed(products.get(), pass_.after_size());
    each([&](const Segment& s, int64_t i) {
      const Workspace<A> added(pass_.tall());
      pass_.weight_gradients(s, products.get() + (i + 1) * pass_.after_size(), added.get());
      lines[i] = pass_.gamma_line(s);
    });
    grid.for_groups([&](int64_t g) {
      const int64_t n = grid.segments(g);
      carries[slot(g, n)] = 0;
      for (int64_t i = n - 1; i >= 0; --i) carries[slot(g, i)] = lines[slot(g, i)].at(carries[slot(g, i + 1)]);
    });
    each([&](const Segment& s, int64_t i) {
      pass_.source_gradients(s, carries[i + 1]);
      pass_.sum_conserved(s, conserved.get() + i * vectors);
    });
    accumulate_reversed(conserved.get(), vectors);
    each([&](const Segment& s, int64_t i) {
      pass_.flow_gradients(s, conserved.get() + (i + 1) * vectors);
      pass_.sum_flows(s, flows.get() + i * vectors);
    });
    accumulate_reversed(flows.get(), vectors);
    each([&](const Segment& s, int64_t i) {
      const Workspace<A> sums(2 * vectors + pass_.wide());
      A* after = sums.get();
      std::memcpy(after, conserved.get() + (i + 1) * vectors, vectors * sizeof(A));
      std::memcpy(after + vectors, flows.get() + (i + 1) * vectors, vectors * sizeof(A));
      pass_.write_rows(s, befores.get() + i * pass_.before_size(), after,
                       products.get() + (i + 1) * pass_.after_size() + pass_.tall(), after + 2 * vectors);
    });
  }
};

}  // namespace scan
ATTN_NAMESPACE_END
