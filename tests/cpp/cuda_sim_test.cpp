// The simulator finds what it is there to find: kernels with faults planted in them, and calls with wrong arguments.
#include <cmath>

#include "check.h"
#include "cuda/kernels/numbers.cuh"
#include "cuda_device.h"

using namespace rwkv::cuda;

namespace {

struct Params {
  float* to;
  const float* from;
};
struct Shared {
  float v[64];
};

// ---- kernels of 64 threads ----
RWKV_KERNEL void good(PARAMS(Params, p)) {
  SHARED(Shared, s);
  s.v[threadIdx.x] = p.from[threadIdx.x];
  sync();
  p.to[threadIdx.x] = sum_lanes(s.v[63 - threadIdx.x]) + p.from[threadIdx.x];
}
RWKV_KERNEL void divergent_barrier(PARAMS(Params, p)) {
  if (threadIdx.x < 40) sync();
  p.to[threadIdx.x] = 1;
}
RWKV_KERNEL void two_barriers(PARAMS(Params, p)) {
  if (threadIdx.x < 32)
    sync();
  else
    sync();
  p.to[threadIdx.x] = 1;
}
RWKV_KERNEL void absent_lane(PARAMS(Params, p)) {
  if (lane() == 7) return;
  p.to[threadIdx.x] = shuffle_xor(p.from[threadIdx.x], 1);
}
RWKV_KERNEL void two_shuffles(PARAMS(Params, p)) {
  float v = p.from[threadIdx.x];
  if (lane() < 16)
    v = shuffle_xor(v, 1);
  else
    v = shuffle_xor(v, 1);
  p.to[threadIdx.x] = v;
}
RWKV_KERNEL void shuffle_and_barrier(PARAMS(Params, p)) {
  if (lane() == 3)
    sync();
  else
    p.to[threadIdx.x] = shuffle_xor(p.from[threadIdx.x], 1);
}
RWKV_KERNEL void lane_of_nowhere(PARAMS(Params, p)) { p.to[threadIdx.x] = shuffle(p.from[threadIdx.x], lane() + 1); }
RWKV_KERNEL void no_barrier(PARAMS(Params, p)) {
  SHARED(Shared, s);
  s.v[threadIdx.x] = p.from[threadIdx.x];
  p.to[threadIdx.x] = s.v[63 - threadIdx.x];
}
RWKV_KERNEL void unset_shared(PARAMS(Params, p)) {
  SHARED(Shared, s);
  if (threadIdx.x != 5) s.v[threadIdx.x] = p.from[threadIdx.x];
  sync();
  p.to[threadIdx.x] = s.v[63 - threadIdx.x];
}
RWKV_KERNEL void past_shared(PARAMS(Params, p)) {
  SHARED(Shared, s);
  s.v[threadIdx.x + 1] = p.from[threadIdx.x];
}
RWKV_KERNEL void copy_in_flight(PARAMS(Params, p)) {
  SHARED(Shared, s);
  if (threadIdx.x == 9) copy_async(s.v, p.from, true);
}
RWKV_KERNEL void copy_not_waited_for(PARAMS(Params, p)) {
  SHARED(Shared, s);
  if (threadIdx.x < 16) copy_async(s.v + 4 * threadIdx.x, p.from + 4 * threadIdx.x, true);
  commit();
  sync();
  p.to[threadIdx.x] = s.v[threadIdx.x];
  wait<0>();
}
RWKV_KERNEL void copy_unaligned(PARAMS(Params, p)) {
  SHARED(Shared, s);
  copy_async(s.v, p.from + 1, true);
}
RWKV_KERNEL void copies_in_stages(PARAMS(Params, p)) {
  SHARED(Shared, s);
  copy_async(s.v + threadIdx.x / 4 * 4, p.from, threadIdx.x < 32);
  commit();
  wait<0>();
  sync();
  p.to[threadIdx.x] = s.v[threadIdx.x];
}
RWKV_KERNEL void unaligned_load(PARAMS(Params, p)) { p.to[threadIdx.x] = from_bits(load_stream(p.from + 1).x); }

#ifdef __SANITIZE_ADDRESS__
constexpr bool kStopsAtOverruns = true;
#else
constexpr bool kStopsAtOverruns = false;
#endif

alignas(16) float from[80], to[64];

std::string run(void (*kernel)(const Params&), const cusim::Schedule& schedule = {}, unsigned blocks = 1) {
  for (int i = 0; i < 80; i++) from[i] = float(i * i % 37);
  for (float& v : to) v = -1;
  const Params params{to, from};
  const Entry e = entry(kernel);
  return cusim::run({"planted", {blocks, 1, 1}, 64, sizeof(Shared), e.call, e.function, &params}, schedule);
}
bool says(const std::string& error, const char* text) {
  const bool found = error.find(text) != std::string::npos;
  if (!found) std::printf("said: \"%s\", expected: \"%s\"\n", error.c_str(), text);
  return found;
}
std::vector<cusim::Schedule> all_schedules() {
  using Order = cusim::Schedule::Order;
  std::vector<cusim::Schedule> all;
  for (Order order : {Order::forward, Order::reverse, Order::random})
    for (bool greedy : {false, true})
      for (bool late : {false, true}) all.push_back({order, 3, greedy, late});
  return all;
}

}  // namespace

