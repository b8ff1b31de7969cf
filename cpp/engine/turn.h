#pragma once
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "core/error.h"

namespace rwkv {

// Calls of several threads compute one after the other. Unlike a mutex, waiting can be ended by what `poll` throws, and
// a call from within a call (a callback's) is refused instead of waiting for itself.
class Turn {
 public:
  class Hold {
   public:
    Hold(Turn& turn, const std::function<void()>& poll) : turn_(turn) { turn.take(poll); }
    ~Hold() { turn_.give_back(); }
    Hold(const Hold&) = delete;

   private:
    Turn& turn_;
  };

 private:
  void take(const std::function<void()>& poll) {
    std::unique_lock lock(mutex_);
    RWKV_CHECK(ConcurrentUseError, !taken_ || owner_ != std::this_thread::get_id(),
               "expected one call at a time, found a call of the same engine from within a callback of a call");
    while (taken_) {
      given_back_.wait_for(lock, std::chrono::milliseconds(20));
      if (!taken_ || !poll) continue;
      lock.unlock();
      poll();
      lock.lock();
    }
    taken_ = true;
    owner_ = std::this_thread::get_id();
  }
  void give_back() {
    {
      std::lock_guard lock(mutex_);
      taken_ = false;
    }
    given_back_.notify_one();
  }

  std::mutex mutex_;
  std::condition_variable given_back_;
  bool taken_ = false;
  std::thread::id owner_;
};

}  // namespace rwkv
