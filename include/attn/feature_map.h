// Feature maps of linear attention, for both backends and for scalars as well as SIMD vectors: V is float, double or a
// vector of them, `exp` the exponential to use for it.
#pragma once

#include "attn/types.h"

namespace attn {

enum class FeatureMap : int32_t {
  elu1,      // x + 1 for x > 0, e^x otherwise
  relu,      // max(x, 0)
  exp,       // e^x
  identity,  // x
  sigmoid,   // 1 / (1 + e^-x)
  taylor2,   // features whose product is 1 + x + x^2 / 2 with x = q.k / sqrt(D)
};

// Features of a row of `dim`. taylor2: 1; x_a D^-1/4; x_a x_b for a <= b, row by row, times (2D)^-1/2 where a == b and
// D^-1/2 elsewhere (each pair a < b stands for two products).
inline int64_t feature_count(FeatureMap map, int64_t dim) {
  return map == FeatureMap::taylor2 ? 1 + dim + dim * (dim + 1) / 2 : dim;
}

}  // namespace attn

ATTN_NAMESPACE_BEGIN

// phi(x) of the maps that work element by element.
template <FeatureMap M, class V, class Exp> ATTN_HD V feature_value(V x, Exp exp) {
  if constexpr (M == FeatureMap::elu1) return x > 0 ? x + 1 : exp(x > 0 ? V{} : x);
  else if constexpr (M == FeatureMap::relu) return x > 0 ? x : (x == x ? V{} : x);
  else if constexpr (M == FeatureMap::exp) return exp(x);
  else if constexpr (M == FeatureMap::sigmoid) return 1 / (1 + exp(-x));
  else return x;
}

// phi'(x), given f = phi(x). At x = 0 relu has slope 0, as in PyTorch.
template <FeatureMap M, class V> ATTN_HD V feature_slope(V x, V f) {
  if constexpr (M == FeatureMap::elu1) return x > 0 ? V{} + 1 : f;
  else if constexpr (M == FeatureMap::relu) return x > 0 ? V{} + 1 : V{};
  else if constexpr (M == FeatureMap::exp) return f;
  else if constexpr (M == FeatureMap::sigmoid) return f * (1 - f);
  else return V{} + 1;
}

ATTN_NAMESPACE_END
