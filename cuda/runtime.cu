// The table of device.h over the CUDA runtime, which is linked into this library: nothing but the driver is needed
// where it runs. Kernels are started by number; no kernel is named here.
#include <cuda_runtime.h>

#include <cstdio>
#include <memory>
#include <new>

#include "cuda/device.h"
#include "cuda/kernels.h"

namespace rwkv::cuda {

namespace {

constexpr size_t kCount = size_t(Kernel::count);

const Entry* entries() {
  static const std::unique_ptr<Entry[]> table = [] {
    std::unique_ptr<Entry[]> t(new Entry[kCount]());
    add_rows(t.get()), add_small(t.get()), add_sparse(t.get()), add_tile(t.get()), add_wkv(t.get()), add_chunk(t.get()),
        add_sample(t.get());
    return t;
  }();
  return table.get();
}

struct Device {
  int index = 0;
  bool starts_early = false;  // from compute capability 9.0 on
  cudaStream_t compute = nullptr, copies = nullptr;
  cudaEvent_t events[kEvents] = {}, computed = nullptr;
  Fault failure = {};  // of the device, which does not recover: said again by every later call
};
Device& device_of(void* device) { return *static_cast<Device*>(device); }

bool fail(Fault* fault, Failure failure, cudaError_t error, const char* what) {
  *fault = {};
  fault->failure = failure, fault->code = uint32_t(error);
  std::snprintf(fault->text, sizeof fault->text, "%s: %s: %s", what, cudaGetErrorName(error),
                cudaGetErrorString(error));
  return false;
}
bool broken(Device& d, Fault* fault, cudaError_t error, const char* what) {
  fail(&d.failure, Failure::device, error, what);
  *fault = d.failure;
  return false;
}
// What every call on a device begins with: the calling thread uses this one.
bool enter(Device& d, Fault* fault) {
  if (d.failure.failure != Failure::none) {
    *fault = d.failure;
    return false;
  }
  const cudaError_t error = cudaSetDevice(d.index);
  return error == cudaSuccess || broken(d, fault, error, "cudaSetDevice");
}

bool count(int32_t* devices, Fault* fault) {
  int n = 0;
  const cudaError_t error = cudaGetDeviceCount(&n);
  *devices = n;
  return error == cudaSuccess || fail(fault, Failure::absent, error, "cudaGetDeviceCount");
}

bool describe(void* device, DeviceInfo* info, Fault* fault) {
  Device& d = device_of(device);
  if (!enter(d, fault)) return false;
  cudaDeviceProp properties;
  size_t available = 0, total = 0;
  cudaError_t error = cudaGetDeviceProperties(&properties, d.index);
  if (error == cudaSuccess) error = cudaMemGetInfo(&available, &total);
  if (error != cudaSuccess) return broken(d, fault, error, "cudaGetDeviceProperties");
  *info = {};
  std::snprintf(info->name, sizeof info->name, "%s", properties.name);
  info->major = properties.major, info->minor = properties.minor, info->processors = properties.multiProcessorCount;
  info->shared_per_block = int32_t(properties.sharedMemPerBlockOptin);
  info->total = total, info->free = available;
  cudaDriverGetVersion(&info->driver), cudaRuntimeGetVersion(&info->runtime);
  return true;
}

void close(void* device) {
  std::unique_ptr<Device> d(&device_of(device));
  if (cudaSetDevice(d->index) != cudaSuccess) return;
  for (cudaEvent_t event : d->events)
    if (event) cudaEventDestroy(event);
  if (d->computed) cudaEventDestroy(d->computed);
  for (cudaStream_t stream : {d->compute, d->copies})
    if (stream) cudaStreamDestroy(stream);
}

bool open(int32_t index, void** device, DeviceInfo* info, Fault* fault) {
  std::unique_ptr<Device, void (*)(Device*)> d(new (std::nothrow) Device, [](Device* p) { close(p); });
  if (!d) return fail(fault, Failure::memory, cudaErrorMemoryAllocation, "a device of the library");
  d->index = index;
  const char* what = "cudaSetDevice";
  cudaError_t error = cudaSetDevice(index);
  const auto next = [&](const char* name, auto&& call) {
    if (error == cudaSuccess) what = name, error = call();
  };
  next("cudaStreamCreateWithFlags", [&] { return cudaStreamCreateWithFlags(&d->compute, cudaStreamNonBlocking); });
  next("cudaStreamCreateWithFlags", [&] { return cudaStreamCreateWithFlags(&d->copies, cudaStreamNonBlocking); });
  next("cudaEventCreateWithFlags", [&] { return cudaEventCreateWithFlags(&d->computed, cudaEventDisableTiming); });
  for (cudaEvent_t& event : d->events)
    next("cudaEventCreateWithFlags", [&] { return cudaEventCreateWithFlags(&event, cudaEventDisableTiming); });
  // Also finds out whether the library has code for this device.
  for (size_t i = 0; i < kCount; i++)
    next(kKernels[i].name, [&] {
      return cudaFuncSetAttribute(entries()[i].function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  int(kKernels[i].shared));
    });
  if (error != cudaSuccess) {
    fail(fault, Failure::absent, error, what);
    cudaGetLastError();  // it is told, and no failure of later calls
    return false;
  }
  if (!describe(d.get(), info, fault)) return false;
  d->starts_early = info->major >= 9;
  *device = d.release();
  return true;
}

bool allocate(void* device, uint64_t bytes, void** memory, Fault* fault) {
  Device& d = device_of(device);
  if (!enter(d, fault)) return false;
  *memory = nullptr;
  cudaError_t error = cudaMalloc(memory, bytes == 0 ? 1 : bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // the device goes on
    fail(fault, Failure::memory, error, "cudaMalloc");
    size_t available = 0, total = 0;
    if (cudaMemGetInfo(&available, &total) != cudaSuccess) cudaGetLastError();
    fault->wanted = bytes, fault->free = available, fault->total = total;
    return false;
  }
  if (error != cudaSuccess) return broken(d, fault, error, "cudaMalloc");
  // In front of whatever uses it.
  error = cudaMemsetAsync(*memory, 0, bytes, d.compute);
  return error == cudaSuccess || broken(d, fault, error, "cudaMemsetAsync");
}
void release(void* device, void* memory) {
  if (cudaSetDevice(device_of(device).index) == cudaSuccess) cudaFree(memory);
}

bool pin(void* device, uint64_t bytes, void** memory, Fault* fault) {
  Device& d = device_of(device);
  if (!enter(d, fault)) return false;
  const cudaError_t error = cudaHostAlloc(memory, bytes == 0 ? 1 : bytes, cudaHostAllocDefault);
  if (error == cudaSuccess) return true;
  cudaGetLastError();
  fail(fault, Failure::memory, error, "cudaHostAlloc");
  fault->wanted = bytes;
  return false;
}
void unpin(void* device, void* memory) {
  if (cudaSetDevice(device_of(device).index) == cudaSuccess) cudaFreeHost(memory);
}

bool copy(Device& d, void* to, const void* from, uint64_t bytes, cudaMemcpyKind kind, cudaStream_t stream,
          Fault* fault) {
  if (!enter(d, fault)) return false;
  const cudaError_t error = cudaMemcpyAsync(to, from, bytes, kind, stream);
  return error == cudaSuccess || broken(d, fault, error, "cudaMemcpyAsync");
}
bool upload(void* device, void* to, const void* from, uint64_t bytes, Fault* fault) {
  return copy(device_of(device), to, from, bytes, cudaMemcpyHostToDevice, device_of(device).compute, fault);
}
bool download(void* device, void* to, const void* from, uint64_t bytes, Fault* fault) {
  return copy(device_of(device), to, from, bytes, cudaMemcpyDeviceToHost, device_of(device).compute, fault);
}

cudaError_t start(const Device& d, const Launch& l) {
  if (l.kernel >= kCount || l.bytes != kKernels[l.kernel].params) return cudaErrorInvalidValue;
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(l.grid[0], l.grid[1], l.grid[2]), config.blockDim = dim3(l.threads);
  config.dynamicSmemBytes = l.shared, config.stream = d.compute;
  config.attrs = &early, config.numAttrs = (l.flags & kDependent) != 0 && d.starts_early ? 1 : 0;
  void* params[] = {const_cast<void*>(l.params)};
  return cudaLaunchKernelExC(&config, entries()[l.kernel].function, params);
}

bool launch(void* device, const Launch* launches, uint32_t count, Fault* fault) {
  Device& d = device_of(device);
  if (!enter(d, fault)) return false;
  for (uint32_t i = 0; i < count; i++) {
    const uint32_t kernel = launches[i].kernel;
    const cudaError_t error = start(d, launches[i]);
    if (error != cudaSuccess) return broken(d, fault, error, kernel < kCount ? kKernels[kernel].name : "a launch");
  }
  return true;
}

bool synchronise(void* device, Fault* fault) {
  Device& d = device_of(device);
  if (!enter(d, fault)) return false;
  const cudaError_t error = cudaStreamSynchronize(d.compute);
  return error == cudaSuccess || broken(d, fault, error, "cudaStreamSynchronize");
}

bool settle(void* device, Fault* fault) {
  Device& d = device_of(device);
  if (!enter(d, fault)) return false;
  const cudaError_t error = cudaDeviceSynchronize();
  return error == cudaSuccess || broken(d, fault, error, "cudaDeviceSynchronize");
}

bool stream(void* device, void** stream, Fault* fault) {
  Device& d = device_of(device);
  *stream = d.compute;
  return enter(d, fault);
}

// The launches as the stream has them, edges of those that start early included. It goes without a graph where there is
// no room for one, or a driver that cannot capture such edges, which the fault tells although the call succeeds; of a
// device that has failed the next call tells.
bool record(void* device, const Launch* launches, uint32_t count, void** graph, Fault* fault) {
  Device& d = device_of(device);
  *graph = nullptr;
  if (!enter(d, fault)) return false;
  cudaGraph_t captured = nullptr;
  cudaGraphExec_t executable = nullptr;
  const char* what = "cudaStreamBeginCapture";
  cudaError_t error = cudaStreamBeginCapture(d.compute, cudaStreamCaptureModeThreadLocal);
  if (error == cudaSuccess) {
    what = "cudaLaunchKernelExC within a capture";
    for (uint32_t i = 0; i < count && error == cudaSuccess; i++) error = start(d, launches[i]);
    const cudaError_t ended = cudaStreamEndCapture(d.compute, &captured);
    if (error == cudaSuccess) what = "cudaStreamEndCapture", error = ended;
  }
  if (error == cudaSuccess) what = "cudaGraphInstantiate", error = cudaGraphInstantiate(&executable, captured, 0);
  if (captured) cudaGraphDestroy(captured);
  if (error == cudaSuccess) {
    *graph = executable;
  } else {
    fail(fault, Failure::none, error, what);
    cudaGetLastError();
  }
  return true;
}
bool replay(void* device, void* graph, Fault* fault) {
  Device& d = device_of(device);
  if (!enter(d, fault)) return false;
  const cudaError_t error = cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), d.compute);
  return error == cudaSuccess || broken(d, fault, error, "cudaGraphLaunch");
}
void forget(void* device, void* graph) {
  if (cudaSetDevice(device_of(device).index) == cudaSuccess) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph));
}

