// How much a model file may hold, and arithmetic on its numbers that cannot wrap.
#pragma once
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

namespace rwkv {

// Far above any model, far below what would hurt: a hostile file cannot make its index much larger than itself.
inline constexpr size_t kMaxTensors = 100'000;
inline constexpr size_t kMaxRank = 8;
inline constexpr size_t kMaxName = 1024;  // bytes

inline std::optional<uint64_t> checked_product(uint64_t a, uint64_t b) {
  if (a != 0 && b > std::numeric_limits<uint64_t>::max() / a) return std::nullopt;
  return a * b;
}

// Elements of a shape whose dimensions are not negative. Nothing when dimensions that are not zero multiply to more
// than int64 holds: then neither the count nor any stride overflows, whatever their order.
inline std::optional<uint64_t> checked_count(const std::vector<int64_t>& shape) {
  uint64_t product = 1;
  bool empty = false;
  for (const int64_t n : shape) {
    empty |= n == 0;
    const auto next = checked_product(product, n == 0 ? 1 : uint64_t(n));
    if (!next || *next > uint64_t(std::numeric_limits<int64_t>::max())) return std::nullopt;
    product = *next;
  }
  return empty ? 0 : product;
}

// Strides of a dense row-major tensor. The shape has passed checked_count.
inline std::vector<int64_t> dense_strides(const std::vector<int64_t>& shape) {
  std::vector<int64_t> stride(shape.size());
  int64_t step = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    stride[i] = step;
    step *= shape[i] == 0 ? 1 : shape[i];
  }
  return stride;
}

}  // namespace rwkv
