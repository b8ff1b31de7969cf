#include "cpu/pack.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace rwkv::cpu {

namespace {

// Adding this rounds to the nearest integer, the even one of two.
constexpr float kShift = 0x1.8p23f;

template <Format F>
void quantise(const float* x, int row, int count, std::byte* group) {
  float values[kGroup] = {};
  std::copy_n(x, count, values);
  float most = 0;  // the number of the largest magnitude
  bool finite = true;
  for (float v : values) {
    if (std::fabs(v) > std::fabs(most)) most = v;
    finite = finite && std::isfinite(v);
  }
  // NaN in a scale goes through to the result, where it is found.
  float scale = std::numeric_limits<float>::quiet_NaN();
  if (finite) scale = F == Format::i8 ? std::fabs(most) / 127 : most / -8;
  uint16_t stored = f32_to_bf16(scale);
  scale = bf16_to_f32(stored);
  if (std::fabs(scale) < std::numeric_limits<float>::min())
    stored = 0;  // products with a denormal scale would be flushed
  std::memcpy(group + row * 2, &stored, 2);
  const float divisor = finite && stored != 0 ? scale : std::numeric_limits<float>::infinity();
  uint8_t steps[kGroup];
  for (int i = 0; i < kGroup; i++) {
    float number = finite ? values[i] / divisor : 0;
    if (F == Format::i4 && number > 7) number = 7;
    steps[i] = uint8_t(std::bit_cast<uint32_t>(number + kShift) + (F == Format::i8 ? 128 : 8));
  }
  std::byte* to = group + kPanel * 2 + row * 4;
  if constexpr (F == Format::i8)
    for (int i = 0; i < kGroup; i += 4, to += kPanel * 4) std::memcpy(to, steps + i, 4);
  else
    for (int i = 0; i < kGroup; i += 8, to += kPanel * 4)
      for (int j = 0; j < 4; j++) to[j] = std::byte(steps[i + j] | steps[i + j + 4] << 4);
}

}  // namespace

void pack_weights(Format format, const float* x, int row, int count, std::byte* panel) {
  switch (format) {
    case Format::f32: {
      float* to = reinterpret_cast<float*>(panel) + row;
      for (int i = 0; i < count; i++) to[i * kPanel] = x[i];
      return;
    }
    case Format::f16: {
      uint16_t* to = reinterpret_cast<uint16_t*>(panel) + row;
      for (int i = 0; i < count; i++) to[i * kPanel] = f32_to_f16(x[i]);
      return;
    }
    case Format::bf16: {
      uint16_t* to = reinterpret_cast<uint16_t*>(panel) + row * 2;
      for (int i = 0; i < count; i++) to[i / 2 * kPanel * 2 + i % 2] = f32_to_bf16(x[i]);
      return;
    }
    case Format::i8:
      return quantise<Format::i8>(x, row, count, panel);
    case Format::i4:
      return quantise<Format::i4>(x, row, count, panel);
  }
}

}  // namespace rwkv::cpu
