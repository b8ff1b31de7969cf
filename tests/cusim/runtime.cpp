// The table of cuda/device.h over memory of the host and fibers. Whatever is wrong is a fault in words, and a device
// that has failed says so again at every later call, as a GPU does.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "cuda/device.h"
#include "cuda/kernels.h"
#include "cusim/memory.h"
#include "cusim/options.h"
#include "cusim/race.h"
#ifdef CUSIM_PTX
#include "cusim/ptx_kernels.h"
#endif

namespace cusim {

namespace {

using namespace rwkv::cuda;

// As of a GPU of this compute capability.
#if defined CUSIM_PTX && CUSIM_PTX < 80
constexpr int32_t kMajor = 7, kMinor = 5;
constexpr uint32_t kMostShared = 64 * 1024;
#else
constexpr int32_t kMajor = 9, kMinor = 0;
constexpr uint32_t kMostShared = 227 * 1024;
#endif

const Entry* entries() {
  static const std::vector<Entry> table = [] {
    std::vector<Entry> t(size_t(Kernel::count));
    add_rows(t.data()), add_small(t.data()), add_sparse(t.data()), add_tile(t.data()), add_wkv(t.data()),
        add_chunk(t.data()), add_sample(t.data());
    return t;
  }();
  return table.data();
}

// A launch that keeps its params.
struct Kept {
  Launch launch;
  std::vector<unsigned char> params;
  explicit Kept(const Launch& l) : launch(l) {
    const auto* p = static_cast<const unsigned char*>(l.params);
    params.assign(p, p + l.bytes);
  }
};
using Graph = std::vector<Kept>;

struct Staged {
  void* to = nullptr;
  const void* from = nullptr;
  uint64_t bytes = 0;
};

struct Device {
  Options options;
  DeviceMemory memory;
  DeviceMemory pinned{uint64_t(1) << 40, false};
  std::vector<std::function<std::string()>> waiting;  // where the stream is late
  Staged staged[kEvents];                             // and not yet awaited
  uint64_t calls = 0;
  Fault failure = {};

