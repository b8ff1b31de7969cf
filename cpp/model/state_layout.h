#pragma once
#include <optional>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"

namespace rwkv {

// The parts of one layer's state, whatever the version.
std::vector<StatePart> state_parts(const Config& config);

// The named parts of a state and where those of each of some layers lie in a slot.
struct StateLayout {
  std::vector<StatePart> parts;
  int layers = 0;
  std::vector<size_t> offsets;  // (layers, parts) bytes
  size_t slot_bytes = 0;
  std::optional<size_t> logits;  // byte of those after the last token, where they are kept in a slot

  StateLayout() = default;
  // Matrices are kept as `matrices`, vectors in float32.
  StateLayout(std::vector<StatePart> layer_parts, int layer_count, const Backend& backend, DType matrices)
      : parts(std::move(layer_parts)), layers(layer_count) {
    for (StatePart& part : parts)
      if (part.shape.size() == 3) part.dtype = matrices;
    Arena arena;
    for (int i = 0; i < layers; i++)
      for (const StatePart& part : parts) {
        offsets.push_back(arena.used());
        arena.take(backend.state_bytes(part));
      }
    slot_bytes = arena.used();
  }

  void keep_logits(int count) {
    logits = slot_bytes;
    slot_bytes += (size_t(count) * sizeof(float) + Arena::kAlign - 1) / Arena::kAlign * Arena::kAlign;
  }
  size_t offset(int layer, int part) const { return offsets[size_t(layer) * parts.size() + size_t(part)]; }

  StatePlace place(int layer, int part) const { return {offset(layer, part), parts[size_t(part)].dtype}; }

  // Bytes of the portable form of these layers.
  size_t portable_bytes() const {
    size_t floats = 0;
    for (const StatePart& part : parts) floats += size_t(part.count());
    return floats * size_t(layers) * sizeof(float);
  }
};

}  // namespace rwkv
