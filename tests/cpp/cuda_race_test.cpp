// The simulator's search for races finds those that are planted, in whatever schedule, and nothing in good kernels.
// This file is compiled as the kernels of the race library are.
#include "check.h"
#include "cuda/kernels/gpu.h"
#include "cusim/race.h"

using namespace rwkv::cuda;

namespace {

struct Params {
  float* to;
  const float* from;
  int32_t* flag;
};
struct Shared {
  float v[64];
  uint16_t halves[64];
};

// ---- kernels of 64 threads ----
RWKV_KERNEL void good(PARAMS(Params, p)) {
  SHARED(Shared, s);
  s.v[threadIdx.x] = p.from[threadIdx.x];
  s.halves[threadIdx.x] = uint16_t(threadIdx.x);  // neighbours share a word
  sync();
  const float v = s.v[63 - threadIdx.x] + float(s.halves[5]);
  sync();
  s.v[threadIdx.x] = v;
  sync_warp();
  p.to[blockIdx.x * 64 + threadIdx.x] = s.v[threadIdx.x ^ 1];
  atomic_or(p.flag, 1 << lane());
}
RWKV_KERNEL void no_barrier(PARAMS(Params, p)) {
  SHARED(Shared, s);
  s.v[threadIdx.x] = p.from[threadIdx.x];
  p.to[blockIdx.x * 64 + threadIdx.x] = s.v[63 - threadIdx.x];
}
RWKV_KERNEL void no_second_barrier(PARAMS(Params, p)) {
  SHARED(Shared, s);
  s.v[threadIdx.x] = p.from[threadIdx.x];
  sync();
  const float v = s.v[63 - threadIdx.x];
  s.v[threadIdx.x] = v;
}
RWKV_KERNEL void barrier_of_a_warp(PARAMS(Params, p)) {
  SHARED(Shared, s);
  s.v[threadIdx.x] = p.from[threadIdx.x];
  sync_warp();
  p.to[blockIdx.x * 64 + threadIdx.x] = s.v[63 - threadIdx.x];
}
RWKV_KERNEL void shuffle_is_no_barrier(PARAMS(Params, p)) {
  SHARED(Shared, s);
  s.v[threadIdx.x] = p.from[threadIdx.x];
  const float v = shuffle_xor(p.from[threadIdx.x], 1);
  p.to[blockIdx.x * 64 + threadIdx.x] = v + s.v[threadIdx.x ^ 1];
}
RWKV_KERNEL void two_write(PARAMS(Params, p)) {
  SHARED(Shared, s);
  s.v[threadIdx.x / 2] = p.from[threadIdx.x];
}
RWKV_KERNEL void blocks_overlap(PARAMS(Params, p)) { p.to[blockIdx.x * 63 + threadIdx.x] = 1; }
RWKV_KERNEL void block_reads_another(PARAMS(Params, p)) {
  p.to[blockIdx.x * 64 + threadIdx.x] = 1;
  sync();
  if (blockIdx.x == 1 && threadIdx.x == 7) p.to[64 + 7] = p.to[3];
}
RWKV_KERNEL void copy_without_barrier(PARAMS(Params, p)) {
  SHARED(Shared, s);
  if (threadIdx.x < 16) copy_async(s.v + 4 * threadIdx.x, p.from + 4 * threadIdx.x, true);
  commit();
  wait<0>();
  p.to[blockIdx.x * 64 + threadIdx.x] = s.v[threadIdx.x];
}

#ifdef __SANITIZE_THREAD__
constexpr bool kWatched = true;
#else
constexpr bool kWatched = false;  // in a build for another sanitizer
#endif

alignas(16) float from[64], to[128];
int32_t flag;

std::string run(void (*kernel)(const Params&), const cusim::Schedule& schedule) {
  const Params params{to, from, &flag};
  const Entry e = entry(kernel);
  cusim::watch_nothing();
  cusim::watch(from, sizeof from), cusim::watch(to, sizeof to), cusim::watch(&flag, sizeof flag);
  return cusim::run({"planted", {2, 1, 1}, 64, sizeof(Shared), e.call, e.function, &params}, schedule);
}
bool says(const std::string& error, const char* text) {
  const bool found = error.find(text) != std::string::npos;
  if (!found) std::printf("said: \"%s\", expected: \"%s\"\n", error.c_str(), text);
  return found;
}

}  // namespace

TEST(races_are_found_in_every_schedule) {
  if (!kWatched) return;
  using Order = cusim::Schedule::Order;
  for (Order order : {Order::forward, Order::reverse, Order::random})
    for (bool greedy : {false, true})
      for (bool late : {false, true}) {
        const cusim::Schedule schedule{order, 5, greedy, late};
        CHECK(run(good, schedule).empty());
        CHECK(says(run(no_barrier, schedule), "of shared memory, which thread"));
        CHECK(says(run(no_second_barrier, schedule), "of shared memory, which thread"));
        CHECK(says(run(barrier_of_a_warp, schedule), "race: "));
        CHECK(says(run(shuffle_is_no_barrier, schedule), "race: "));
        CHECK(says(run(two_write, schedule), "race: writes byte"));
        CHECK(says(run(blocks_overlap, schedule),
                   "race: writes byte 252 of an allocation of 512, which thread 63 of another block has written"));
        CHECK(says(run(block_reads_another, schedule),
                   "race: reads byte 12 of an allocation of 512, which thread 3 of another block has written"));
        CHECK(says(run(copy_without_barrier, schedule), "race: "));
      }
}

CHECK_MAIN
