// A place to switch to: registers on a stack. Assembly on x86-64, ucontext elsewhere (slower); AddressSanitizer is
// told.
#pragma once
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define CUSIM_ASAN 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define CUSIM_ASAN 0
#endif
#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace cusim {

class Context {
 public:
  // `entry` runs on the first switch to here, and never returns.
  void start(void* stack, size_t bytes, void (*entry)());
  // Saves here what runs, runs `to`; `last`: and never comes back.
  void switch_to(Context& to, bool last = false);
  void entered();  // first thing on a new stack

 private:
#ifdef __x86_64__
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
  const void* bottom_ = nullptr;  // of the stack that belongs to here
  size_t bytes_ = 0;
  void* fake_ = nullptr;
  Context* from_ = nullptr;  // who switched to here
};

}  // namespace cusim
