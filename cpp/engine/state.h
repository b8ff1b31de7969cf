#pragma once
#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "engine/logits.h"

namespace rwkv {

class AdapterWeights;
class Engine;
class Generation;
struct SamplerState;
class StateSlot;  // one slot of the pool; forks share it until one of them steps

// What a handle stands for. A slot that a handle holds is never written again: steps go to a slot of their own.
struct StateContents {
  std::shared_ptr<const StateSlot> slot;
  int64_t tokens_seen = 0;
  int32_t last_token = -1;                                // -1 before the first, and after embeddings
  std::shared_ptr<const Logits> last_logits = nullptr;    // (V) after the last token; null when the last call made none
  std::shared_ptr<const SamplerState> sampler = nullptr;  // of the text that the last token belongs to, if one is known
  std::shared_ptr<const AdapterWeights> adapter = nullptr;  // that its tokens go through
};

// The whole context of one sequence: an opaque handle. Not copyable; fork() is the only way to a second one.
class State {
 public:
  State(std::shared_ptr<Engine> engine, StateContents contents)
      : engine_(std::move(engine)), contents_(std::move(contents)) {}
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  // A second handle on the same contents. Copies nothing: whichever steps first moves on to a slot of its own.
  std::shared_ptr<State> fork() const;

  const std::shared_ptr<Engine>& engine() const { return engine_; }
  // Throws ConcurrentUseError while a call steps this handle, DeviceError after os.fork().
  StateContents contents() const;
  int64_t tokens_seen() const { return contents().tokens_seen; }
  int32_t last_token() const { return contents().last_token; }
  std::shared_ptr<const Logits> last_logits() const { return contents().last_logits; }
  std::shared_ptr<const AdapterWeights> adapter() const { return contents().adapter; }

  // Has handles go from what a call found to what forks of them have become, all or none. Throws ConcurrentUseError if
  // another call has moved one meanwhile, or uses it.
  struct Advance {
    State& state;
    StateContents from, to;
  };
  static void advance(std::span<const Advance> states);

  // Holds the handle for one call; a second one at the same time throws ConcurrentUseError.
  class Use {
   public:
    explicit Use(const State& state);
    Use(Use&& other) noexcept : state_(std::exchange(other.state_, nullptr)) {}
    ~Use();

   private:
    const State* state_;
  };

 private:
  friend class Engine;
  friend class Generation;
  void check_at(const StateContents& from) const;  // of a handle in use: throws if another call has moved it from there
  std::shared_ptr<Engine> engine_;
  StateContents contents_;
  mutable std::atomic<bool> busy_{false};
};

// A named part of a state in its portable form, over all layers: (L, C), or (L, H, N, N) [value, key].
struct StateArray {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;
};

}  // namespace rwkv
