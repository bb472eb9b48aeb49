// Features of FeatureMap::taylor2 (attn/feature_map.h), found by their number: with e = [1, x], D + 1 elements, they
// are the products e_a e_b for a <= b, row by row, times a number of their own.
#pragma once

#include <cmath>

#include "cuda/places.h"
#include "cuda/seam.h"

namespace attn::cuda {

struct Taylor2 {
  struct Place { int64_t a, b; };

  int64_t dim;
  float first, square, pair;

  ATTN_DEVICE explicit Taylor2(int64_t d)
      : dim(d), first(1 / std::sqrt(std::sqrt(static_cast<float>(d)))),
        square(1 / std::sqrt(2 * static_cast<float>(d))), pair(1 / std::sqrt(static_cast<float>(d))) {}

  ATTN_DEVICE Place find(int64_t feature) const {
    const auto first_of = [&](int64_t a) { return a * (2 * (dim + 1) - a + 1) / 2; };
    const int64_t a = sequence_of_place(dim + 1, feature, first_of);
    return {a, a + feature - first_of(a)};
  }
  ATTN_DEVICE void next(Place& p) const {
    if (++p.b > dim) p.b = ++p.a;
  }
  ATTN_DEVICE float scale(Place p) const {
    if (p.a == 0) return p.b == 0 ? 1 : first;
    return p.a == p.b ? square : pair;
  }
};

}  // namespace attn::cuda
