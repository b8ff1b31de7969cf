#include "cpu/threads.h"

#include <chrono>
#include <system_error>

#include "core/error.h"
#include "core/platform.h"
#include "cpu/kernels.h"

namespace rwkv::cpu {

namespace {

// Between two tokens a caller samples, and a thread that sleeps takes 50 us to wake: as long as ten small regions. By
// the clock, because one pause takes 10 ns on some processors and 50 on others.
constexpr std::chrono::microseconds kSpin{200};
constexpr int kPauses = 64;  // between two looks at the clock

// Waits until `value` is no longer `old`: first spinning, then asleep.
unsigned wait_for_change(const std::atomic<unsigned>& value, unsigned old, bool spin) {
  using Clock = std::chrono::steady_clock;
  if (spin) {
    const Clock::time_point end = Clock::now() + kSpin;
    do
      for (int i = 0; i < kPauses; i++) {
        const unsigned now = value.load(std::memory_order_acquire);
        if (now != old) return now;
        spin_pause();
      }
    while (Clock::now() < end);
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int threads) : process_(process_id()) {
  const int cores = usable_cores();
  if (threads <= 0) threads = cores;
  // With more threads than cores a spinning thread only keeps the one it waits for from running.
  spins_ = threads <= cores;
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
