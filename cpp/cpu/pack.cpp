#include "cpu/pack.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace rwkv::cpu {

namespace {

void quantise(const float* x, int row, int count, std::byte* group) {
  float values[kGroup] = {};
  std::copy_n(x, count, values);
  float most = 0;
  bool finite = true;
  for (float v : values) {
    most = std::max(most, std::fabs(v));
    finite = finite && std::isfinite(v);
  }
  // NaN in a scale goes through to the result, where it is found.
  uint16_t stored = finite ? f32_to_bf16(most / 127) : f32_to_bf16(std::numeric_limits<float>::quiet_NaN());
  float scale;
  to_f32(&stored, DType::bf16, 1, &scale);
  if (scale < std::numeric_limits<float>::min()) stored = 0;  // products with a denormal scale would be flushed
  std::memcpy(group + row * 2, &stored, 2);
  // Adding this rounds to the nearest integer, the even one of two.
  constexpr float kShift = 0x1.8p23f;
  const float divisor = finite && stored != 0 ? scale : std::numeric_limits<float>::infinity();
  uint8_t steps[kGroup];
  for (int i = 0; i < kGroup; i++) {
    const float whole = (finite ? values[i] / divisor : 0) + kShift;
    steps[i] = uint8_t(std::bit_cast<uint32_t>(whole) + 128);
  }
  std::byte* to = group + kPanel * 2 + row * 4;
  for (int i = 0; i < kGroup; i += 4, to += kPanel * 4) std::memcpy(to, steps + i, 4);
}

}  // namespace

void pack_weights(Format format, const float* x, int row, int count, std::byte* panel) {
  switch (format) {
    case Format::f32: {
      float* to = reinterpret_cast<float*>(panel) + row;
      for (int i = 0; i < count; i++) to[i * kPanel] = x[i];
      return;
    }
    case Format::bf16: {
      uint16_t* to = reinterpret_cast<uint16_t*>(panel) + row * 2;
      for (int i = 0; i < count; i++) to[i / 2 * kPanel * 2 + i % 2] = f32_to_bf16(x[i]);
      return;
    }
    case Format::i8:
      return quantise(x, row, count, panel);
  }
}

}  // namespace rwkv::cpu
