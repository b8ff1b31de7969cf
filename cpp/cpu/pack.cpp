#include "cpu/pack.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace rwkv::cpu {

namespace {

// Puts words to every kPanel-th place from `to` on.
void scatter(const void* words, int count, std::byte* to) {
  const auto* from = static_cast<const std::byte*>(words);
  for (int i = 0; i < count; i++) std::memcpy(to + i * kPanel * 4, from + i * 4, 4);
}

// Plain loops over whole groups, without branches, so that compilers make vectors of them.
template <Format F>
void quantise(const float* x, int row, int count, std::byte* group) {
  alignas(64) float values[kGroup] = {};
  std::memcpy(values, x, size_t(count) * sizeof(float));
  constexpr int32_t kInfinity = 255 << 23, kMagnitude = 0x7fffffff;
  int32_t top = 0;  // of the magnitudes' bits, which have their order, infinity and NaN last
  for (float v : values) top = std::max(top, std::bit_cast<int32_t>(v) & kMagnitude);
  const bool finite = top < kInfinity;
  // NaN in a scale goes through to the result, where it is found.
  float scale = std::numeric_limits<float>::quiet_NaN();
  if (finite && F == Format::i8) scale = std::bit_cast<float>(top) / 127;
  if (finite && F == Format::i4) {  // -8 is the number of the largest magnitude, the first of several
    const auto* most =
        std::find_if(values, values + kGroup, [=](float v) { return (std::bit_cast<int32_t>(v) & kMagnitude) == top; });
    scale = *most / -8;
  }
  uint16_t stored = f32_to_bf16(scale);
  scale = bf16_to_f32(stored);
  if (std::fabs(scale) < std::numeric_limits<float>::min()) stored = 0;  // products with a denormal would be flushed
  std::memcpy(group + row * 2, &stored, 2);
  constexpr int kZero = F == Format::i8 ? 128 : 8;
  constexpr float kLargest = F == Format::i8 ? 127.0f : 7.0f;
  alignas(64) uint8_t steps[kGroup];
  std::memset(steps, kZero, sizeof steps);
  // Adding this rounds to the nearest integer, the even one of two.
  constexpr float kShift = 0x1.8p23f;
  if (finite && stored != 0)
    for (int i = 0; i < kGroup; i++)
      steps[i] = uint8_t(std::bit_cast<uint32_t>(std::min(values[i] / scale, kLargest) + kShift) + kZero);
  std::byte* to = group + kPanel * 2 + row * 4;
  if constexpr (F == Format::i8) return scatter(steps, kGroup / 4, to);
  alignas(64) uint8_t nibbles[kGroup / 2];
  for (int i = 0; i < kGroup / 2; i++)
    nibbles[i] = uint8_t(steps[i / 4 * 8 + i % 4] | steps[i / 4 * 8 + i % 4 + 4] << 4);
  scatter(nibbles, kGroup / 8, to);
}

// Halves of 16 bits, a pair of consecutive ones in each word.
void round_to_bf16(const float* x, int row, int count, std::byte* panel) {
  alignas(64) uint16_t halves[kGroup];
  for (int i = 0; i < count; i++) halves[i] = f32_to_bf16(x[i]);
  scatter(halves, count / 2, panel + row * 4);
  if (count % 2) std::memcpy(panel + count / 2 * kPanel * 4 + row * 4, &halves[count - 1], 2);
}

}  // namespace

void pack_weights(Format format, const float* x, int row, int count, std::byte* panel) {
  switch (format) {
    case Format::f32:
      return scatter(x, count, panel + row * 4);
    case Format::f16: {
      uint16_t* to = reinterpret_cast<uint16_t*>(panel) + row;
      for (int i = 0; i < count; i++) to[i * kPanel] = f32_to_f16(x[i]);
      return;
    }
    case Format::bf16:
      return round_to_bf16(x, row, count, panel);
    case Format::i8:
      return quantise<Format::i8>(x, row, count, panel);
    case Format::i4:
      return quantise<Format::i4>(x, row, count, panel);
  }
}

}  // namespace rwkv::cpu
