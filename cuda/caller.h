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

// As long as it lives, the thread may use another. One inside of another of the same thread does nothing, whatever
// their devices are, as every call of the table says which it is for. Ends in the thread that it began in.
class Caller {
 public:
  explicit Caller(const Driver& driver) {
    if (inside_) return;
    constexpr int kNotInitialised = 3;  // the first call of all is about to change that: no thread has one yet
    const int status = driver.get ? driver.get(&context_) : kNotInitialised;
    if (status == kNotInitialised) context_ = nullptr;
    if (status == 0 || status == kNotInitialised) set_ = driver.set;
    inside_ = set_ != nullptr;
  }
  ~Caller() {
    if (!set_) return;
    set_(context_);
    inside_ = false;
  }
  Caller(const Caller&) = delete;

 private:
  void* context_ = nullptr;  // null: none
  int (*set_)(void* context) = nullptr;
  static inline thread_local bool inside_ = false;  // one that puts something back
};

}  // namespace rwkv::cuda
