// Which device a thread uses is its own business: where a call has to change that, it is afterwards as it was before.
#pragma once

namespace rwkv::cuda {

// Functions of CUDA's driver: the context that the calling thread uses. The runtime's own would open one on whatever
// device the thread has never used.
struct Driver {
  int (*get)(void** context) = nullptr;  // cuCtxGetCurrent; both null: there is no driver
  int (*set)(void* context) = nullptr;   // cuCtxSetCurrent
};
Driver system_driver();

// As long as it lives, the thread may use another.
class Caller {
 public:
  explicit Caller(const Driver& driver) : set_(driver.get && driver.get(&context_) == 0 ? driver.set : nullptr) {}
  ~Caller() {
    if (set_) set_(context_);
  }
  Caller(const Caller&) = delete;

 private:
  void* context_ = nullptr;  // null: none
  int (*const set_)(void* context);
};

}  // namespace rwkv::cuda
