// attn._C: what Python asks about the build and the CPU. Nothing on the path of an op goes through it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "cuda/flow_work.h"

namespace {

std::vector<std::string> words(const std::string& text) {
  std::vector<std::string> result;
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = text.find(' ', begin);
    result.push_back(text.substr(begin, end - begin));
    begin = end == std::string::npos ? text.size() : end + 1;
  }
  return result;
}

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (attn::Isa isa : attn::available_isas(attn::read_cpuid())) names.push_back(attn::isa_name(isa));
  return names;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts about this build of attn and the CPU it runs on.";
  m.def(
      "build_info",
      [] {
        return std::map<std::string, std::string>{{"version", ATTN_VERSION},
                                                  {"compiler", compiler()},
                                                  {"torch_headers", ATTN_TORCH_VERSION},
                                                  {"torch_stable_abi", ATTN_STABLE_ABI},
                                                  {"cuda_architectures", ATTN_CUDA_ARCHS},
                                                  {"cuda_head_dims", ATTN_CUDA_HEAD_DIMS},
                                                  {"cuda_flow_head_dim", std::to_string(attn::cuda::kFlowMaxDim)},
                                                  {"build_type", ATTN_BUILD_TYPE}};
      },
      "How this library was built.");
  m.def("compiled_isas", [] { return words(ATTN_ISAS); }, "CPU instruction sets with kernels in this build.");
  m.def("available_isas", &available_isas, "Those of compiled_isas() that this CPU can run, worst first.");
  m.def(
      "cpu_isa", [] { return std::string(attn::isa_name(attn::selected_isa())); },
      "The instruction set in use: the best available, or ATTN_CPU_ISA. RuntimeError if that names one not available.");
}
