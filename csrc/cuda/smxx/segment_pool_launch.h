#pragma once

#include "cuda/kernel.h"
#include "cuda/launchers.h"
#include "cuda/smxx/segment_ids.h"
#include "cuda/smxx/segment_pool_grad.h"

namespace attn::cuda {

template <DType> void launch_segment_ids(const SegmentIdsParams& p, Stream stream) {
  launch<AscendingIds>("segment ids", p, stream);
}

template <DType> void launch_segment_offsets(const SegmentOffsetsParams& p, Stream stream) {
  launch<SegmentOffsets>("segment ids, offsets", p, stream);
}

template <DType kType> void launch_segment_pool(const SegmentForwardParams& p, Stream stream) {
  launch<SegmentReduce<Element<kType>>>("segment pooling", p, stream);
  launch<SegmentJoin<Element<kType>>>("segment pooling, long segments", p, stream);
}

template <DType kType> void launch_segment_pool_backward(const SegmentBackwardParams& p, Stream stream) {
  launch<SegmentPartSums<Element<kType>>>("segment pooling backward, parts", p, stream);
  launch<SegmentMaxShares<Element<kType>>>("segment pooling backward, maxima", p, stream);
  launch<SegmentKept>("segment pooling backward, counts", p, stream);
  launch<SegmentGradient<Element<kType>>>("segment pooling backward", p, stream);
}

}  // namespace attn::cuda
