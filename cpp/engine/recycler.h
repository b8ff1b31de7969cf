// Memory for what every step takes and gives back: a block that was freed waits for the next that needs as much, so
// that a step allocates nothing. Never shrinks: it is small beside the states.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "core/platform.h"

namespace rwkv {

class Recycler {
 public:
  Recycler() = default;
  Recycler(const Recycler&) = delete;
  ~Recycler() {
    for (Size& size : sizes_)
      while (Block* block = size.free) size.free = block->next, ::operator delete(block);
  }

  void* take(size_t bytes) {
    {
      const std::lock_guard lock(mutex_);
      Size& size = of(bytes);
      if (Block* block = size.free) {
        size.free = block->next;
        return block;
      }
    }
    return ::operator new(std::max(bytes, sizeof(Block)));
  }
  void give_back(void* block, size_t bytes) {
    if (process_id() != process_) return;  // a forked child: the lock may be held by a thread that is not there
    const std::lock_guard lock(mutex_);
    Size& size = of(bytes);  // found: its block was taken here
    size.free = new (block) Block{size.free};
  }

 private:
  struct Block {
    Block* next;
  };
  struct Size {
    size_t bytes;
    Block* free;
  };
  Size& of(size_t bytes) {
    for (Size& size : sizes_)
      if (size.bytes == bytes) return size;
    return sizes_.emplace_back(bytes, nullptr);
  }

  const int64_t process_ = process_id();
  std::mutex mutex_;
  std::vector<Size> sizes_;  // a few
};

// For std::allocate_shared and containers.
template <class T>
struct RecyclingAllocator {
  using value_type = T;
  explicit RecyclingAllocator(std::shared_ptr<Recycler> from) : recycler(std::move(from)) {}
  template <class U>
  RecyclingAllocator(const RecyclingAllocator<U>& other) : recycler(other.recycler) {}

  T* allocate(size_t count) { return static_cast<T*>(recycler->take(count * sizeof(T))); }
  void deallocate(T* block, size_t count) { recycler->give_back(block, count * sizeof(T)); }
  template <class U>
  bool operator==(const RecyclingAllocator<U>& other) const {
    return recycler == other.recycler;
  }

  std::shared_ptr<Recycler> recycler;
};

}  // namespace rwkv
