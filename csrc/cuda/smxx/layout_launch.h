#pragma once

#include "cuda/kernel.h"
#include "cuda/launchers.h"
#include "cuda/smxx/layout_lists.h"

namespace attn::cuda {

template <DType> void launch_layout_build(const LayoutBuildParams& p, Stream stream) {
  launch<LayoutBuild>("layout_build", p, stream);
}
template <DType> void launch_layout_transpose(const LayoutTransposeParams& p, Stream stream) {
  launch<LayoutTranspose>("layout_transpose", p, stream);
}
template <DType> void launch_tiles_transpose(const TilesTransposeParams& p, Stream stream) {
  launch<TilesTranspose>("layout_transpose", p, stream);
}

}  // namespace attn::cuda
