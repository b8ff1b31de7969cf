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
  const bool zero = !finite || scale < std::numeric_limits<float>::min();
  if (finite && zero) stored = 0;  // products with a denormal scale would be flushed
  std::memcpy(group + row * 2, &stored, 2);
  std::byte* to = group + kPanel * 2 + row * 4;
  for (int i = 0; i < kGroup; i += 4, to += kPanel * 4)
    for (int j = 0; j < 4; j++) to[j] = std::byte(128 + (zero ? 0 : int(std::nearbyint(values[i + j] / scale))));
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
