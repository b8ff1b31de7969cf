#include "engine/state_pool.h"

#include <algorithm>

#include "core/platform.h"

namespace rwkv {

namespace {

constexpr size_t kFirstSlab = 8 << 20;

}  // namespace

StateSlot::~StateSlot() { pool_->give_back(slab_, pieces_); }

StatePool::StatePool(std::vector<Stage> stages)
    : stages_(std::move(stages)), slab_bytes_(kFirstSlab), process_(process_id()) {
  for (const Stage& stage : stages_) slot_bytes_ += stage.layout.slot_bytes;
}

// Slabs double up to what the devices want: allocating is dear on some.
void StatePool::grow() {
  size_t most = kFirstSlab;
  for (const Stage& stage : stages_) most = std::max(most, stage.backend->slab_bytes());
  const size_t slots = std::max<size_t>(1, slab_bytes_ / slot_bytes_), width = stages_.size();
  auto slab = std::make_unique<StateSlab>();
  slab->slots = slots;
  slab->pieces.resize(slots * width);
  for (size_t s = 0; s < width; s++) {
    const size_t bytes = stages_[s].layout.slot_bytes;
    const Memory& memory = slab->memory.emplace_back(stages_[s].backend->allocate(slots * bytes));
    for (size_t i = 0; i < slots; i++) slab->pieces[i * width + s] = memory.data.get() + i * bytes;
  }
  slab_bytes_ = std::min(2 * slab_bytes_, most);
  slab->free.reserve(slots);  // room for every slot's return: giving back must not fail
  for (size_t i = slots; i-- > 0;) slab->free.push_back(slab->pieces.data() + i * width);
  slabs_.push_back(std::move(slab));
  slots_ += slots, free_ += slots;
}

std::shared_ptr<StateSlot> StatePool::take() {
  StateSlab* slab;
  std::byte* const* pieces;
  {
    std::lock_guard lock(mutex_);
    if (free_ == 0) grow();
    slab = std::ranges::find_if(slabs_, [](const auto& s) { return !s->free.empty(); })->get();
    pieces = slab->free.back();
    slab->free.pop_back(), free_--;
  }
  try {
    return std::allocate_shared<StateSlot>(RecyclingAllocator<StateSlot>(recycler_), shared_from_this(), slab, pieces);
  } catch (...) {
    give_back(slab, pieces);
    throw;
  }
}

std::shared_ptr<Logits> StatePool::take_logits() {
  const RecyclingAllocator<float> allocator(recycler_);
  return std::allocate_shared<Logits>(allocator, allocator);
}

std::shared_ptr<const StateSlot> StatePool::make_initial(std::span<const float> wkv) {
  auto slot = take();
  for (size_t s = 0; s < stages_.size(); s++) {
    const auto& [backend, layout] = stages_[s];
    for (int layer = 0; layer < layout.layers; layer++)
      for (size_t p = 0; p < layout.parts.size(); p++) {
        const StatePart& part = layout.parts[p];
        std::vector<float> values(size_t(part.count()), part.initial);
        if (!wkv.empty() && part.name == "att.wkv") {
          std::ranges::copy(wkv.first(values.size()), values.begin());
          wkv = wkv.subspan(values.size());
        }
        backend->write_state(part, slot->data(s) + layout.offset(layer, int(p)), values.data());
      }
  }
  return slot;
}

void StatePool::give_back(StateSlab* slab, std::byte* const* pieces) {
  if (process_id() != process_) return;  // a forked child: the lock may be held by a thread that is not there
  std::lock_guard lock(mutex_);
  slab->free.push_back(pieces), free_++;
  if (free_ * slot_bytes_ < kKept) return;
  // Also those that had to wait for others to be given back.
  while (true) {
    const auto unused = std::ranges::find_if(slabs_, [&](const auto& s) {
      const size_t rest = free_ - s->slots;
      return s->free.size() == s->slots && rest >= slots_ - free_ && rest * slot_bytes_ >= kKept;
    });
    if (unused == slabs_.end()) return;
    slots_ -= (*unused)->slots, free_ -= (*unused)->slots;
    slabs_.erase(unused);
  }
}

}  // namespace rwkv
