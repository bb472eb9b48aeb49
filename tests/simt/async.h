// What sm_90 does beside the threads of a block: mbarriers, TMA loads, warpgroup products (wgmma). Each happens as late
// as it may: bytes of a load arrive when somebody waits for them, products are computed when they are waited for.
#pragma once

#include "simt/runner.h"

namespace attn::simt {

// mbarriers, known by their address. One arrival is the calling thread's; `expected` bytes are still to come then.
void mbarrier_init(const void* barrier, int arrivals, const Where& where);
void mbarrier_publish_init();
void mbarrier_arrive(const void* barrier, int64_t expected, const Where& where);
void mbarrier_wait(const void* barrier, int parity, const Where& where);

// A [batch, head, token, feature] tensor of 16-bit elements as TMA reads it. Strides of all but the feature, in bytes.
struct TiledTensor {
  const void* data;
  int64_t size[4];    // feature, token, head, batch
  int64_t stride[3];  // token, head, batch
  int box_rows;       // tokens of a box; it has 64 features
};

// A box to [box_rows][64 features] in shared memory, swizzled by 128 bytes; what lies outside of the tensor is zeros.
void tma_load(void* shared, const TiledTensor& tensor, const void* barrier, const int (&at)[4], const Where& where);

// An operand of wgmma in shared memory, rows of 128 bytes, swizzled: as its descriptor says.
struct GroupOperand {
  const void* start;
  bool rows_are_k;        // the product sums over rows (MN-major), not along them (K-major)
  int64_t next_features;  // MN-major: bytes from 64 features to the next 64
};

// One thread's part of a product of 64 x `n` x 16; all of a warpgroup's give theirs.
struct GroupProduct {
  float* d;           // [n / 8][4]
  const uint32_t* a;  // [4], or null: from shared memory
  GroupOperand a_shared, b;
  int n;
  bool bf16, accumulate;
};
void group_begin(const Where& where);
void group_product(const GroupProduct& mine, const Where& where);
void group_commit(const Where& where);

// Registers whose products the caller waits for: all of those that are over must be named.
struct Registers {
  const float* begin;
  const float* end;
};
void group_wait(int groups_left, const Registers* named, int count, const Where& where);

// For the runner.
void reset_async();
std::string left_async();  // what was started and never waited for, or nothing

}  // namespace attn::simt
