// Rows of activations as operands of products: to their places in a tile, rounded or quantised.
#pragma once
#include <string.h>

#include "cpu/kernels/math.inl"

namespace rwkv::cpu {
namespace {

// Rows of activations to their places in a tile: k outside in sixteens, so that the places stay in L1. A word is one
// float32 column or two bf16 columns.
template <Format F>
void pack_tile(const float* x, size_t ld, int m, int k0, int kn, int k_end, std::byte* tile, int width, int at) {
  constexpr int kPer = F == Format::f32 ? 1 : 2;  // columns of a word
  const auto step = size_t(width);
  auto* out = reinterpret_cast<uint32_t*>(tile) + at;
  alignas(64) uint32_t words[kTileTokens][16];
  for (int k = 0; k < kn; k += 16) {
    const int count = kn - k < 16 ? kn - k : 16, n = (count + kPer - 1) / kPer;
    const uint32_t* rows[kTileTokens];
    for (int i = 0; i < m; i++) {
      const float* from = x + size_t(i) * ld + k;
      rows[i] = words[i];
      if (F == Format::f32) {
        if (count == 16)
          rows[i] = reinterpret_cast<const uint32_t*>(from);
        else
          memcpy(words[i], from, size_t(count) * 4);
      } else {
        alignas(64) uint32_t b[16];
        for (int j = 0; j < 16; j += kLanes) store_ints(b + j, to_bf16(load_first(from + j, count - j)));
        for (int j = 0; j < n; j++) words[i][j] = b[2 * j] | b[2 * j + 1] << 16;
      }
    }
    uint32_t* to = out + size_t((k0 + k) / kPer) * step;
    int i = 0;
    for (; i + 4 <= m && n % 4 == 0; i += 4)
      for (int j = 0; j < n; j += 4) transpose4(rows + i, size_t(j), to + size_t(j) * step + i, step);
    for (; i < m; i++)
      for (int j = 0; j < n; j++) memcpy(to + size_t(j) * step + i, rows[i] + j, 4);
  }
  for (int k = (k0 + kn + kPer - 1) / kPer; k < k_end / kPer; k++)
    for (int i = 0; i < m; i++) out[size_t(k) * step + i] = 0;
}

// What takes the numbers of a group to [-127, 127]. A group with NaN or infinity gets NaN, and so does what it is
// multiplied with; one of zeros, or of numbers so small that their scale would be denormal, gets zero.
struct Scale {
  float scale, inverse;
};
inline Scale scale_of(const float* x, int count) {
  Ints largest = all(0);  // of the magnitudes' bits, which have their order, NaN last
  for (int i = 0; i < kGroup; i += kLanes)
    largest = max(largest, bit_and(bits(load_first(x + i, count - i)), all(0x7fffffff)));
  alignas(64) float lanes[kLanes];
  store(lanes, floats(largest));
  float most = 0;
  for (float v : lanes) most = v <= most ? most : v;  // NaN once met stays or is met again
  for (float v : lanes) most = v != v ? v : most;
  if (!(most - most == 0)) return {__builtin_nanf(""), 0};
  if (most < 0x1p-119f) return {0, 0};
  return {most / 127, 127 / most};
}

// As pack_tile, but for k0 at the beginning of a group.
void quantise_tile(const float* x, size_t ld, int m, int k0, int kn, std::byte* tile, int width, int at) {
  const auto step = size_t(width) * 4;
  for (int k = 0; k < kn; k += kGroup) {
    std::byte* group = tile + row_bytes(Format::i8, k0 + k) * size_t(width) + at * 4;
    const int count = kn - k < kGroup ? kn - k : kGroup;
    for (int i = 0; i < m; i++) {
      const float* from = x + size_t(i) * ld + k;
      const Scale scale = scale_of(from, count);
      // Adding this rounds to the nearest integer, the even one of two, and leaves it in the lowest bits.
      const Floats shift = all(0x1.8p23f), inverse = all(scale.inverse);
      alignas(64) uint8_t bytes[kGroup];
      Ints sums = all(0);
      for (int j = 0; j < kGroup; j += kLanes) {
        const Ints q = sub(bits(add(mul(load_first(from + j, count - j), inverse), shift)), bits(shift));
        store_bytes(bytes + j, q);
        sums = add(sums, q);
      }
      alignas(64) uint32_t lanes[kLanes];
      store_ints(lanes, sums);
      uint32_t correction = 0;
      for (uint32_t lane : lanes) correction -= 128 * lane;
      std::byte* to = group + i * 4;
      for (int j = 0; j < kGroup; j += 4, to += step) memcpy(to, bytes + j, 4);
      memcpy(to, &scale.scale, 4);
      memcpy(to + step, &correction, 4);
    }
  }
}

void pack_rows(Format format, const float* x, size_t ld, int m, int k0, int kn, int k_end, std::byte* tile, int width,
               int at) {
  if (format == Format::i8) return quantise_tile(x, ld, m, k0, kn, tile, width, at);
  (format == Format::f32 ? pack_tile<Format::f32> : pack_tile<Format::bf16>)(x, ld, m, k0, kn, k_end, tile, width, at);
}

}  // namespace
}  // namespace rwkv::cpu
