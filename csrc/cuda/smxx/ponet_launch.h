#pragma once

#include "cuda/kernel.h"
#include "cuda/launchers.h"
#include "cuda/smxx/ponet.h"
#include "cuda/smxx/ponet_grad.h"
#include "cuda/smxx/ponet_grad_rows.h"
#include "cuda/smxx/ponet_key_grad.h"
#include "cuda/smxx/ponet_keys.h"
#include "cuda/smxx/ponet_sums.h"

namespace attn::cuda {

template <DType kType> void launch_ponet_forward(const PonetWork& work, Stream stream) {
  using T = Element<kType>;
  launch<PonetSums<T>>("PoNet, sums", work, stream);
  launch<PonetQuery>("PoNet, query", work, stream);
  launch<PonetMaxima>("PoNet, long segments", work, stream);
  launch<PonetKeys<T>>("PoNet, keys", work, stream);
  launch<PonetGlobal>("PoNet, global stage", work, stream);
  launch<PonetMix<T>>("PoNet", work, stream);
}

template <DType kType> void launch_ponet_backward(const PonetGradWork& work, Stream stream) {
  using T = Element<kType>;
  launch<PonetParts<T>>("PoNet backward, parts of segments", work, stream);
  launch<PonetWinners>("PoNet backward, long segments", work, stream);
  launch<PonetTokenGradients<T>>("PoNet backward, tokens", work, stream);
  launch<PonetTotals>("PoNet backward, totals of long segments", work, stream);
  launch<PonetSequenceSums<false>>("PoNet backward, global stage", work, stream);
  launch<PonetKeyGradients<T>>("PoNet backward, keys", work, stream);
  launch<PonetSequenceSums<true>>("PoNet backward, query", work, stream);
  launch<PonetGivenRows<T>>("PoNet backward, queries and long segments", work, stream);
  launch<PonetLocalGradient<T>>("PoNet backward, local", work, stream);
}

}  // namespace attn::cuda
