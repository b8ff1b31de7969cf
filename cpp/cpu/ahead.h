// What comes next: weights that workers fetch into their caches while they wait for each other or do what reads no
// weights. The regions of a model follow one another in the same order at every step, so what has followed a region
// once is taken to follow it again. Where it does not, some lines are fetched in vain.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <unordered_map>
#include <vector>

namespace rwkv::cpu {

class Ahead {
 public:
  struct Stream {
    const std::byte* at;
    size_t bytes;
    bool operator==(const Stream&) const = default;
  };

  explicit Ahead(int workers) : left_(new Left[size_t(workers)]) {}

  // The region of the weights at `region` begins, of which each worker reads a stream: until the next one begins, what
  // comes after it is there to be fetched.
  void begin(const std::byte* region, const std::vector<Stream>& streams) {
    std::vector<Stream>& known = after_[last_];
    if (known != streams) known = streams;
    last_ = region;
    const auto next = after_.find(region);
    for (size_t i = 0; i < streams.size(); i++) {
      const Stream stream = next == after_.end() ? Stream{nullptr, 0} : next->second[i];
      left_[i].lines.store(0, std::memory_order_relaxed);
      left_[i].at.store(stream.at, std::memory_order_relaxed);
      left_[i].lines.store(int(std::min(stream.bytes, kMost) / kLine), std::memory_order_relaxed);
    }
  }
  // False: nothing is left. Where a region begins meanwhile, a few lines may be wrong.
  bool fetch(int worker, int lines) {
    Left& left = left_[size_t(worker)];
    if (left.lines.load(std::memory_order_relaxed) <= 0) return false;
    lines = std::min(lines, left.lines.fetch_sub(lines, std::memory_order_relaxed));
    const std::byte* at = left.at.fetch_add(lines * ptrdiff_t(kLine), std::memory_order_relaxed);
    for (int i = 0; i < lines; i++) __builtin_prefetch(at + i * ptrdiff_t(kLine), 0, 2);
    return true;
  }

 private:
  static constexpr size_t kLine = 64, kMost = 512 << 10;  // of a worker: a part of its L2
  struct alignas(64) Left {
    std::atomic<const std::byte*> at{nullptr};
    std::atomic<int> lines{0};
  };

  std::unique_ptr<Left[]> left_;
  const std::byte* last_ = nullptr;
  std::unordered_map<const std::byte*, std::vector<Stream>> after_;
};

}  // namespace rwkv::cpu
