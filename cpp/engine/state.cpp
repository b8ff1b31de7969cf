#include "engine/state.h"

#include "engine/engine.h"

namespace rwkv {

std::shared_ptr<State> State::fork() const { return std::make_shared<State>(engine_, contents()); }

StateContents State::contents() const {
  engine_->check_process();
  const Use use(*this);
  return contents_;
}

void State::advance(std::span<const Advance> states) {
  std::vector<Use> uses;
  for (const auto& [state, from, to] : states) {
    uses.emplace_back(state);
    state.check_at(from);
  }
  for (const auto& [state, from, to] : states) state.contents_ = to;
}

void State::check_at(const StateContents& from) const {
  RWKV_CHECK(ConcurrentUseError, contents_.slot == from.slot && contents_.tokens_seen == from.tokens_seen,
             "expected the state as it was left, after ", from.tokens_seen, " tokens, found it after ",
             contents_.tokens_seen, ": another call has stepped it; fork() gives each its own");
}

State::Use::Use(const State& state) : state_(&state) {
  RWKV_CHECK(
      ConcurrentUseError, !state.busy_.exchange(true, std::memory_order_acquire),
      "expected one use of a state handle at a time, found a second while the first runs; fork() gives each its own");
}

State::Use::~Use() {
  if (state_) state_->busy_.store(false, std::memory_order_release);
}

}  // namespace rwkv
