// Layers that do not fit on the device: packed, they wait in pinned memory of the host and come in turns to two places
// on the device, the next one while this one is computed.
#pragma once
#include <array>
#include <vector>

#include "backend/backend.h"
#include "cuda/context.h"
#include "cuda/tape.h"

namespace rwkv::cuda {

class LayerStream final : public WeightStream {
 public:
  LayerStream(std::shared_ptr<Context> context, Tape& tape, int layers, size_t bytes);

  Memory place(int layer) override;
  void loaded(int layer) override;
  void need(int layer) override;

 private:
  void fetch(int layer);

  const std::shared_ptr<Context> context_;
  Tape& tape_;
  std::vector<Memory> layers_;
  std::array<Memory, 2> places_;
  std::array<int, 2> holds_ = {-1, -1};  // which layer is there, or on its way
};

}  // namespace rwkv::cuda
