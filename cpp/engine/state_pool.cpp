#include "engine/state_pool.h"

#include <algorithm>

#include "core/platform.h"

namespace rwkv {

namespace {

constexpr size_t kFirstSlab = 8 << 20;

}  // namespace

StateSlot::~StateSlot() { pool_->give_back(pieces_); }

StatePool::StatePool(std::vector<Stage> stages)
    : stages_(std::move(stages)), slab_bytes_(kFirstSlab), process_(process_id()) {}

// Slabs double up to what the devices want: allocating is dear on some.
void StatePool::grow() {
  size_t slot = 0, most = kFirstSlab;
  for (const Stage& stage : stages_) {
    slot += stage.layout.slot_bytes;
    most = std::max(most, stage.backend->slab_bytes());
  }
  const size_t slots = std::max<size_t>(1, slab_bytes_ / slot), width = stages_.size();
  Slab slab;
  slab.pieces.resize(slots * width);
  for (size_t s = 0; s < width; s++) {
    const size_t bytes = stages_[s].layout.slot_bytes;
    const Memory& memory = slab.memory.emplace_back(stages_[s].backend->allocate(slots * bytes));
    for (size_t i = 0; i < slots; i++) slab.pieces[i * width + s] = memory.data.get() + i * bytes;
  }
  slab_bytes_ = std::min(2 * slab_bytes_, most);
  // Room for every slot's return: giving back must not fail.
  free_.reserve(free_.capacity() + slots);
  slabs_.push_back(std::move(slab));
  for (size_t i = slots; i-- > 0;) free_.push_back(slabs_.back().pieces.data() + i * width);
}

std::shared_ptr<StateSlot> StatePool::take() {
  std::byte* const* pieces;
  {
    std::lock_guard lock(mutex_);
    if (free_.empty()) grow();
    pieces = free_.back();
    free_.pop_back();
  }
  try {
    return std::allocate_shared<StateSlot>(RecyclingAllocator<StateSlot>(recycler_), shared_from_this(), pieces);
  } catch (...) {
    give_back(pieces);
    throw;
  }
}

std::shared_ptr<Logits> StatePool::take_logits() {
  const RecyclingAllocator<float> allocator(recycler_);
  return std::allocate_shared<Logits>(allocator, allocator);
}

std::shared_ptr<const StateSlot> StatePool::make_initial() {
  auto slot = take();
  for (size_t s = 0; s < stages_.size(); s++) {
    const auto& [backend, layout] = stages_[s];
    for (int layer = 0; layer < layout.layers; layer++)
      for (size_t p = 0; p < layout.parts.size(); p++) {
        const StatePart& part = layout.parts[p];
        const std::vector<float> values(size_t(part.count()), part.initial);
        backend->write_state(part, slot->data(s) + layout.offset(layer, int(p)), values.data());
      }
  }
  return slot;
}

void StatePool::give_back(std::byte* const* pieces) {
  if (process_id() != process_) return;  // a forked child: the lock may be held by a thread that is not there
  std::lock_guard lock(mutex_);
  free_.push_back(pieces);
}

}  // namespace rwkv
