#include "engine/state_pool.h"

#include "core/platform.h"

namespace rwkv {

namespace {

constexpr size_t kSlabBytes = 8 << 20;

}  // namespace

StateSlot::~StateSlot() { pool_->give_back(data_); }

StatePool::StatePool(std::shared_ptr<Backend> backend, StateLayout layout)
    : backend_(std::move(backend)), layout_(std::move(layout)), process_(process_id()) {}

std::shared_ptr<StateSlot> StatePool::take() {
  std::byte* data;
  {
    std::lock_guard lock(mutex_);
    if (free_.empty()) {
      const size_t slots = std::max<size_t>(1, kSlabBytes / layout_.slot_bytes);
      slabs_.push_back(backend_->allocate(slots * layout_.slot_bytes));
      // Room for every slot's return: giving back must not fail.
      free_.reserve(free_.capacity() + slots);
      for (size_t i = slots; i-- > 0;) free_.push_back(slabs_.back().data.get() + i * layout_.slot_bytes);
    }
    data = free_.back();
    free_.pop_back();
  }
  try {
    return std::allocate_shared<StateSlot>(RecyclingAllocator<StateSlot>(recycler_), shared_from_this(), data);
  } catch (...) {
    give_back(data);
    throw;
  }
}

std::shared_ptr<Logits> StatePool::take_logits() {
  const RecyclingAllocator<float> allocator(recycler_);
  return std::allocate_shared<Logits>(allocator, allocator);
}

std::shared_ptr<const StateSlot> StatePool::make_initial() {
  auto slot = take();
  for (int layer = 0; layer < layout_.layers; layer++)
    for (size_t p = 0; p < layout_.parts.size(); p++) {
      const StatePart& part = layout_.parts[p];
      const std::vector<float> values(size_t(part.count()), part.initial);
      backend_->write_state(part, slot->data() + layout_.offset(layer, int(p)), values.data());
    }
  return slot;
}

void StatePool::give_back(std::byte* data) {
  if (process_id() != process_) return;  // a forked child: the lock may be held by a thread that is not there
  std::lock_guard lock(mutex_);
  free_.push_back(data);
}

}  // namespace rwkv
