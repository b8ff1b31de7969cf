#include "core/arena.h"

#include "core/error.h"

namespace rwkv {

std::byte* Arena::take(size_t bytes) {
  const size_t at = used_;
  used_ += (bytes + kAlign - 1) / kAlign * kAlign;
  if (counting()) return nullptr;
  if (used_ > memory_.size) throw std::logic_error(join("arena of ", memory_.size, " bytes asked for ", used_));
  return memory_.data.get() + at;
}

Tensor Arena::take(DType dtype, int64_t rows, int64_t cols, int64_t stride) {
  if (stride == 0) stride = cols;
  return {take(size_t(rows) * size_t(stride) * size_of(dtype)), dtype, rows, cols, stride};
}

}  // namespace rwkv