bool stage(void* device, void* to, const void* from, uint64_t bytes, int32_t event, Fault* fault) {
  Device& d = device_of(device);
  if (!enter(d, fault)) return false;
  cudaError_t error = cudaEventRecord(d.computed, d.compute);
  if (error == cudaSuccess) error = cudaStreamWaitEvent(d.copies, d.computed);
  if (error != cudaSuccess) return broken(d, fault, error, "cudaStreamWaitEvent");
  if (!copy(d, to, from, bytes, cudaMemcpyHostToDevice, d.copies, fault)) return false;
  error = cudaEventRecord(d.events[event], d.copies);
  return error == cudaSuccess || broken(d, fault, error, "cudaEventRecord");
}
bool await(void* device, int32_t event, Fault* fault) {
  Device& d = device_of(device);
  if (!enter(d, fault)) return false;
  const cudaError_t error = cudaStreamWaitEvent(d.compute, d.events[event]);
  return error == cudaSuccess || broken(d, fault, error, "cudaStreamWaitEvent");
}

// clang-format off
constexpr DeviceApi kApi = {
    kAbi, sizeof(DeviceApi), RWKV_CUDA_BUILD, "cuda", count, open, close, describe, allocate, release, pin, unpin, upload,
    download, launch, synchronise, settle, stream, record, replay, forget, stage, await};
// clang-format on

}  // namespace

}  // namespace rwkv::cuda

extern "C" __attribute__((visibility("default"))) const rwkv::cuda::DeviceApi* rwkv_backend_get(uint32_t abi) {
  return abi == rwkv::cuda::kAbi ? &rwkv::cuda::kApi : nullptr;
}
