#pragma once

#include "cuda/kernel.h"
#include "cuda/launchers.h"
#include "cuda/sm80/scan_product.h"
#include "cuda/sm80/segment_sums.h"
#include "cuda/smxx/linear_delta.h"

namespace attn::cuda {

template <DType kType> void launch_segment_sums(const SegmentSumsParams& p, Stream stream) {
  constexpr const char* what = "linear attention, sums of segments";
  if (p.b.map == FeatureMap::taylor2) launch<SegmentSums<Element<kType>, true>>(what, p, stream);
  else launch<SegmentSums<Element<kType>, false>>(what, p, stream);
}

template <DType kType> void launch_scan_product(const ScanProductParams& p, Stream stream) {
  constexpr const char* what = "linear attention, rows";
  if (p.weight == TokenWeight::product) launch<ScanProduct<Element<kType>, false>>(what, p, stream);
  else launch<ScanProduct<Element<kType>, true>>(what, p, stream);
}

template <DType kType> void launch_linear_delta(const LinearDeltaParams& p, Stream stream) {
  launch<LinearDelta<Element<kType>, ScanTile<Element<kType>>>>("linear attention, gradients of sums", p, stream);
}

}  // namespace attn::cuda
