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
// For those who have begun no share yet. All begin at once and end at once, so who is that late was not running.
constexpr std::chrono::microseconds kPatience{10};
constexpr int kPauses = 64;  // between two looks at the clock

// True as soon as ready(), false after the time.
template <class Ready>
bool spin(std::chrono::microseconds time, const Ready& ready) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point end = Clock::now() + time;
  do
    for (int i = 0; i < kPauses; i++) {
      if (ready()) return true;
      spin_pause();
    }
  while (Clock::now() < end);
  return false;
}

// Waits until `value` is no longer `old`: first spinning, then asleep.
unsigned wait_for_change(const std::atomic<unsigned>& value, unsigned old, bool spins) {
  const auto changed = [&] { return value.load(std::memory_order_acquire) != old; };
  if (!spins || !spin(kSpin, changed)) value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int threads, bool pin) : process_(process_id()) {
  const int cores = usable_cores();
  if (threads <= 0) threads = cores;
  // With more threads than cores a spinning thread only keeps the one it waits for from running.
  spins_ = threads <= cores;
  std::vector<int> places;
  if (pin) {
    places = cores_to_pin_to();
    RWKV_CHECK(DeviceError, size_t(threads) <= places.size(),
               "pin: expected no more threads than cores that this process may use, ", places.size(), ", found ",
               threads);
  }
  shares_ = std::make_unique<Share[]>(size_t(threads));
  threads_.reserve(size_t(threads) - 1);
  try {
    for (int i = 1; i < threads; i++) {
      threads_.emplace_back([this, i] { work(i); });
      if (pin) pin_thread(threads_.back(), places[size_t(i)]);
    }
  } catch (const DeviceError&) {
    end();
    throw;
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
  const unsigned round = round_.fetch_add(1, std::memory_order_release) + 1;
  round_.notify_all();
  job(argument, 0);
  if (!spins_ || !spin(kPatience, [&] { return running_.load(std::memory_order_acquire) == 0; }))
    for (int worker = 1; worker < size(); worker++)
      if (begin(worker, round)) {
        job(argument, worker);
        running_.fetch_sub(1, std::memory_order_relaxed);
      }
  for (unsigned left; (left = running_.load(std::memory_order_acquire)) != 0;) wait_for_change(running_, left, spins_);
}

// No job begins before all shares of the one before it have ended, so whoever comes too late finds a later round.
bool ThreadPool::begin(int worker, unsigned round) {
  unsigned before = round - 1;
  return shares_[size_t(worker)].round.compare_exchange_strong(before, round, std::memory_order_acq_rel);
}

void ThreadPool::work(int worker) {
  FlushDenormals flush;
  for (unsigned seen = 0;;) {
    seen = wait_for_change(round_, seen, spins_);
    if (!begin(worker, seen)) continue;  // by now the job may be another
    if (stop_) return;
    job_(argument_, worker);
    if (running_.fetch_sub(1, std::memory_order_release) == 1) running_.notify_one();
  }
}

}  // namespace rwkv::cpu
