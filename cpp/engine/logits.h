#pragma once
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "engine/recycler.h"

namespace rwkv {

class StateSlot;

// (V) logits after a token: in memory of the host, or where a device has left them, in a slot, until somebody looks.
class Logits {
 public:
  using Values = std::vector<float, RecyclingAllocator<float>>;

  explicit Logits(const RecyclingAllocator<float>& allocator) : values_(allocator) {}
  Logits(const Logits&) = delete;

  Values& on_host() { return values_; }  // to be filled
  void leave_in(std::shared_ptr<const StateSlot> slot, Backend& backend, const std::byte* at, size_t count) {
    slot_ = std::move(slot), backend_ = &backend, at_ = at, count_ = count;
  }

  size_t size() const { return at_ ? count_ : values_.size(); }
  const std::byte* on_device() const { return at_; }  // null: on the host
  // On the host; from any thread.
  const float* data() const {
    const std::lock_guard lock(reading_);
    if (at_ && values_.empty()) {
      Values values(count_, values_.get_allocator());
      backend_->read_state({.name = "logits", .shape = {int64_t(count_)}}, at_, values.data());
      values_ = std::move(values);
    }
    return values_.data();
  }

 private:
  mutable std::mutex reading_;
  mutable Values values_;
  std::shared_ptr<const StateSlot> slot_;  // which keeps the backend too
  Backend* backend_ = nullptr;
  const std::byte* at_ = nullptr;
  size_t count_ = 0;
};

}  // namespace rwkv
