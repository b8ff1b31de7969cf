// Finds accesses of a launch that nothing orders: two threads at one word of shared or of device memory, one of them
// writing, in one block without a barrier between, or in different blocks at all. Kernels compiled with
// -fsanitize=thread call __tsan_* at each access; race.cpp defines those, and no sanitizer is linked.
#pragma once
#include <cstddef>

namespace cusim {

// Forgets all accesses and what was watched; shared memory always is.
void watch_nothing();
void watch(const void* memory, size_t bytes);

}  // namespace cusim
