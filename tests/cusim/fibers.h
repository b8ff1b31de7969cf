// Runs a kernel on the host: one block after the other, each thread of a block a fiber that runs until it waits for
// others. What a GPU would leave undefined is an error here: a barrier or a warp operation that some threads do not
// come to, or not to the same one; a thread that ends while others wait for it or with a copy still on its way.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace cusim {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

// Where the running thread is; what a kernel sees of it.
struct Now {
  Index thread, block, threads, blocks;
  unsigned char* shared;
  // For race.h: whether a thread runs, and what it has waited for together with its block and with its warp.
  bool running;
  unsigned shared_bytes, barriers, lanes;
  bool dependent;  // the kernel in front of it may still be at work
};
extern Now now;

// In which order fibers run, and when asynchronous copies happen.
struct Schedule {
  enum class Order { forward, reverse, random } order = Order::forward;
  uint64_t seed = 0;
  bool greedy = false;       // a thread runs on as long as it can, before the next one starts
  bool late_copies = false;  // at the wait for them, not where they are asked for
};

struct Start {
  const char* name;
  Index blocks;
  unsigned threads, shared;
  void (*call)(const void* function, const void* params);
  const void *function, *params;
  bool dependent = false;
  void (*before_block)(bool ended) = nullptr;  // and once more after the last one
};
// Empty, or what went wrong and where.
std::string run(const Start& start, const Schedule& schedule);

// ---- for kernels, through gpu.h ----
struct Place {
  const char* file;
  int line;
};
// All 32 lanes come to the same operation at the same place with what they have; the last one combines it for all.
using Combine = void (*)(void* const lanes[32]);
void collective(const void* operation, void* payload, Combine combine, Place place);
void barrier(Place place);
// Leaves the thread where it is: nothing on its stack is destroyed.
[[noreturn]] void fail(const char* what, Place place);
void copy_async(void* to, const void* from, bool wanted, Place place);
void commit_copies();
void wait_for_copies(int but);
void note_copy(void* to, const void* from, bool wanted);  // in race.cpp, where it is linked

}  // namespace cusim
