#pragma once
#include <cstddef>
#include <memory>

#include "core/tensor.h"

namespace rwkv {

// Bytes of some device with the way to give them back.
struct Memory {
  std::shared_ptr<std::byte> data;
  size_t size = 0;
};

// One allocation carved from the front. Weights (process), states (session) and scratch (step) each live in one.
// An arena without memory only counts, so the same code that carves also measures.
class Arena {
 public:
  static constexpr size_t kAlign = 64;

  Arena() = default;
  explicit Arena(Memory memory) : memory_(std::move(memory)) {}

  std::byte* take(size_t bytes);                                             // null while counting
  Tensor take(DType dtype, int64_t rows, int64_t cols, int64_t stride = 0);  // stride 0: cols
  void reset() { used_ = 0; }
  size_t used() const { return used_; }
  bool counting() const { return memory_.data == nullptr; }

 private:
  Memory memory_;
  size_t used_ = 0;
};

}  // namespace rwkv
