// String arguments of ops. std::string would do, but torch's own conversion to it (2.10 to 2.13) leaks one string a
// call.
#pragma once

#include <torch/csrc/stable/library.h>

#include <string>

namespace attn::ops {

struct Text {
  std::string value;
  bool operator==(const char* other) const { return value == other; }
};

}  // namespace attn::ops

namespace torch::stable::detail {

template <> struct ToImpl<attn::ops::Text> {
  static attn::ops::Text call(StableIValue value, uint64_t /*extension_build_version*/, bool /*is_internal*/) {
    const auto handle = to<StringHandle>(value);
    size_t length = 0;
    const char* data = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    attn::ops::Text text{std::string(data, length)};
    STABLE_TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return text;
  }
};

}  // namespace torch::stable::detail
