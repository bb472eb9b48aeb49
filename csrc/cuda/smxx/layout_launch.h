#pragma once

#include "cuda/kernel.h"
#include "cuda/smxx/layout_lists.h"

namespace attn::cuda {

template void launch<LayoutBuild>(const char* what, const LayoutBuildParams& params, cudaStream_t stream);
template void launch<LayoutTranspose>(const char* what, const LayoutTransposeParams& params, cudaStream_t stream);
template void launch<TilesTranspose>(const char* what, const TilesTransposeParams& params, cudaStream_t stream);

}  // namespace attn::cuda
