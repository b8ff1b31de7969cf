#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace rwkv::cpu {

// Worker's share of n equal pieces.
struct Share {
  int begin, end;
  Share(int n, int worker, int workers)
      : begin(int(int64_t(n) * worker / workers)), end(int(int64_t(n) * (worker + 1) / workers)) {}
};

// A fixed set of threads that run one function at a time; the caller is worker 0. Between jobs they spin for a
// while, because the next job usually follows at once, and then park.
//
// Each worker has its share of a job, and the caller waits for all of them. Where the system lets a worker wait,
// because something else runs on its core, the caller does the share that this one has not begun.
class ThreadPool {
 public:
  // 0 threads: one per core this process may use. `pin` keeps every thread but the caller's on a core of its own, and
  // leaves the first core to the caller. Throws DeviceError.
  explicit ThreadPool(int threads, bool pin = false);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;

  int size() const { return int(threads_.size()) + 1; }

  // fn(worker) for every worker in [0, size()); returns when all have ended. fn must not throw. Every worker runs with
  // denormals flushed.
  template <class F>
  void run(const F& fn) {
    run([](const void* f, int worker) { (*static_cast<const F*>(f))(worker); }, &fn);
  }

 private:
  using Job = void (*)(const void*, int worker);
  struct alignas(64) Share {
    std::atomic<unsigned> round{0};  // the last that somebody has begun
  };
  void run(Job job, const void* argument);
  void work(int worker);
  bool begin(int worker, unsigned round);  // true: for the caller to do, nobody else will
  void end();

  bool spins_;
  int64_t process_;
  Job job_ = nullptr;
  const void* argument_ = nullptr;
  bool stop_ = false;
  alignas(64) std::atomic<unsigned> round_{0};    // grows by one with every job
  alignas(64) std::atomic<unsigned> running_{0};  // shares of other workers that have not ended
  std::unique_ptr<Share[]> shares_;
  std::vector<std::thread> threads_;
};

}  // namespace rwkv::cpu
