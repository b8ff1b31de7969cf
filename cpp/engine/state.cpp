#include "engine/state.h"

namespace rwkv {

StateContents State::contents() const {
  const Use use(*this);
  return contents_;
}

State::Use::Use(const State& state) : state_(state) {
  RWKV_CHECK(
      ConcurrentUseError, !state.busy_.exchange(true, std::memory_order_acquire),
      "expected one use of a state handle at a time, found a second while the first runs; fork() gives each its own");
}

State::Use::~Use() { state_.busy_.store(false, std::memory_order_release); }

}  // namespace rwkv
