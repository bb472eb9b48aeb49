// Table of contents: the schema of every op. Implementations register themselves in <op>.cpp; fake implementations are
// in python/attn/_fake.py. Arguments are positional, results fixed in number, fully initialised and never aliases.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(attn, m) {
  m.def("merge_states(Tensor outs, Tensor lses) -> (Tensor out, Tensor lse)");
  m.def(
      "merge_states_backward(Tensor dout, Tensor? dlse, Tensor outs, Tensor lses, Tensor lse)"
      " -> (Tensor douts, Tensor dlses)");
}
