#include "cpu/pack.h"

#include <algorithm>
#include <bit>
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
void quantise(const float* x, int row, int count, std::byte* group) {
  alignas(64) float values[kGroup] = {};
  std::memcpy(values, x, size_t(count) * sizeof(float));
  constexpr int32_t kInfinity = 255 << 23, kMagnitude = 0x7fffffff;
  int32_t top = 0;  // of the magnitudes' bits, which have their order, infinity and NaN last
  for (float v : values) top = std::max(top, std::bit_cast<int32_t>(v) & kMagnitude);
  const bool finite = top < kInfinity;
  // NaN in a scale goes through to the result, where it is found.
  uint16_t stored =
      finite ? f32_to_bf16(std::bit_cast<float>(top) / 127) : f32_to_bf16(std::numeric_limits<float>::quiet_NaN());
  const float scale = bf16_to_f32(stored);
  if (scale < std::numeric_limits<float>::min()) stored = 0;  // products with a denormal scale would be flushed
  std::memcpy(group + row * 2, &stored, 2);
  alignas(64) uint8_t steps[kGroup];
  std::memset(steps, 128, sizeof steps);
  // Adding this rounds to the nearest integer, the even one of two.
  constexpr float kShift = 0x1.8p23f;
  if (finite && stored != 0)
    for (int i = 0; i < kGroup; i++) steps[i] = uint8_t(std::bit_cast<uint32_t>(values[i] / scale + kShift) + 128);
  scatter(steps, kGroup / 4, group + kPanel * 2 + row * 4);
}

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
    case Format::bf16:
      return round_to_bf16(x, row, count, panel);
    case Format::i8:
      return quantise(x, row, count, panel);
  }
}

}  // namespace rwkv::cpu