  explicit Device(const Options& o) : options(o), memory(o.memory, o.protect) {}
};
Device& device_of(void* device) { return *static_cast<Device*>(device); }

bool fail(Fault* fault, Failure failure, const std::string& text) {
  *fault = {};
  fault->failure = failure;
  std::snprintf(fault->text, sizeof fault->text, "%s", text.c_str());
  return false;
}

// What every call that may fail begins with.
bool enter(Device& d, Fault* fault) {
  if (d.failure.failure != Failure::none) return *fault = d.failure, false;
  if (++d.calls != d.options.fail) return true;
  fail(&d.failure, Failure::device, "the call that was to fail");
  return *fault = d.failure, false;
}

// Does it, or sees to it that synchronise does.
bool enqueue(Device& d, Fault* fault, std::function<std::string()> work) {
  if (d.options.late_stream) return d.waiting.push_back(std::move(work)), true;
  d.memory.open(true);
  const std::string error = work();
  d.memory.open(false);
  if (error.empty()) return true;
  fail(&d.failure, Failure::device, error);
  return *fault = d.failure, false;
}

std::string refusal(const Launch& l) {
  if (l.kernel >= uint32_t(Kernel::count)) return "kernel " + std::to_string(l.kernel) + " does not exist";
  const KernelInfo& info = kKernels[l.kernel];
  const auto wrong = [&](const char* what, uint32_t expected, uint32_t found) {
    return std::string(info.name) + ": expected " + std::to_string(expected) + " " + what + ", found " +
           std::to_string(found);
  };
  if (l.bytes != info.params) return wrong("bytes of params", info.params, l.bytes);
  if (l.threads != info.threads) return wrong("threads", info.threads, l.threads);
  if (l.shared != info.shared || l.shared > kMostShared) return wrong("bytes of shared memory", info.shared, l.shared);
  for (int i = 0; i < 3; i++)
    if (l.grid[i] == 0 || l.grid[i] > (i == 0 ? 0x7fffffffu : 65535u))
      return std::string(info.name) + ": found " + std::to_string(l.grid[i]) + " blocks in dimension " +
             std::to_string(i);
  return {};
}

void note(const std::string& file, const std::string& word) {
  if (!file.empty()) std::ofstream(file, std::ios::app) << word << "\n";
}

std::string run_kernel(Device& d, const Kept& kept) {
  const Launch& l = kept.launch;
  const KernelInfo& info = kKernels[l.kernel];
  const Entry& e = entries()[l.kernel];
  static std::mutex machine;  // one for all devices
  const std::lock_guard lock(machine);
  note(d.options.trace, info.name);
#if defined CUSIM_RACE || defined CUSIM_PTX
  watch_nothing();
  d.memory.each(watch);
#endif
  const Start start = {info.name,          {l.grid[0], l.grid[1], l.grid[2]}, l.threads, l.shared, e.call, e.function,
                       kept.params.data(), (l.flags & kDependent) != 0};
#ifdef CUSIM_PTX
  std::string error = run_translated(start, ptx_kernel(l.kernel), d.memory, d.options);
#else
  std::string error = run(start, d.options.schedule);
#endif
  if (error.empty()) error = d.memory.check();
  return error.empty() ? error : std::string(info.name) + ": " + error;
}

bool launch(void* device, const Launch* launches, uint32_t count, Fault* fault) {
  Device& d = device_of(device);
  if (!enter(d, fault)) return false;
  for (uint32_t i = 0; i < count; i++) {
    if (const std::string error = refusal(launches[i]); !error.empty()) {
      fail(&d.failure, Failure::device, error);
      return *fault = d.failure, false;
    }
    const auto kept = std::make_shared<const Kept>(launches[i]);
    if (!enqueue(d, fault, [&d, kept] { return run_kernel(d, *kept); })) return false;
  }
  return true;
}

// ---- the device ----

bool options_of_now(Options& options, Fault* fault) {
  const std::string wrong = parse(std::getenv("RWKV_CUSIM"), options);
  if (!wrong.empty()) return fail(fault, Failure::absent, "RWKV_CUSIM: unknown word \"" + wrong + "\"");
#ifndef CUSIM_PTX
  if (options.alone || !options.counts.empty())
    return fail(fault, Failure::absent, "RWKV_CUSIM: \"alone\" and \"counts\" are of kernels translated from PTX");
#endif
  return true;
}

bool synchronise(void* device, Fault* fault);
bool await(void* device, int32_t event, Fault* fault);

bool count(int32_t* devices, Fault* fault) {
  Options options;
  if (!options_of_now(options, fault)) return false;
  *devices = options.devices;
  return true;
}

bool describe(void* device, DeviceInfo* info, Fault* fault) {
  Device& d = device_of(device);
  if (d.failure.failure != Failure::none) return *fault = d.failure, false;
  *info = {};
  std::snprintf(info->name, sizeof info->name, "simulator");
  info->major = kMajor, info->minor = kMinor, info->processors = d.options.processors,
  info->shared_per_block = int32_t(kMostShared);
  info->total = d.memory.total(), info->free = d.memory.free();
  return true;
}

bool open(int32_t index, void** device, DeviceInfo* info, Fault* fault) {
  Options options;
  if (!options_of_now(options, fault)) return false;
  if (index < 0 || index >= options.devices)
    return fail(fault, Failure::absent, "expected one of " + std::to_string(options.devices) + " devices");
  auto d = std::make_unique<Device>(options);
  if (!describe(d.get(), info, fault)) return false;
  *device = d.release();
  return true;
}
void close(void* device) { delete &device_of(device); }

bool allocate(void* device, uint64_t bytes, void** memory, Fault* fault) {
  Device& d = device_of(device);
  if (!enter(d, fault)) return false;
  note(d.options.allocations, std::to_string(bytes));
  *memory = d.memory.allocate(bytes);
  if (*memory) return true;
  fail(fault, Failure::memory, "out of memory");
  fault->wanted = bytes, fault->free = d.memory.free(), fault->total = d.memory.total();
  return false;
}
void release(void* device, void* memory) {
  Device& d = device_of(device);
  Fault fault;
  if (!d.waiting.empty()) synchronise(device, &fault);  // as cudaFree does
  const std::string error = d.memory.release(memory);
  if (!error.empty() && d.failure.failure == Failure::none) fail(&d.failure, Failure::device, error);
}
bool pin(void* device, uint64_t bytes, void** memory, Fault* fault) {
  Device& d = device_of(device);
  if (!enter(d, fault)) return false;
  note(d.options.allocations, std::to_string(bytes));
  *memory = d.pinned.allocate(bytes);
  return *memory || fail(fault, Failure::memory, "out of the host's memory");
}
void unpin(void* device, void* memory) { device_of(device).pinned.release(memory); }

bool copy(void* device, void* to, const void* from, uint64_t bytes, bool up, Fault* fault) {
  Device& d = device_of(device);
  if (!enter(d, fault)) return false;
  const bool known = d.memory.holds(up ? to : from, bytes), pinned = d.pinned.holds(up ? from : to, bytes);
  if (!known || !pinned) {
    fail(&d.failure, Failure::device,
         std::string(up ? "upload" : "download") + " of " + std::to_string(bytes) +
             " bytes: " + (known ? "the host's memory is not pinned" : "outside of the device's memory"));
    return *fault = d.failure, false;
  }
  return enqueue(d, fault, [=] { return std::memcpy(to, from, bytes), std::string(); });
}
bool upload(void* device, void* to, const void* from, uint64_t bytes, Fault* fault) {
  return copy(device, to, from, bytes, true, fault);
}
bool download(void* device, void* to, const void* from, uint64_t bytes, Fault* fault) {
  return copy(device, to, from, bytes, false, fault);
}
// The copy happens when it is awaited, and until then nothing can be made of what was there: the latest and the
// earliest that a device may do it.
bool stage(void* device, void* to, const void* from, uint64_t bytes, int32_t event, Fault* fault) {
  Device& d = device_of(device);
  if (event < 0 || event >= kEvents) return fail(fault, Failure::device, "no such event");
  if (!await(device, event, fault)) return false;
  d.staged[event] = {to, from, bytes};
  return enqueue(d, fault, [=] { return std::memset(to, 0xa5, bytes), std::string(); });
}
bool await(void* device, int32_t event, Fault* fault) {
  Device& d = device_of(device);
  if (event < 0 || event >= kEvents) return fail(fault, Failure::device, "no such event");
  const Staged copied = std::exchange(d.staged[event], {});
  return copied.to == nullptr || copy(device, copied.to, copied.from, copied.bytes, true, fault);
}

bool synchronise(void* device, Fault* fault) {
  Device& d = device_of(device);
  if (!enter(d, fault)) return false;
  d.memory.open(true);
  std::string error;
  for (const auto& work : d.waiting)
    if (error.empty()) error = work();
  d.waiting.clear();
  if (error.empty()) error = d.memory.check();
  if (error.empty()) error = d.pinned.check();
  d.memory.open(false);
  if (error.empty()) return true;
  fail(&d.failure, Failure::device, error);
  return *fault = d.failure, false;
}

// What other libraries do they do at once, so everything before has happened.
bool stream(void* device, void** stream, Fault* fault) {
  *stream = nullptr;
  return synchronise(device, fault);
}

bool record(void* device, const Launch* launches, uint32_t count, void** graph, Fault* fault) {
  Device& d = device_of(device);
  if (!enter(d, fault)) return false;
  *graph = d.options.graphs ? new Graph(launches, launches + count) : nullptr;
  return d.options.graphs || !fail(fault, Failure::none, "there are no graphs");
}
bool replay(void* device, void* graph, Fault* fault) {
  note(device_of(device).options.trace, "replay");
  for (const Kept& kept : *static_cast<const Graph*>(graph)) {
    Launch l = kept.launch;
    l.params = kept.params.data();
    if (!launch(device, &l, 1, fault)) return false;
  }
  return true;
}
void forget(void*, void* graph) { delete static_cast<Graph*>(graph); }

// clang-format off
constexpr DeviceApi kApi = {
    kAbi, sizeof(DeviceApi), RWKV_CUDA_BUILD, "simulator", count, open, close, describe, allocate, release, pin, unpin,
    upload, download, launch, synchronise, synchronise, stream, record, replay, forget, stage, await};
// clang-format on

}  // namespace

}  // namespace cusim

extern "C" __attribute__((visibility("default"))) const rwkv::cuda::DeviceApi* rwkv_backend_get(uint32_t abi) {
  return abi == rwkv::cuda::kAbi ? &cusim::kApi : nullptr;
}
