// A saved state without its model: what the file says, and the numbers in it.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

#include "engine/snapshot.h"
#include "engine/state.h"

namespace rwkv {

class StateFile {
 public:
  static StateFile open(const std::string& path);  // throws Error, StateError
  explicit StateFile(std::vector<std::byte> bytes);
  StateFile(StateFile&&) = default;
  StateFile(const StateFile&) = delete;

  const SnapshotModel& model() const { return model_; }
  const SnapshotInfo& info() const { return view_.info; }
  DType type() const { return view_.type; }
  std::vector<TensorInfo> tensors() const;  // as they are stored; those of a sampler come last
  std::vector<StateArray> parts() const;    // in float32
  std::vector<float> last_logits() const;   // empty if there are none
  // The same state with its parts as this type; the type that it has gives the same bytes.
  std::vector<std::byte> to_bytes(DType type) const;

 private:
  std::vector<std::byte> bytes_;
  SnapshotModel model_;
  SnapshotView view_;  // into bytes_
};

}  // namespace rwkv
