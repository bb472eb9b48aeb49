// The same for the lists of layouts, which have no dtype to choose by.
#include "cuda/launchers.h"

namespace attn::cuda {

void check_layout_build(const LayoutBuildParams&) {}
void check_layout_transpose(const LayoutTransposeParams&) {}
void check_tiles_transpose(const TilesTransposeParams&) {}
void layout_build(const LayoutBuildParams& params, Stream stream) { launch_layout_build<DType::f32>(params, stream); }
void layout_transpose(const LayoutTransposeParams& params, Stream stream) {
  launch_layout_transpose<DType::f32>(params, stream);
}
void tiles_transpose(const TilesTransposeParams& params, Stream stream) {
  launch_tiles_transpose<DType::f32>(params, stream);
}

}  // namespace attn::cuda
