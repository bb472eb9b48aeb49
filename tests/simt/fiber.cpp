// A switch of ucontext takes over half a microsecond (it sets the signal mask through the kernel), and a tile of
// attention needs ten thousand; so x86-64 has a switch of its own, and ucontext serves the rest.
#include "simt/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace attn::simt {
namespace {

// Sanitized frames are several times larger.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStack = 512 << 10;
#else
constexpr size_t kStack = 64 << 10;
#endif
constexpr size_t kGuard = 4096;

Fiber* current = nullptr;
#if defined(__SANITIZE_ADDRESS__)
void* outside_fake_stack = nullptr;
const void* outside_bottom = nullptr;
size_t outside_size = 0;
#endif

}  // namespace

#if defined(__x86_64__)
// Saves what the calling convention asks a callee to save, and swaps stacks.
asm(R"(
.text
.type attn_simt_switch, @function
attn_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size attn_simt_switch, .-attn_simt_switch
)");
extern "C" void attn_simt_switch(void** keep, void* to);

namespace {
void* outside = nullptr;
}

static void prepare(void*& state, char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + kStack);
  top[-1] = nullptr;  // no caller
  top[-2] = reinterpret_cast<void*>(entry);
  for (int i = 3; i <= 8; ++i) top[-i] = nullptr;
  state = top - 8;
}
static void switch_in(void*& state) { attn_simt_switch(&outside, state); }
static void switch_out(void*& state) { attn_simt_switch(&state, outside); }
static void release(void*&) {}
#else
namespace {
ucontext_t outside;
}

static void prepare(void*& state, char* stack, void (*entry)()) {
  if (!state) state = new ucontext_t;
  ucontext_t* context = static_cast<ucontext_t*>(state);
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = kStack;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
}
static void switch_in(void*& state) { swapcontext(&outside, static_cast<ucontext_t*>(state)); }
static void switch_out(void*& state) { swapcontext(static_cast<ucontext_t*>(state), &outside); }
static void release(void*& state) { delete static_cast<ucontext_t*>(state); }
#endif

Fiber::Fiber() {
  void* memory = mmap(nullptr, kStack + kGuard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, kGuard, PROT_NONE);  // an overflow faults instead of writing into a neighbour
  stack_ = static_cast<char*>(memory) + kGuard;
}

Fiber::~Fiber() {
  release(state_);
  munmap(stack_ - kGuard, kStack + kGuard);
}

void Fiber::reset(void (*body)(void*), void* argument) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_, kStack);  // frames of a launch that was given up
#endif
  body_ = body;
  argument_ = argument;
  fake_stack_ = nullptr;
  prepare(state_, stack_, &Fiber::start);
}

void Fiber::start() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &outside_bottom, &outside_size);
#endif
  current->body_(current->argument_);
}

void Fiber::enter() {
  current = this;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&outside_fake_stack, stack_, kStack);
#endif
  switch_in(state_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(outside_fake_stack, nullptr, nullptr);
#endif
  current = nullptr;
}

void Fiber::leave() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fake_stack_, outside_bottom, outside_size);
#endif
  switch_out(state_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack_, &outside_bottom, &outside_size);
#endif
}

}  // namespace attn::simt
