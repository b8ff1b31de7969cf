// What the probes share: memory with random contents, times of what a device does, results as JSON.
#pragma once
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <vector>

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
#define CHECK(call) check(call, #call)

// ---- memory ----

// Halves from -1 to 1, never zeros: data of zeros is faster than any other.
__global__ void fill(__half* to, size_t n) {
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < n; i += size_t(gridDim.x) * blockDim.x) {
    uint64_t h = (i + 1) * 0x9e3779b97f4a7c15u;
    h = (h ^ (h >> 29)) * 0xbf58476d1ce4e5b9u;
    to[i] = __float2half((float(uint32_t(h >> 32) >> 8) + 0.5f) / 8388608.0f - 1.0f);
  }
}

template <class T>
class Memory {
 public:
  explicit Memory(size_t count) : bytes_(count * sizeof(T)) {
    CHECK(cudaMalloc(&data_, bytes_));
    fill<<<1024, 256>>>(reinterpret_cast<__half*>(data_), bytes_ / 2);
    CHECK(cudaDeviceSynchronize());
  }
  ~Memory() { cudaFree(data_); }
  Memory(const Memory&) = delete;
  operator T*() const { return data_; }
  void zero() {
    CHECK(cudaMemset(data_, 0, bytes_));
    CHECK(cudaDeviceSynchronize());
  }
  size_t bytes() const { return bytes_; }

 private:
  T* data_ = nullptr;
  size_t bytes_;
};

// ---- times ----

struct Stream {
  Stream() {
    CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
  }
  cudaStream_t stream;
  cudaEvent_t begin, end;
};
inline Stream& own() {
  static Stream s;
  return s;
}

struct Times {
  double p10, p50, p90;  // seconds
};
// Of work that goes to own().stream: 50 times after 5 that warm up.
inline Times times(const std::function<void()>& work) {
  std::vector<double> all;
  for (int i = 0; i < 55; i++) {
    CHECK(cudaEventRecord(own().begin, own().stream));
    work();
    CHECK(cudaGetLastError());
    CHECK(cudaEventRecord(own().end, own().stream));
    CHECK(cudaEventSynchronize(own().end));
    float milliseconds;
    CHECK(cudaEventElapsedTime(&milliseconds, own().begin, own().end));
    if (i >= 5) all.push_back(double(milliseconds) / 1e3);
  }
  std::sort(all.begin(), all.end());
  return {all[all.size() / 10], all[all.size() / 2], all[all.size() * 9 / 10]};
}
// The same of a graph of these launches.
inline Times graph_times(const std::function<void()>& launches) {
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  CHECK(cudaStreamBeginCapture(own().stream, cudaStreamCaptureModeThreadLocal));
  launches();
  CHECK(cudaStreamEndCapture(own().stream, &graph));
  CHECK(cudaGraphInstantiate(&executable, graph, 0));
  const Times found = times([&] { CHECK(cudaGraphLaunch(executable, own().stream)); });
  CHECK(cudaGraphExecDestroy(executable));
  CHECK(cudaGraphDestroy(graph));
  return found;
}

// With `early` it may start before the one in front of it has ended, and waits where it says so.
template <class... P, class... A>
void launch(void (*kernel)(P...), int blocks, int threads, size_t shared, bool early, const A&... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(blocks)), config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = shared, config.stream = own().stream;
  config.attrs = &attribute, config.numAttrs = early ? 1 : 0;
  if (shared > 48 << 10) CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)));
  CHECK(cudaLaunchKernelEx(&config, kernel, P(arguments)...));
}
// All blocks are there at once.
template <class... P, class... A>
void launch_together(void (*kernel)(P...), int blocks, int threads, size_t shared, const A&... arguments) {
  std::tuple<P...> values{P(arguments)...};
  std::apply(
      [&](auto&... value) {
        void* all[] = {&value...};
        if (shared > 48 << 10)
          CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)));
        CHECK(cudaLaunchCooperativeKernel(kernel, dim3(unsigned(blocks)), dim3(unsigned(threads)), all, shared,
                                          own().stream));
      },
      values);
}

// ---- results ----

class Results {
 public:
  // `count` things in that time, of so many bytes and operations all together.
  void add(const char* probe, const std::string& what, const Times& t, double count, double bytes = 0,
           double operations = 0) {
    char text[512];
    std::snprintf(text, sizeof text,
                  "{\"probe\": \"%s\", \"what\": \"%s\", \"microseconds\": %.4g, \"p10_p90\": [%.4g, %.4g], "
                  "\"gigabytes_per_second\": %.4g, \"teraflops\": %.4g}",
                  probe, what.c_str(), t.p50 / count * 1e6, t.p10 / count * 1e6, t.p90 / count * 1e6,
                  bytes / t.p50 / 1e9, operations / t.p50 / 1e12);
    rows_ += (rows_.empty() ? "" : ",\n  ") + std::string(text);
  }
  // What later benchmarks are compared with: the best of several ways.
  void limit(const std::string& name, double value) { limits_[name] = std::max(limits_[name], value); }
  void print() const {
    std::string limits;
    for (const auto& [name, value] : limits_) {
      char text[128];
      std::snprintf(text, sizeof text, "%s\"%s\": %.4g", limits.empty() ? "" : ", ", name.c_str(), value);
      limits += text;
    }
    std::printf("{\"rows\": [\n  %s],\n \"limits\": {%s}}\n", rows_.c_str(), limits.c_str());
  }

 private:
  std::string rows_;
  std::map<std::string, double> limits_;
};
