#include "cusim/context.h"

#include <cstdint>
#include <cstring>

#ifdef __x86_64__
// What the ABI asks a function to keep goes to the old stack and comes from the new one; rdi: where the old stack
// pointer is saved, rsi: the new one.
extern "C" void cusim_switch(void** save, void* to);
asm(R"(.text
.type cusim_switch, @function
cusim_switch:
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
.size cusim_switch, .-cusim_switch
)");
#endif

namespace cusim {

void Context::start(void* stack, size_t bytes, void (*entry)()) {
  bottom_ = stack, bytes_ = bytes, fake_ = nullptr;
#if CUSIM_ASAN
  __asan_unpoison_memory_region(stack, bytes);  // frames that were left without returning
#endif
#ifdef __x86_64__
  auto* top = reinterpret_cast<uint64_t*>(static_cast<char*>(stack) + bytes);
  *--top = 0;  // what the entry would return to; the stack is as the ABI wants it at a function's first instruction
  *--top = reinterpret_cast<uint64_t>(entry);
  std::memset(top -= 6, 0, 6 * sizeof *top);
  stack_pointer_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack, context_.uc_stack.ss_size = bytes, context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#endif
}

void Context::switch_to(Context& to, bool last) {
  to.from_ = this;
#if CUSIM_ASAN
  __sanitizer_start_switch_fiber(last ? nullptr : &fake_, to.bottom_, to.bytes_);
#else
  (void)last;
#endif
#ifdef __x86_64__
  cusim_switch(&stack_pointer_, to.stack_pointer_);
#else
  swapcontext(&context_, &to.context_);
#endif
  entered();
}

void Context::entered() {
#if CUSIM_ASAN
  // Of whoever came from the host's own stack this says where that is.
  __sanitizer_finish_switch_fiber(fake_, &from_->bottom_, &from_->bytes_);
#endif
}

}  // namespace cusim
