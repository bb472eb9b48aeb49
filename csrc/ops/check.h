// Argument checks of the ops. Every refusal names the op, the argument, what was given and what is accepted; the
// Python layer has usually refused first, so these are what a direct torch.ops.attn call meets.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "attn/types.h"

namespace attn::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class At> std::ostream& write_list(std::ostream& out, int64_t n, const At& at) {
  out << '[';
  for (int64_t i = 0; i < n; ++i) out << (i ? ", " : "") << at(i);
  return out << ']';
}

// Texts of shapes and strides are written only when an error is: they stand as arguments of checks that pass.
struct ShapeText { const Tensor& tensor; };
struct StridesText { const Tensor& tensor; };
inline ShapeText shape_text(const Tensor& t) { return {t}; }
inline StridesText strides_text(const Tensor& t) { return {t}; }
inline std::ostream& operator<<(std::ostream& out, const ShapeText& text) {
  return write_list(out, text.tensor.dim(), [&](int64_t i) { return text.tensor.size(i); });
}
inline std::ostream& operator<<(std::ostream& out, const StridesText& text) {
  return write_list(out, text.tensor.dim(), [&](int64_t i) { return text.tensor.stride(i); });
}

inline std::string shape_text(const std::vector<int64_t>& sizes) {
  std::ostringstream text;
  write_list(text, static_cast<int64_t>(sizes.size()), [&](int64_t i) { return sizes[static_cast<size_t>(i)]; });
  return text.str();
}

inline const char* type_text(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Bool: return "bool";
    default: return torch::headeronly::toString(type);
  }
}

// Checks on behalf of one op.
class Check {
 public:
  // For an op with CPU kernels only.
  explicit Check(const char* op) : op_(op) {}
  // For an op that runs where `like` is: its other tensors must be there too.
  Check(const char* op, const Tensor& like) : op_(op) {
    if (like.is_cuda()) cuda_ = like.get_device_index();
  }

  bool on_cuda() const { return cuda_ >= 0; }
  int32_t device_index() const { return cuda_; }
  // Can values be looked at? On a GPU that would wait for it.
  bool values_known() const { return cuda_ < 0; }

  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    std::ostringstream text;
    text << "attn::" << op_ << ": ";
    (text << ... << parts);
    throw std::runtime_error(text.str());
  }

  template <class... Parts>
  void require(bool ok, const Parts&... parts) const {
    if (!ok) [[unlikely]]
      fail(parts...);
  }

  // `layout` spells the dimensions: "[B, H, Tq, D]".
  void rank(const Tensor& t, const char* name, int64_t rank, const char* layout) const {
    require(t.dim() == rank, name, " must be ", layout, " (", rank, " dimensions), got shape ", shape_text(t));
  }

  void shape(const Tensor& t, const char* name, const std::vector<int64_t>& sizes, const char* layout) const {
    bool same = t.dim() == static_cast<int64_t>(sizes.size());
    for (size_t i = 0; same && i < sizes.size(); ++i) same = t.size(static_cast<int64_t>(i)) == sizes[i];
    if (!same) fail(name, " must be ", layout, " = ", shape_text(sizes), ", got shape ", shape_text(t));
  }

  void on_device(const Tensor& t, const char* name) const {
    if (cuda_ < 0) {
      require(t.is_cpu(), name, " must be on the CPU like the other arguments");
    } else {
      require(t.is_cuda() && t.get_device_index() == cuda_, name, " must be on cuda:", cuda_,
              " like the other arguments");
    }
  }

  void type(const Tensor& t, const char* name, ScalarType wanted) const {
    require(t.scalar_type() == wanted, name, " must be ", type_text(wanted), ", got ", type_text(t.scalar_type()));
  }

  void same_type(const Tensor& t, const char* name, const Tensor& like, const char* like_name) const {
    require(t.scalar_type() == like.scalar_type(), name, " must have the dtype of ", like_name, " (",
            type_text(like.scalar_type()), "), got ", type_text(t.scalar_type()));
  }

  // Element type of a floating point argument.
  DType floating(const Tensor& t, const char* name) const {
    switch (t.scalar_type()) {
      case ScalarType::Float: return DType::f32;
      case ScalarType::Double: return DType::f64;
      case ScalarType::BFloat16: return DType::bf16;
      case ScalarType::Half: return DType::f16;
      default: break;
    }
    fail(name, " must be float32, bfloat16, float16 or float64, got ", type_text(t.scalar_type()));
  }

  void last_contiguous(const Tensor& t, const char* name) const {
    const int64_t last = t.dim() - 1;
    // Without elements any strides will do; torch calls such a tensor contiguous and leaves them as they are.
    require(last >= 0 && (t.size(last) <= 1 || t.stride(last) == 1 || t.numel() == 0), name,
            " must be contiguous in its last dimension, got strides ", strides_text(t), "; call .contiguous()");
    nonnegative_strides(t, name);
  }

  void nonnegative_strides(const Tensor& t, const char* name) const {
    for (int64_t i = 0; i < t.dim(); ++i) {
      require(t.stride(i) >= 0, name, " must not have negative strides, got ", strides_text(t));
    }
  }

  void contiguous(const Tensor& t, const char* name) const {
    require(t.is_contiguous(), name, " must be contiguous, got shape ", shape_text(t), " with strides ",
            strides_text(t), "; call .contiguous()");
  }

  // Kernels count positions in int32.
  void length(int64_t n, const char* what) const { require(n < INT32_MAX, what, " must be below 2**31 - 1, got ", n); }

  // Index arguments: int32, contiguous in the last dimension.
  void index(const Tensor& t, const char* name, int64_t rank, const char* layout) const {
    on_device(t, name);
    type(t, name, ScalarType::Int);
    this->rank(t, name, rank, layout);
    last_contiguous(t, name);
  }

  // Data of a [B, H, T, D] argument.
  View4 view4(const Tensor& t) const { return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)}; }

  // Data of a [B, H, T] argument.
  View3 view3(const Tensor& t) const { return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)}; }

  View3 view3(const std::optional<Tensor>& t) const { return t ? view3(*t) : View3{nullptr, 0, 0, 0}; }

 private:
  const char* op_;
  int32_t cuda_ = -1;  // index of the CUDA device, or -1
};

// Type of lse and other statistics: float32, float64 for float64 inputs.
inline ScalarType statistics_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// A contiguous, uninitialised tensor on the device of `like`.
inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  return torch::stable::empty({sizes.data(), sizes.size()}, type, std::nullopt, like.device());
}

// Memory for a kernel's intermediate results, on the device of `like`; none for 0 floats.
class Scratch {
 public:
  Scratch(const Tensor& like, int64_t floats) {
    if (floats > 0) tensor_ = new_tensor(like, {floats}, ScalarType::Float);
  }
  float* floats() const { return tensor_ ? static_cast<float*>(tensor_->data_ptr()) : nullptr; }

 private:
  std::optional<Tensor> tensor_;
};

// What an op returns for a gradient that was not asked for.
inline Tensor no_tensor(const Tensor& like, ScalarType type) { return new_tensor(like, {0}, type); }

}  // namespace attn::ops
