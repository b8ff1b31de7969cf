#pragma once
#include <memory>
#include <mutex>
#include <vector>

#include "backend/backend.h"
#include "engine/state.h"
#include "model/state_layout.h"

namespace rwkv {

class StatePool;

// One slot of a pool, given back when nobody holds it any more: a piece of memory for each stage of the model.
class StateSlot {
 public:
  StateSlot(std::shared_ptr<StatePool> pool, std::byte* const* pieces) : pool_(std::move(pool)), pieces_(pieces) {}
  ~StateSlot();
  StateSlot(const StateSlot&) = delete;
  StateSlot& operator=(const StateSlot&) = delete;

  std::byte* data(size_t stage) const { return pieces_[stage]; }

 private:
  std::shared_ptr<StatePool> pool_;
  std::byte* const* pieces_;
};

// Slots for states. Grows by slabs, never shrinks; slots are used again.
class StatePool : public std::enable_shared_from_this<StatePool> {
 public:
  // What lies on the device of a stage.
  struct Stage {
    std::shared_ptr<Backend> backend;
    StateLayout layout;
  };
  explicit StatePool(std::vector<Stage> stages);

  std::shared_ptr<StateSlot> take();                // contents undefined
  std::shared_ptr<Logits> take_logits();            // empty
  std::shared_ptr<const StateSlot> make_initial();  // the state before any token

 private:
  friend class StateSlot;
  struct Slab {
    std::vector<Memory> memory;      // one for each stage
    std::vector<std::byte*> pieces;  // (slots, stages)
  };
  void grow();
  void give_back(std::byte* const* pieces);

  const std::vector<Stage> stages_;
  size_t slab_bytes_;
  const int64_t process_;
  const std::shared_ptr<Recycler> recycler_ = std::make_shared<Recycler>();
  std::mutex mutex_;
  std::vector<Slab> slabs_;
  std::vector<std::byte* const*> free_;
};

}  // namespace rwkv