TEST(a_good_kernel_gives_the_same_in_all_schedules) {
  for (const cusim::Schedule& schedule : all_schedules()) {
    CHECK(run(good, schedule, 3) == "");
    for (int i = 0; i < 64; i++) {
      float sum = 0;
      for (int j = 0; j < 32; j++) sum += from[i < 32 ? 32 + j : j];
      CHECK(to[i] == sum + from[i]);
    }
    CHECK(run(copies_in_stages, schedule).empty());
    for (int i = 0; i < 64; i++) CHECK(to[i] == (i < 32 ? from[i % 4] : 0));
  }
}

TEST(threads_that_do_not_meet_are_found) {
  for (const cusim::Schedule& schedule : all_schedules()) {
    CHECK(says(run(divergent_barrier, schedule), "not all come: thread 0 waits for the block"));
    CHECK(says(run(two_barriers, schedule), "not all come"));
    CHECK(says(run(absent_lane, schedule), "thread 7 has ended"));
    CHECK(says(run(two_shuffles, schedule), "at different operations: lane 0 at cuda_sim_test.cpp"));
    CHECK(says(run(shuffle_and_barrier, schedule), "thread 3 waits for the block"));
    CHECK(says(run(lane_of_nowhere, schedule), "a shuffle from a lane below 0"));
  }
}

TEST(a_missing_barrier_gives_another_result_in_some_schedule) {
  bool differs = false;
  for (const cusim::Schedule& schedule : all_schedules()) {
    CHECK(run(no_barrier, schedule).empty());
    for (int i = 0; i < 64; i++) differs |= std::isnan(to[i]);
  }
  CHECK(differs);
}

TEST(shared_memory_begins_as_nan_and_ends_where_it_ends) {
  CHECK(run(unset_shared).empty());
  CHECK(std::isnan(to[58]) && !std::isnan(to[57]));
  // The address sanitizer stops the program there.
  if (!kStopsAtOverruns) CHECK(says(run(past_shared), "past the end of the shared memory"));
}

TEST(copies_on_their_way_are_watched) {
  CHECK(says(run(copy_in_flight), "thread 9 ended with copies on their way"));
  CHECK(says(run(copy_unaligned), "not a multiple of 16 at cuda_sim_test.cpp"));
  CHECK(says(run(unaligned_load), "not a multiple of 16"));
  cusim::Schedule late;
  late.late_copies = true;
  CHECK(run(copy_not_waited_for, late).empty());
  CHECK(std::isnan(to[0]));
}

// ---- the device ----

TEST(numbers_of_16_bits_are_rounded_as_they_should_be) {
  int wrong = 0;
  for (uint32_t h = 0; h < 65536; h++) {
    const float v = cusim::half_to_float(uint16_t(h));
    const bool nan = (h & 0x7fff) > 0x7c00;
    wrong += nan ? !std::isnan(v) : cusim::float_to_half(v) != h;
    // Half way to the next one goes to the even one.
    if ((h & 0x7fff) < 0x7bff) {
      const float next = cusim::half_to_float(uint16_t(h + 1)), middle = v + (next - v) / 2;
      wrong += cusim::float_to_half(middle) != (h % 2 == 0 ? h : h + 1);
      wrong += cusim::float_to_half(std::nextafter(middle, next)) != h + 1;
    }
  }
  CHECK(wrong == 0);
  CHECK(cusim::float_to_half(65519.0f) == 0x7bff && cusim::float_to_half(65520.0f) == 0x7c00);
  CHECK(permute(0x03020100, 0x07060504, 0x7250) == 0x07020500);
}

TEST(writing_outside_of_memory_is_found) {
#if !defined(__SANITIZE_ADDRESS__)
  for (int where : {-1, 40}) {
    Device d;
    Buffer<float> x(d, 48), from_there(d, 64);
    const WriteRowsParams p{from_there, where < 0 ? x.data() - 1 : x.data(), 96, where < 0 ? 8 : 40};
    CHECK(says(d.complaint([&] { d.launch(Kernel::write_rows, {1, 1, 1}, &p); }),
               where < 0 ? "byte 1 in front of an allocation of 192" : "behind an allocation of 192"));
    CHECK(says(d.complaint([&] { Buffer<float> more(d, 1); }), "write_rows: "));  // and again at every call
  }
#endif
}

