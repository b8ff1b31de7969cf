// The seam between the host part of the backend and a device: a table of plain C functions over plain structs.
// librwkv_cuda.so exports one function that returns it, and so does the simulator of the tests; no exception, no object
// of C++ and no type of CUDA crosses. The caller holds a lock: one call at a time for each device.
#pragma once
#include <cstdint>

namespace rwkv::cuda {

constexpr uint32_t kAbi = 1;

enum class Failure : uint32_t { none, absent, memory, device };

// Why a call did not succeed. After a failure of the device every later call on it repeats it.
struct Fault {
  Failure failure;
  uint32_t code;                 // the system's own number, or 0
  uint64_t wanted, free, total;  // bytes, of a failure of memory
  char text[224];
};

struct DeviceInfo {
  char name[96];
  int32_t major, minor;  // compute capability
  int32_t processors, shared_per_block;
  uint64_t total, free;
  int32_t driver, runtime;  // versions as CUDA counts them, 0 where there is none
};

constexpr uint32_t kDependent = 1;  // Launch::flags: may start before the launch in front of it has ended

struct Launch {
  uint32_t kernel;   // enum Kernel of kernels.h
  uint32_t grid[3];  // blocks
  uint32_t threads;  // in a block
  uint32_t shared;   // bytes of shared memory
  uint32_t bytes;    // of params
  uint32_t flags;
  const void* params;
  uint64_t reserved;
};
static_assert(sizeof(Launch) == 48);

// All functions return true, or false with the fault filled in. What is on a device happens in the order of the calls;
// memory of the host that is copied from or to is pinned, and nobody touches it before the next synchronise.
struct DeviceApi {
  uint32_t abi, bytes;  // kAbi and sizeof(DeviceApi)
  const char* build;    // both sides were built from the same structs if this is equal
  const char* name;     // "cuda" or "simulator"
  bool (*count)(int32_t* devices, Fault*);
  bool (*open)(int32_t index, void** device, DeviceInfo*, Fault*);
  void (*close)(void* device);
  bool (*describe)(void* device, DeviceInfo*, Fault*);                    // as open has, with what is free now
  bool (*allocate)(void* device, uint64_t bytes, void** memory, Fault*);  // zeroed
  void (*release)(void* device, void* memory);
  bool (*pin)(void* device, uint64_t bytes, void** memory, Fault*);
  void (*unpin)(void* device, void* memory);
  bool (*upload)(void* device, void* to, const void* from, uint64_t bytes, Fault*);
  bool (*download)(void* device, void* to, const void* from, uint64_t bytes, Fault*);
  bool (*launch)(void* device, const Launch* launches, uint32_t count, Fault*);
  bool (*synchronise)(void* device, Fault*);
  bool (*settle)(void* device, Fault*);  // the same for all that the process has asked of this device
  // That what is asked for goes to, in order, for other libraries; the calling thread uses the device from here on.
  bool (*stream)(void* device, void** stream, Fault*);
  // A list of launches to be repeated as it is. The graph is null where there is no such thing, and the fault's text
  // may say why.
  bool (*record)(void* device, const Launch* launches, uint32_t count, void** graph, Fault*);
  bool (*replay)(void* device, void* graph, Fault*);
  void (*forget)(void* device, void* graph);
  // An upload that begins behind what has been asked for and goes on beside what comes, and the point at which that
  // waits for it. Events count from 0 to 7.
  bool (*stage)(void* device, void* to, const void* from, uint64_t bytes, int32_t event, Fault*);
  bool (*await)(void* device, int32_t event, Fault*);
};

constexpr int32_t kEvents = 8;

// The symbol: null where `abi` is not the library's.
using GetBackend = const DeviceApi* (*)(uint32_t abi);
constexpr const char* kGetBackend = "rwkv_backend_get";

}  // namespace rwkv::cuda
