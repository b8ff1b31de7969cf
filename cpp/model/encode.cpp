#include "model/encode.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/error.h"
#include "core/text.h"

namespace rwkv {
namespace {

constexpr int64_t kPiece = 1 << 20;  // elements; a multiple of every unit

void encode_elements(DType dtype, std::span<const float> values, std::byte* out) {
  if (dtype == DType::f32) {
    std::ranges::copy(std::as_bytes(values), out);
    return;
  }
  RWKV_CHECK(Error, dtype == DType::f16 || dtype == DType::bf16, "expected f32, f16 or bf16 to write, found ",
             name_of(dtype));
  const bool half = dtype == DType::f16;
  const uint16_t infinity = half ? 0x7c00 : 0x7f80;
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t bits = half ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
    RWKV_CHECK(Error, (bits & 0x7fff) < infinity, "expected a number that ", half ? "float16" : "bfloat16",
               " can hold, found ", values[i]);
    std::memcpy(out + 2 * i, &bits, sizeof bits);
  }
}

// Elements [first, first + count) as float32, all finite.
void read_finite(const Checkpoint& file, const TensorInfo& t, int64_t first, int64_t count, std::vector<std::byte>& raw,
                 std::vector<float>& values) {
  raw.resize(size_t(count) * size_of(t.dtype));
  values.resize(size_t(count));
  file.read(t, first, count, raw.data());
  to_f32(raw.data(), t.dtype, values.size(), values.data());
  const auto odd = std::ranges::find_if(values, [](float v) { return !std::isfinite(v); });
  RWKV_CHECK(ModelFormatError, odd == values.end(), file.path(), ": ", shown(t.name),
             ": expected finite numbers, found ", *odd);
}

}  // namespace

void encode_tensor(const Checkpoint& file, const TensorInfo& t, const Encoding& encoding, const PutBytes& put) {
  std::vector<std::byte> raw, made;
  std::vector<float> values;
  for (int64_t first = 0, all = t.count(); first < all;) {
    const int64_t count = std::min(kPiece, all - first);
    read_finite(file, t, first, count, raw, values);
    made.resize(encoding.bytes(count));
    try {
      if (encoding.blocks == BlockType::none)
        encode_elements(encoding.dtype, values, made.data());
      else
        encode_blocks(encoding.blocks, values.data(), values.size() / size_t(encoding.unit()), made.data());
    } catch (const Error& error) {
      throw ModelFormatError(join(file.path(), ": ", shown(t.name), ": ", error.what()));
    }
    put(made);
    first += count;
  }
}

void encode_turned(const Checkpoint& file, const TensorInfo& t, const PutBytes& put) {
  const size_t last = t.shape.size() - 1, rows = size_t(t.shape[last - 1]), cols = size_t(t.shape[last]);
  std::vector<std::byte> raw;
  std::vector<float> values, turned(rows * cols);
  for (int64_t first = 0, all = t.count(); first < all; first += int64_t(turned.size())) {
    read_finite(file, t, first, int64_t(turned.size()), raw, values);
    for (size_t row = 0; row < rows; ++row)
      for (size_t col = 0; col < cols; ++col) turned[col * rows + row] = values[row * cols + col];
    put(std::as_bytes(std::span(turned)));
  }
}

}  // namespace rwkv
