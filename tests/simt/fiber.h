// One stack of execution that can be left and entered again: what a CUDA thread is under test.
#pragma once

#include <cstddef>

namespace attn::simt {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Next enter() starts body(argument) on an empty stack, whatever the fiber did before. body must not return.
  void reset(void (*body)(void*), void* argument);
  // Runs the fiber until it calls leave(); only from outside of every fiber.
  void enter();
  // Back to whoever entered; only on the fiber itself.
  void leave();

 private:
  static void start();
  char* stack_;
  void* state_ = nullptr;  // where it stands: stack pointer, or ucontext_t
  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
};

}  // namespace attn::simt
