#pragma once

#include "cuda/kernel.h"
#include "cuda/launchers.h"
#include "cuda/sm80/scan_product.h"
#include "cuda/sm80/segment_sums.h"
#include "cuda/smxx/linear_delta.h"

namespace attn::cuda {

template <DType kType> void launch_segment_sums(const SegmentSumsParams& p, Stream stream) {
  launch<SegmentSums<Element<kType>>>("linear attention, sums of segments", p, stream);
}

template <DType kType> void launch_scan_product(const ScanProductParams& p, Stream stream) {
  launch<ScanProduct<Element<kType>>>("linear attention, rows", p, stream);
}

template <DType kType> void launch_linear_delta(const LinearDeltaParams& p, Stream stream) {
  launch<LinearDelta<Element<kType>, ScanTile<Element<kType>>>>("linear attention, gradients of sums", p, stream);
}

}  // namespace attn::cuda
