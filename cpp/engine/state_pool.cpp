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
  StateSlabs fresh(1);
  StateSlab& slab = fresh.front();
  slab.slots = slots;
  slab.pieces.resize(slots * width);
  for (size_t s = 0; s < width; s++) {
    const size_t bytes = stages_[s].layout.slot_bytes;
    const Memory& memory = slab.memory.emplace_back(stages_[s].backend->allocate(slots * bytes));
    for (size_t i = 0; i < slots; i++) slab.pieces[i * width + s] = memory.data.get() + i * bytes;
  }
  slab_bytes_ = std::min(2 * slab_bytes_, most);
  slab.free.reserve(slots);  // room for every slot's return: giving back must not fail
  for (size_t i = slots; i-- > 0;) slab.free.push_back(slab.pieces.data() + i * width);
  unused_.splice(unused_.end(), fresh);
  slots_ += slots, free_ += slots;
}

StateSlabs& StatePool::list_of(const StateSlab& slab) {
  return slab.free.empty() ? full_ : slab.free.size() == slab.slots ? unused_ : partly_;
}

// A slab of which a slot was taken or given back goes to the list that it belongs to now.
void StatePool::move(StateSlabs::iterator slab, StateSlabs& from) {
  StateSlabs& to = list_of(*slab);
  if (&to == &from) return;
  auto next = to.begin();
  // Past the few that were made before slabs had their full size.
  while (&to == &unused_ && next != to.end() && next->slots < slab->slots) ++next;
  to.splice(next, from, slab);
}

std::shared_ptr<StateSlot> StatePool::take() {
  StateSlabs::iterator slab;
  std::byte* const* pieces;
  {
    std::lock_guard lock(mutex_);
    if (free_ == 0) grow();
    StateSlabs& from = partly_.empty() ? unused_ : partly_;
    slab = from.begin();
    pieces = slab->free.back();
    slab->free.pop_back(), free_--;
    move(slab, from);
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

void StatePool::give_back(StateSlabs::iterator slab, std::byte* const* pieces) {
  if (process_id() != process_) return;  // a forked child: the lock may be held by a thread that is not there
  std::lock_guard lock(mutex_);
  StateSlabs& from = list_of(*slab);
  slab->free.push_back(pieces), free_++;
  move(slab, from);
  // Also those that had to wait for others to be given back; where the smallest has to stay, all have.
  while (!unused_.empty()) {
    const size_t slots = unused_.front().slots, rest = free_ - slots;
    if (rest < slots_ - free_ || rest * slot_bytes_ < kKept) return;
    slots_ -= slots, free_ -= slots;
    unused_.pop_front();
  }
}

}  // namespace rwkv
