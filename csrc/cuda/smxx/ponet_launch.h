#pragma once

#include "cuda/kernel.h"
#include "cuda/launchers.h"
#include "cuda/smxx/ponet.h"
#include "cuda/smxx/ponet_keys.h"
#include "cuda/smxx/ponet_sums.h"

namespace attn::cuda {

template <DType kType> void launch_ponet_forward(const PonetWork& work, Stream stream) {
  using T = Element<kType>;
  launch<PonetSums<T>>("PoNet, sums", work, stream);
  launch<PonetQuery>("PoNet, query", work, stream);
  launch<PonetMaxima<T>>("PoNet, long segments", work, stream);
  launch<PonetKeys<T>>("PoNet, keys", work, stream);
  launch<PonetGlobal>("PoNet, global stage", work, stream);
  launch<PonetMix<T>>("PoNet", work, stream);
}

}  // namespace attn::cuda
