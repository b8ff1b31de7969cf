#include "cpu/threads.h"

#include <system_error>

#include "core/error.h"
#include "core/platform.h"
#include "cpu/kernels.h"

namespace rwkv::cpu {

namespace {

// Waits until `value` is no longer `old`: first spinning, then asleep.
unsigned wait_for_change(const std::atomic<unsigned>& value, unsigned old, int spins) {
  for (int i = 0; i < spins; i++) {
    const unsigned now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    spin_pause();
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int threads) : process_(process_id()) {
  const int cores = usable_cores();
  if (threads <= 0) threads = cores;
  // With more threads than cores a spinning thread only keeps the one it waits for from running.
  spins_ = threads > cores ? 0 : 2000;
  threads_.reserve(size_t(threads) - 1);
  try {
    for (int i = 1; i < threads; i++) threads_.emplace_back([this, i] { work(i); });
  } catch (const std::system_error& e) {
    const size_t started = threads_.size() + 1;
    end();
    throw DeviceError(join("threads: expected ", threads, ", the system gave ", started, " (", e.what(), ")"));
  }
}

void ThreadPool::end() {
  stop_ = true;
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  for (std::thread& t : threads_) t.join();
}

ThreadPool::~ThreadPool() {
  if (process_id() != process_) {
    // A forked child has the handles but not the threads: there is nothing to join, and nothing may be destroyed.
    new std::vector<std::thread>(std::move(threads_));
    return;
  }
  end();
}

void ThreadPool::run(Job job, const void* argument) {
  FlushDenormals flush;
  if (threads_.empty()) return job(argument, 0);
  job_ = job;
  argument_ = argument;
  running_.store(unsigned(threads_.size()), std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  job(argument, 0);
  for (unsigned left; (left = running_.load(std::memory_order_acquire)) != 0;) wait_for_change(running_, left, spins_);
}

void ThreadPool::work(int worker) {
  FlushDenormals flush;
  for (unsigned seen = 0;;) {
    seen = wait_for_change(round_, seen, spins_);
    if (stop_) return;
    job_(argument_, worker);
    if (running_.fetch_sub(1, std::memory_order_release) == 1) running_.notify_one();
  }
}

}  // namespace rwkv::cpu
