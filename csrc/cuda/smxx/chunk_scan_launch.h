#pragma once

#include "cuda/kernel.h"
#include "cuda/launchers.h"
#include "cuda/smxx/chunk_scan.h"

namespace attn::cuda {

template <DType> void launch_chunk_scan(const ChunkScanParams& p, Stream stream) {
  launch<ChunkScan>("states of a scan", p, stream);
}

}  // namespace attn::cuda
