// The compiler's own half precision number, an independent check of the kernels' conversions.
#pragma once

namespace attn {

#if defined(__aarch64__)
typedef __fp16 half_t;  // GCC 12 has _Float16 in C++ on x86 only
#else
typedef _Float16 half_t;
#endif

}  // namespace attn
