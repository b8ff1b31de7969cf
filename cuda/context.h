// One device of the library as an object: faults become exceptions, memory is given back, calls of all threads come one
// at a time, and the calling thread uses afterwards what it has used before.
#pragma once
#include <array>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "core/arena.h"
#include "cuda/caller.h"
#include "cuda/device.h"
#include "cuda/kernels.h"

namespace rwkv::cuda {

using Grid = std::array<int, 3>;

inline Launch launch_of(Kernel kernel, Grid blocks, const void* params) {
  const KernelInfo& k = kKernels[size_t(kernel)];
  return {.kernel = uint32_t(kernel),
          .grid = {uint32_t(blocks[0]), uint32_t(blocks[1]), uint32_t(blocks[2])},
          .threads = k.threads,
          .shared = k.shared,
          .bytes = k.params,
          .flags = 0,
          .params = params,
          .reserved = 0};
}

// What no test without a GPU can show is off unless the environment's RWKV_CUDA_FEATURES names it, and what is on can
// be turned off there: words, separated by commas.
struct Features {
  bool graphs = false;     // a step is one launch graph
  bool dependent = false;  // "pdl": a kernel may start before the one in front of it has ended
  bool cublaslt = false;   // products of many tokens by cuBLASLt, if it is found
  bool fused = true;       // products of few tokens make their operands themselves; "nofused": they do not
  bool ranks = true;       // recurrences make the low-rank products in front of them; "noranks": they do not
};
Features features_of_environment();  // throws DeviceError for a word that is none of them

class Context : public std::enable_shared_from_this<Context> {
 public:
  Context(const DeviceApi& api, int index, Driver driver = system_driver());  // throws DeviceError
  ~Context();
  Context(const Context&) = delete;

  const std::string& name() const { return name_; }  // "cuda:0"
  int index() const { return index_; }
  const Driver& driver() const { return driver_; }
  bool here() const;                                // in the process that opened it
  const DeviceInfo& info() const { return info_; }  // as it was when it was opened
  Memory allocate(size_t bytes);                    // zeroed, on the device
  Memory pin(size_t bytes);                         // of the host, to copy from and to

  // In order, and not waited for: what is copied from or to, pinned, stays untouched until `synchronise`.
  void upload(void* to, const void* from, size_t bytes);
  void download(void* to, const void* from, size_t bytes);
  void launch(std::span<const Launch> launches);
  void launch(Kernel kernel, Grid blocks, const void* params) { launch(std::array{launch_of(kernel, blocks, params)}); }
  // An upload that begins behind what has been asked for and goes on beside what comes; and where that waits for it.
  void stage(void* to, const void* from, size_t bytes, int event);
  void await(int event);
  // For other libraries: what they ask of the stream comes in order with these, and work may change nothing else.
  void visit(const std::function<void(void* stream)>& work);
  void* record(std::span<const Launch> launches);  // null where there are no graphs
  std::string why_no_graph();                      // the first reason for that; empty: there was none
  void replay(void* graph);
  void forget(void* graph);
  void synchronise();
  void settle();  // also for what others ask of this device

  // Copies from and to any memory of the host that have happened when they return.
  void copy_in(void* to, const void* from, size_t bytes);
  void copy_out(void* to, const void* from, size_t bytes);

 private:
  template <class Call>
  void ask(const Call& call);
  Memory owned(void* memory, size_t bytes, void (*release)(void* device, void* memory));

  const DeviceApi& api_;
  const Driver driver_;
  const int index_;
  const int64_t process_;  // a device does not outlive a fork
  std::string name_;
  void* device_ = nullptr;
  DeviceInfo info_ = {};
  std::mutex calling_;  // one call at a time
  std::string no_graph_;
  std::mutex copying_;  // who has `staging_`
  void* staging_ = nullptr;
};

}  // namespace rwkv::cuda
