#include "backend/backend.h"

#include <algorithm>

#include "core/error.h"

namespace rwkv {

std::unique_ptr<WeightStream> Backend::stream(int, size_t) {
  throw DeviceError(join("expected a device that layers can be streamed to, found ", description()));
}

void Backend::pick(std::span<const PickJob>) {
  throw DeviceError(join("expected a device that applies adapters to some rows of a batch, found ", description()));
}

void Backend::keep_rows(const Tensor& rows, const Batch& batch, int first, size_t offset) {
  for (int64_t i = 0; i < rows.rows; i++) {
    const int32_t row = batch.rows[size_t(first + i)];
    const auto end = std::ranges::upper_bound(batch.start, row);
    if (row + 1 != *end) continue;
    std::byte* const slot = batch.dst[size_t(end - batch.start.begin()) - 1];
    copy_rows({rows.row(i), DType::f32, 1, rows.cols, rows.cols}, {slot + offset, DType::f32, 1, rows.cols, rows.cols});
  }
}

}  // namespace rwkv
