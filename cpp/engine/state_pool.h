#pragma once
#include <memory>
#include <mutex>
#include <vector>

#include "backend/backend.h"
#include "engine/state.h"
#include "model/state_layout.h"

namespace rwkv {

class StatePool;

// One slot of a pool, given back when nobody holds it any more.
class StateSlot {
 public:
  StateSlot(std::shared_ptr<StatePool> pool, std::byte* data) : pool_(std::move(pool)), data_(data) {}
  ~StateSlot();
  StateSlot(const StateSlot&) = delete;
  StateSlot& operator=(const StateSlot&) = delete;

  std::byte* data() const { return data_; }

 private:
  std::shared_ptr<StatePool> pool_;
  std::byte* data_;
};

// Slots for states on one device. Grows by slabs, never shrinks; slots are used again.
class StatePool : public std::enable_shared_from_this<StatePool> {
 public:
  StatePool(std::shared_ptr<Backend> backend, StateLayout layout);

  const StateLayout& layout() const { return layout_; }
  Backend& backend() const { return *backend_; }

  std::shared_ptr<StateSlot> take();                // contents undefined
  std::shared_ptr<Logits> take_logits();            // empty
  std::shared_ptr<const StateSlot> make_initial();  // the state before any token

 private:
  friend class StateSlot;
  void give_back(std::byte* data);

  std::shared_ptr<Backend> backend_;
  StateLayout layout_;
  const int64_t process_;
  const std::shared_ptr<Recycler> recycler_ = std::make_shared<Recycler>();
  std::mutex mutex_;
  std::vector<Memory> slabs_;
  std::vector<std::byte*> free_;
};

}  // namespace rwkv
