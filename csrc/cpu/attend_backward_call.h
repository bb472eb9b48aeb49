// A call of attention backward: what is known of each row, then the key ranges as items of a queue, then dQ's sums.
#pragma once

#include "cpu/attend_backward.h"
#include "cpu/backward_plan.h"

ATTN_NAMESPACE_BEGIN

template <class In> inline void attend_backward_as(const AttendBackwardParams& b) {
  const AttendParams& p = b.forward;
  const BackwardRows<In> state(b);
  state.compute();
  if (b.dsink_logits) state.sink_gradients();
  if (!b.dq.data && !b.dk.data) return;
  DqSums<In> dq(b);
  dq.clear();
  const int32_t range = key_range(p);
  auto ranges = [&](const Sequence& s) { return (static_cast<int64_t>(s.keys) + range - 1) / range; };
  const ItemIndex items(p, [&](const Sequence& s) { return ranges(s) * p.heads_kv; });
  const BackwardPlan plan(p, items, range, kMaxRows);
  Carve size{nullptr};
  BackwardItem<In> probe(b, state, dq, size);
  parallel_items(items.count, [&](int64_t index, int) {
    dq.guard([&] {
      Carve c{static_cast<char*>(thread_scratch(size.used))};
      BackwardItem<In> item(b, state, dq, c);
      int64_t which, part;
      items.locate(index, which, part);
      // Ranges ascend (a turn waits for lower ones only), heads alternate: neighbours in the queue seldom meet.
      item.run(plan, index, sequence(p, which), which, part % p.heads_kv, part / p.heads_kv);
    });
  });
  dq.finish();
}

inline void attend_backward(const AttendBackwardParams& b) {
  switch (b.forward.dtype) {
    case DType::f32: return attend_backward_as<float>(b);
    case DType::f64: return attend_backward_as<double>(b);
    case DType::bf16: return attend_backward_as<bf16>(b);
    case DType::f16: return attend_backward_as<f16>(b);
  }
}

ATTN_NAMESPACE_END