TEST(wrong_calls_are_refused) {
  const auto complaint = [](const auto& f) {
    Device d;
    return d.complaint([&] { f(d); });
  };
  const WriteRowsParams p{};
  CHECK(says(complaint([&](Device& d) { d.launch(Kernel::write_rows, {1, 70000, 1}, &p); }), "70000 blocks"));
  CHECK(says(complaint([&](Device& d) { d.launch(Kernel::write_rows, {0, 1, 1}, &p); }), "0 blocks"));
  CHECK(says(complaint([&](Device& d) {
               const Launch l{uint32_t(Kernel::write_rows), {1, 1, 1}, 128, 0, sizeof p, 0, &p, 0};
               d.ask(d.api.launch(d.handle(), &l, 1, &d.fault));
             }),
             "write_rows: expected 256 threads, found 128"));
  CHECK(says(complaint([&](Device& d) {
               const Launch l{uint32_t(Kernel::count), {1, 1, 1}, 128, 0, sizeof p, 0, &p, 0};
               d.ask(d.api.launch(d.handle(), &l, 1, &d.fault));
             }),
             "does not exist"));
  CHECK(says(complaint([&](Device& d) {
               Buffer<float> x(d, 4);
               float host[4] = {};
               d.ask(d.api.upload(d.handle(), x, host, sizeof host, &d.fault));
             }),
             "the host's memory is not pinned"));
  CHECK(says(complaint([&](Device& d) {
               Buffer<float> x(d, 4);
               void* host;
               d.ask(d.api.pin(d.handle(), 64, &host, &d.fault));
               d.ask(d.api.upload(d.handle(), x, host, 32, &d.fault));
             }),
             "outside of the device's memory"));
  CHECK(says(complaint([&](Device& d) {
               void* x;
               d.ask(d.api.allocate(d.handle(), 4, &x, &d.fault));
               d.api.release(d.handle(), x);
               d.api.release(d.handle(), x);
             }),
             "never allocated"));
  CHECK(device_api().bytes == sizeof(DeviceApi) && std::string(device_api().name) == "simulator");
}

TEST(options_do_what_they_say) {
  Device small("memory:1000");
  CHECK(small.info.free == 1000 && small.info.total == 1000);
  {
    const Buffer<float> x(small, 200);
    CHECK(says(small.complaint([&] { Buffer<float> more(small, 60); }), "out of memory"));
    CHECK(small.fault.failure == Failure::memory && small.fault.wanted == 240 && small.fault.free == 200);
    const Buffer<float> fits(small, 40);  // and goes on
  }
  small.ask(small.api.describe(small.handle(), &small.info, &small.fault));
  CHECK(small.info.free == 1000);

  CHECK(says(Device("fail:2").complaint([] {}), ""));
  Device second("fail:2");
  CHECK(says(second.complaint([&] { Buffer<float> x(second, 1); }), "the call that was to fail"));

  int32_t devices = 0;
  Fault fault;
  setenv("RWKV_CUSIM", "devices:2", 1);
  CHECK(device_api().count(&devices, &fault) && devices == 2);
  setenv("RWKV_CUSIM", "greedy,order:up", 1);
  CHECK(!device_api().count(&devices, &fault) && says(fault.text, "unknown word \"order:up\""));

  // A stream that waits: nothing is there before synchronise.
  Device late("stream:late");
  const Buffer<float> source(late, std::vector<float>(8, 3)), x(late, size_t(row_stride(8)));
  const WriteRowsParams p{source, x, row_stride(8), 8};
  late.launch(Kernel::write_rows, {1, 1, 1}, &p);
  CHECK(std::isnan(x.data()[0]));
  CHECK(x.read()[0] == 3);

  // A recorded list gives what its launches give.
  const KernelInfo& k = kKernels[size_t(Kernel::write_rows)];
  const Launch l{uint32_t(Kernel::write_rows), {1, 1, 1}, k.threads, k.shared, k.params, 0, &p, 0};
  void* graph;
  late.ask(late.api.record(late.handle(), &l, 1, &graph, &late.fault));
  const Buffer<float> other(late, std::vector<float>(8, 4));
  late.ask(late.api.replay(late.handle(), graph, &late.fault));
  late.api.forget(late.handle(), graph);
  CHECK(x.read()[7] == 3);
}

TEST(races_are_searched_for_in_each_launch_by_itself) {
  if (!*RWKV_CUSIM_RACE_FILE || std::strcmp(simulator(true), RWKV_CUSIM_RACE_FILE) != 0) return;
  Device d(kRace);
  const Buffer<float> from(d, std::vector<float>(16, 3)), x(d, size_t(2 * row_stride(8)));
  WriteRowsParams p{from, x, row_stride(8), 8};
  CHECK(d.complaint([&] { d.launch(Kernel::write_rows, {2, 1, 1}, &p); }).empty());
  p.x += p.ld;  // what a block of the one launch has written, another block of the next one may write
  CHECK(d.complaint([&] { d.launch(Kernel::write_rows, {1, 1, 1}, &p); }).empty());
  p.x = x;
  p.ld = 7;  // the last number of a row is the first of the next one
  CHECK(
      says(d.complaint([&] { d.launch(Kernel::write_rows, {2, 1, 1}, &p); }), "race: writes byte 28 of an allocation"));
}

CHECK_MAIN
