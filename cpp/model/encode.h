// Numbers of a model on their way into a new file, a few MiB at a time.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "core/checkpoint.h"

namespace rwkv {

// What the numbers of a tensor become: elements of f32, f16 or bf16, or blocks.
struct Encoding {
  DType dtype = DType::f32;
  BlockType blocks = BlockType::none;

  int64_t unit() const { return blocks == BlockType::none ? 1 : int64_t(block_elements(blocks)); }  // elements
  int64_t unit_bytes() const { return int64_t(blocks == BlockType::none ? size_of(dtype) : block_bytes(blocks)); }
  uint64_t bytes(int64_t count) const { return uint64_t(count / unit()) * uint64_t(unit_bytes()); }
};

// Calls `put` with the encoded elements of the tensor in row-major order, whole units. Rounds to nearest even. Throws
// ModelFormatError, naming the tensor, for a number that is not finite or that the encoding cannot hold.
using PutBytes = std::function<void(std::span<const std::byte>)>;
void encode_tensor(const Checkpoint& file, const TensorInfo& tensor, const Encoding& encoding, const PutBytes& put);

// The same as f32 with the last two dimensions swapped, for low-rank factors: each matrix is held in memory.
void encode_turned(const Checkpoint& file, const TensorInfo& tensor, const PutBytes& put);

}  // namespace rwkv
