#pragma once
#include <algorithm>
#include <vector>

#include "backend/backend.h"
#include "core/arena.h"
#include "model/adapted.h"

namespace rwkv {

// What one forward at a time needs beside weights and states.
struct Workspace {
  std::vector<Arena> scratch;  // one for each stage of the model; stages on one device share its memory
  std::vector<float> carried;  // rows on their way from device to device
  AdapterSpace adapters;
};

// Carves the activations of one step over T rows.
struct Carver {
  Arena& arena;
  const Backend& backend;
  int rows;

  Tensor tensor(int cols) const { return arena.take(DType::f32, rows, cols, backend.row_stride(cols)); }
  // As wide as the widest format needs: stages of one model may differ.
  Operand operand(int cols) const {
    size_t bytes = 0;
    for (Format f : {Format::f32, Format::f16, Format::bf16, Format::i8, Format::i4})
      bytes = std::max(bytes, backend.operand_bytes(backend.operand_format(f), rows, cols));
    return {arena.take(bytes), Format::f32, rows, cols};
  }
};

}  // namespace rwkv
