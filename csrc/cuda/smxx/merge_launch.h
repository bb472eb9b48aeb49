#pragma once

#include "cuda/kernel.h"
#include "cuda/launchers.h"
#include "cuda/smxx/merge_states.h"

namespace attn::cuda {

template <DType kType> void launch_merge_splits(const MergeSplitsParams& p, Stream stream) {
  launch<MergeSplits<Element<kType>>>("merge of partial results", p, stream);
}

template <DType kType> void launch_merge_states(const MergeStatesParams& p, Stream stream) {
  launch<MergeStates<Element<kType>>>("merge_states", p, stream);
}

template <DType kType> void launch_merge_states_backward(const MergeStatesBackwardParams& p, Stream stream) {
  launch<MergeStatesBackward<Element<kType>>>("merge_states backward", p, stream);
}

}  // namespace attn::cuda
