// A device for the tests of the kernels: the simulator, in several schedules, or the one whose library
// RWKV_TESTS_SIMULATOR names, or with RWKV_GPU_TESTS=1 a GPU. Every tensor has an allocation of its own, so that
// whatever leaves it is found.
#pragma once
#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "cuda/device.h"
#include "cuda/kernels.h"

#ifndef RWKV_CUDA_FILE
#define RWKV_CUDA_FILE "librwkv_cuda.so"  // built without
#endif
#ifndef RWKV_CUSIM_RACE_FILE
#define RWKV_CUSIM_RACE_FILE ""  // the same, for a sanitizer
#endif

inline bool on_gpu() { return std::getenv("RWKV_GPU_TESTS") != nullptr; }

// A schedule in which races are searched for, by a library of its own.
constexpr const char* kRace = "order:fwd";

// The library of a simulator. One that is named is it for all schedules: bits of two libraries need not be the same.
inline const char* simulator(bool race = false) {
  if (const char* named = std::getenv("RWKV_TESTS_SIMULATOR")) return named;
  return race && *RWKV_CUSIM_RACE_FILE ? RWKV_CUSIM_RACE_FILE : RWKV_CUSIM_FILE;
}

// One after the other, so that a result that depends on the order of threads is another one somewhere.
inline std::vector<const char*> schedules() {
  if (on_gpu()) return {""};
  std::vector<const char*> all = {"order:rand:1,greedy,copies:late,stream:late"};
  if (!check::kSanitized) all.insert(all.end(), {"order:fwd,copies:late", "order:rev,greedy,copies:eager"});
  if (*RWKV_CUSIM_RACE_FILE) all.push_back(kRace);
  return all;
}

inline const rwkv::cuda::DeviceApi& open_api(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) throw std::runtime_error(dlerror());
  return *reinterpret_cast<rwkv::cuda::GetBackend>(dlsym(library, rwkv::cuda::kGetBackend))(rwkv::cuda::kAbi);
}
inline const rwkv::cuda::DeviceApi& device_api(const char* schedule = "") {
  static const auto& api = open_api(on_gpu() ? RWKV_CUDA_FILE : simulator());
  if (std::strcmp(schedule, kRace) != 0) return api;
  static const auto& race = open_api(simulator(true));
  return race;
}

class Device {
 public:
  explicit Device(const char* schedule = "") : api(device_api(schedule)) {
    setenv("RWKV_CUSIM", schedule, 1);
    ask(api.open(0, &handle_, &info, &fault));
  }
  ~Device() { api.close(handle_); }
  Device(const Device&) = delete;

  void ask(bool done) const {
    if (!done) throw std::runtime_error(fault.text);
  }
  void launch(rwkv::cuda::Kernel kernel, std::array<int, 3> grid, const void* params) {
    using rwkv::cuda::Kernel;
    const rwkv::cuda::KernelInfo& k = rwkv::cuda::kKernels[size_t(kernel)];
    // As the engine's tape has them; what is not on it waits for nothing.
    const bool alone =
        (kernel >= Kernel::pack_rows_f32 && kernel <= Kernel::pack_columns_i4) || kernel == Kernel::sample;
    const rwkv::cuda::Launch l{uint32_t(kernel), {uint32_t(grid[0]), uint32_t(grid[1]), uint32_t(grid[2])},
                               k.threads,        k.shared,
                               k.params,         alone ? 0 : rwkv::cuda::kDependent,
                               params,           0};
    ask(api.launch(handle_, &l, 1, &fault));
  }
  // Of what the device did, in words; empty: nothing.
  template <class F>
  std::string complaint(const F& f) {
    try {
      f();
      ask(api.synchronise(handle_, &fault));
    } catch (const std::exception& e) {
      return e.what();
    }
    return {};
  }
  void* handle() const { return handle_; }

  const rwkv::cuda::DeviceApi& api;
  rwkv::cuda::DeviceInfo info = {};
  mutable rwkv::cuda::Fault fault = {};

 private:
  void* handle_ = nullptr;
};

// n elements on the device. What is not given is NaN in every format.
template <class T>
class Buffer {
 public:
  Buffer(Device& d, size_t n) : Buffer(d, unset(n)) {}
  Buffer(Device& d, const std::vector<T>& values) : device_(d), size_(values.size()) {
    void* memory;
    d.ask(d.api.allocate(d.handle(), size_ * sizeof(T), &memory, &d.fault));
    data_ = static_cast<T*>(memory);
    write(values);
  }
  ~Buffer() { device_.api.release(device_.handle(), data_); }
  Buffer(const Buffer&) = delete;

  T* data() const { return data_; }
  operator T*() const { return data_; }
  void write(const std::vector<T>& values) const {
    Pinned host(device_, size_ * sizeof(T));
    if (size_ != 0) std::memcpy(host.memory, values.data(), size_ * sizeof(T));
    device_.ask(device_.api.upload(device_.handle(), data_, host.memory, size_ * sizeof(T), &device_.fault));
    device_.ask(device_.api.synchronise(device_.handle(), &device_.fault));
  }
  std::vector<T> read() const {
    std::vector<T> values(size_);
    Pinned host(device_, size_ * sizeof(T));
    device_.ask(device_.api.download(device_.handle(), host.memory, data_, size_ * sizeof(T), &device_.fault));
    device_.ask(device_.api.synchronise(device_.handle(), &device_.fault));
    if (size_ != 0) std::memcpy(values.data(), host.memory, size_ * sizeof(T));
    return values;
  }

 private:
  struct Pinned {
    Device& device;
    void* memory = nullptr;
    Pinned(Device& d, size_t bytes) : device(d) { d.ask(d.api.pin(d.handle(), bytes, &memory, &d.fault)); }
    ~Pinned() { device.api.unpin(device.handle(), memory); }
  };
  static std::vector<T> unset(size_t n) {
    std::vector<T> v(n);
    if (n != 0) std::memset(v.data(), 0xff, n * sizeof(T));
    return v;
  }
  Device& device_;
  size_t size_;
  T* data_;
};
