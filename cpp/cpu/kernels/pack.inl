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

// One token's numbers of a group as an operand has them. A group with NaN or infinity gets NaN as its scale, which
// goes through to all sums; one of zeros, or of numbers so small that the scale would be denormal, gets zero.
struct Quantised {
  float scale;
  int correction;
};
inline Quantised quantise(const float* x, std::byte* numbers) {
  constexpr int kLeast = 8 << 23, kInfinity = 255 << 23;  // as bits of float32: 2^-119
  Ints top = all(0);                                      // of the magnitudes' bits, which have their order, NaN last
  for (int i = 0; i < kGroup; i += kLanes) top = max(top, bit_and(bits(load(x + i)), all(0x7fffffff)));
  const int most_bits = largest(top);
  if (most_bits < kLeast || most_bits >= kInfinity) {
    memset(numbers, 0, kGroup);
    return {most_bits >= kInfinity ? __builtin_nanf("") : 0, 0};
  }
  float most;
  memcpy(&most, &most_bits, 4);
  // Adding this rounds to the nearest integer, the even one of two, and leaves it in the lowest bits.
  const Floats shift = all(0x1.8p23f), factor = all(127 / most);
  Ints sum = all(0);
  for (int i = 0; i < kGroup; i += kLanes) {
    const Ints q = sub(bits(add(mul(load(x + i), factor), shift)), bits(shift));
    store_bytes(numbers + i, q);
    sum = add(sum, q);
  }
  return {most / 127, -128 * total(sum)};
}

// As pack_tile, but for k0 at the beginning of a group.
void quantise_tile(const float* x, size_t ld, int m, int k0, int kn, std::byte* tile, int width, int at) {
  for (int k = 0; k < kn; k += kGroup) {
    std::byte* numbers = tile + row_bytes(Format::i8, k0 + k) * size_t(width);
    std::byte* scales = numbers + kGroup * size_t(width);
    std::byte* corrections = scales + sizeof(float) * size_t(width);
    for (int i = 0; i < m; i++) {
      const float* from = x + size_t(i) * ld + k;
      alignas(64) float padded[kGroup];
      if (kn - k < kGroup) {
        memset(padded, 0, sizeof padded);
        memcpy(padded, from, size_t(kn - k) * 4);
        from = padded;
      }
      const auto place = size_t(at + i);
      const Quantised q = quantise(from, numbers + place * kGroup);
      memcpy(scales + place * 4, &q.scale, 4);
      memcpy(corrections + place * 4, &q.correction, 4);
    }
  }
}

#ifdef RWKV_TILES
// As pack_tile of bf16, for products of tiles.
void pack_chains(const float* x, size_t ld, int m, int k0, int kn, std::byte* tile, int width, int at) {
  constexpr int kHalf = kChain / 2, kRow = kChain * 2;  // bytes
  for (int k = 0; k < kn; k += kChain) {
    std::byte* to = tile + row_bytes(Format::bf16, k0 + k) * size_t(width) + size_t(at) * kRow;
    for (int i = 0; i < m; i++, to += kRow) {
      const float* from = x + size_t(i) * ld + k;
      const Ints low = to_bf16(load_first(from, kn - k)), high = to_bf16(load_first(from + kHalf, kn - k - kHalf));
      store_ints(to, swap_neighbours(bit_or(low, shift_left<16>(high))));
    }
  }
}
#endif

void pack_rows(Format format, const float* x, size_t ld, int m, int k0, int kn, int k_end, std::byte* tile, int width,
               int at) {
  if (format == Format::i8) return quantise_tile(x, ld, m, k0, kn, tile, width, at);
#ifdef RWKV_TILES
  if (format == Format::bf16 && width > kTileTokens) return pack_chains(x, ld, m, k0, kn, tile, width, at);
#endif
  (format == Format::f32 ? pack_tile<Format::f32> : pack_tile<Format::bf16>)(x, ld, m, k0, kn, k_end, tile, width, at);
}

}  // namespace
}  // namespace rwkv::cpu
