// Work cut into pieces: every worker has a range of its own, and takes from others' when that is done. Memory gives
// two threads the same time for the same bytes only on average, and a thread may lose its core for a while.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>

namespace rwkv::cpu {

class Pieces {
 public:
  struct Range {
    int begin, end;
    explicit operator bool() const { return begin < end; }
  };

  explicit Pieces(int workers) : workers_(workers), left_(new Left[size_t(workers)]) {}

  // A worker's own range, before the workers start.
  void give(int worker, Range range) { left_[worker].range.store(pack(range), std::memory_order_relaxed); }

  Range all(int worker) const { return unpack(left_[worker].range.load(std::memory_order_relaxed)); }

  // What the worker is to do next: half of what is left of its own, from the front, so that it reads one stream; then
  // half of what is left of another's, from behind. Empty: nothing is left.
  Range take(int worker) {
    if (const Range mine = take_from(worker, true)) return mine;
    for (int i = 1; i < workers_; i++)
      if (const Range other = take_from((worker + i) % workers_, false)) return other;
    return {0, 0};
  }

 private:
  struct alignas(64) Left {
    std::atomic<uint64_t> range{0};
  };
  static uint64_t pack(Range r) { return uint64_t(uint32_t(r.begin)) << 32 | uint32_t(r.end); }
  static Range unpack(uint64_t v) { return {int(v >> 32), int(uint32_t(v))}; }

  // No memory is handed over with a range, so no order is needed.
  Range take_from(int worker, bool front) {
    std::atomic<uint64_t>& left = left_[worker].range;
    for (uint64_t old = left.load(std::memory_order_relaxed);;) {
      const Range range = unpack(old);
      if (!range) return range;
      const int count = (range.end - range.begin + 1) / 2;
      const Range taken = front ? Range{range.begin, range.begin + count} : Range{range.end - count, range.end};
      const Range rest = front ? Range{taken.end, range.end} : Range{range.begin, taken.begin};
      if (left.compare_exchange_weak(old, pack(rest), std::memory_order_relaxed)) return taken;
    }
  }

  const int workers_;
  std::unique_ptr<Left[]> left_;
};

}  // namespace rwkv::cpu
