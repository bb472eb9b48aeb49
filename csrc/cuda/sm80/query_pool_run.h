// The launches of a call of query pooling, on a GPU and under test alike: launch(kernel, name, parameters) is told of
// each, in order.
#pragma once

#include "cuda/sm80/query_pool.h"
#include "cuda/smxx/attend_delta.h"
#include "cuda/smxx/query_pool_sums.h"

namespace attn::cuda {

template <class K> struct PoolKernel { using type = K; };

template <class T, PoolWeights kWeights, class Launch>
void run_query_rows(const char* name, const QueryPoolPass& pass, Launch&& launch) {
  if (few_pool_rows(pass)) launch(PoolKernel<QueryPool<T, 1, kWeights>>{}, name, pass);
  else launch(PoolKernel<QueryPool<T, 4, kWeights>>{}, name, pass);
  launch(PoolKernel<QueryPoolSums<T>>{}, name, pass);
}

template <class T, class Launch> void run_query_pool_forward(const QueryPoolForward& f, Launch&& launch) {
  constexpr const char* name = "query_pool";
  const QueryPoolParams& p = f.sums.pool;
  launch(PoolKernel<QueryPoolCounts>{}, name, QueryPoolCountsParams{f.sums.parts, p.mask, f.inverse_count});
  if (f.statistics.key_lse) launch(PoolKernel<QueryPool<T, 4, PoolWeights::statistics>>{}, name, f.statistics);
  if (p.activation == PoolActivation::softmax_keys) run_query_rows<T, PoolWeights::online>(name, f.sums, launch);
  else run_query_rows<T, PoolWeights::known>(name, f.sums, launch);
}

template <class T, class Launch> void run_query_pool_backward(const QueryPoolBackward& b, Launch&& launch) {
  constexpr const char* name = "query_pool backward";
  const QueryPoolParams& p = b.dq.pool;
  launch(PoolKernel<QueryPoolCounts>{}, name, QueryPoolCountsParams{b.dq.parts, p.mask, b.inverse_count});
  if (b.delta) {
    BackwardParams rows{};
    rows.forward.batch = p.sequences.count;
    rows.forward.heads = p.heads;
    rows.forward.tq = p.queries;
    rows.forward.dim_v = p.dim_v;
    const int64_t head = p.queries * p.dim_v;
    rows.forward.out = {p.out, p.heads * head, head, p.dim_v};
    rows.forward.lse = p.lse;
    rows.dout = b.dout;
    rows.delta = b.delta;
    launch(PoolKernel<AttendDelta<T>>{}, name, rows);
  }
  if (b.statistics.key_lse) launch(PoolKernel<QueryPool<T, 4, PoolWeights::statistics>>{}, name, b.statistics);
  if (b.dq.out.data) run_query_rows<T, PoolWeights::known>(name, b.dq, launch);
  for (const QueryPoolPass* s : {&b.dk, &b.dv}) {
    if (s->out.data) launch(PoolKernel<QueryPool<T, 4, PoolWeights::known>>{}, name, *s);
  }
}

}  // namespace attn::cuda
