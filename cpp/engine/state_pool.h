#pragma once
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "engine/state.h"
#include "model/state_layout.h"

namespace rwkv {

class StatePool;

// Slots that are allocated together.
struct StateSlab {
  std::vector<Memory> memory;           // one for each stage of the model
  std::vector<std::byte*> pieces;       // (slots, stages)
  std::vector<std::byte* const*> free;  // of the slots those that nobody has, by their first piece
  size_t slots = 0;
};
using StateSlabs = std::list<StateSlab>;

// One slot of a pool, given back when nobody holds it any more: a piece of memory for each stage of the model.
class StateSlot {
 public:
  StateSlot(std::shared_ptr<StatePool> pool, StateSlabs::iterator slab, std::byte* const* pieces)
      : pool_(std::move(pool)), slab_(slab), pieces_(pieces) {}
  ~StateSlot();
  StateSlot(const StateSlot&) = delete;
  StateSlot& operator=(const StateSlot&) = delete;

  std::byte* data(size_t stage) const { return pieces_[stage]; }

 private:
  std::shared_ptr<StatePool> pool_;
  StateSlabs::iterator slab_;
  std::byte* const* pieces_;
};

// Slots for states, used again. Grows by slabs. One that nobody uses is let go of if, without it, there are still as
// many free slots as used ones, which is what steps of all states need, and kKept bytes of them.
class StatePool : public std::enable_shared_from_this<StatePool> {
 public:
  // What lies on the device of a stage.
  struct Stage {
    std::shared_ptr<Backend> backend;
    StateLayout layout;
  };
  static constexpr size_t kKept = size_t(256) << 20;

  explicit StatePool(std::vector<Stage> stages);

  std::shared_ptr<StateSlot> take();      // contents undefined
  std::shared_ptr<Logits> take_logits();  // empty
  // The state before any token; `wkv`, if there are any, are its matrices (L, H, N, N).
  std::shared_ptr<const StateSlot> make_initial(std::span<const float> wkv = {});

 private:
  friend class StateSlot;
  void grow();
  StateSlabs& list_of(const StateSlab& slab);
  void move(StateSlabs::iterator slab, StateSlabs& from);
  void give_back(StateSlabs::iterator slab, std::byte* const* pieces);

  const std::vector<Stage> stages_;
  size_t slot_bytes_ = 0, slab_bytes_;
  const int64_t process_;
  const std::shared_ptr<Recycler> recycler_ = std::make_shared<Recycler>();
  std::mutex mutex_;
  // By what is free of them, so that no call looks through all. Those in use give first, so that others become unused.
  StateSlabs full_, partly_, unused_;  // the smallest of the unused in front
  size_t slots_ = 0, free_ = 0;
};

}  // namespace rwkv
