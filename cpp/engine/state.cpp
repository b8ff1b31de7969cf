#include "engine/state.h"

#include "engine/engine.h"

namespace rwkv {

std::shared_ptr<State> State::fork() const { return std::make_shared<State>(engine_, contents()); }

StateContents State::contents() const {
  engine_->check_process();
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
