// Lets kernels run on PyTorch's threads, so that torch.set_num_threads holds and no second pool competes with it.
#include "attn/parallel.h"

#include <torch/csrc/stable/ops.h>

namespace attn::ops {
namespace {

int torch_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

void torch_run(int workers, void (*body)(void* context, int worker), void* context) {
  // Grain 1: one worker a chunk. Within another parallel region PyTorch runs all of them on the calling thread.
  torch::stable::parallel_for(0, workers, 1, [=](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) body(context, static_cast<int>(worker));
  });
}

// At load time, before any op can run.
const bool installed = (set_parallel_backend({torch_threads, torch_run}), true);

}  // namespace
}  // namespace attn::ops
