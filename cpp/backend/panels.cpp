#include "backend/panels.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

namespace rwkv::panels {

namespace {

// Some columns of all rows at a time, so that the lines of the panel stay in the cache from row to row.
constexpr int kBlock = 64;

template <size_t Bytes>
void turn(const std::byte* panel, int cols, int first, int count, std::byte* rows) {
  for (int k0 = 0; k0 < cols; k0 += kBlock)
    for (int r = 0; r < count; r++)
      for (int k = k0; k < std::min(k0 + kBlock, cols); k++)
        std::memcpy(rows + (size_t(r) * size_t(cols) + size_t(k)) * Bytes,
                    panel + (size_t(k) * kPanel + size_t(first + r)) * Bytes, Bytes);
}

// Pairs of consecutive k share a lane.
void turn_pairs(const std::byte* panel, int cols, int first, int count, std::byte* rows) {
  for (int k0 = 0; k0 < cols; k0 += kBlock)
    for (int r = 0; r < count; r++)
      for (int k = k0; k < std::min(k0 + kBlock, cols); k++)
        std::memcpy(rows + (size_t(r) * size_t(cols) + size_t(k)) * 2,
                    panel + (size_t(k / 2) * kPanel + size_t(first + r)) * 4 + size_t(k % 2) * 2, 2);
}

template <Format F>
void scale_groups(const std::byte* panel, int cols, int first, int count, std::byte* rows) {
  constexpr int kWords = F == Format::i8 ? kGroup / 4 : kGroup / 8;  // of a row
  for (int k0 = 0; k0 < cols; k0 += kGroup, panel += panel_bytes(F, kGroup))
    for (int r = 0; r < count; r++) {
      uint16_t stored;
      std::memcpy(&stored, panel + (first + r) * 2, 2);
      const float scale = std::bit_cast<float>(uint32_t(stored) << 16);
      float values[kGroup];
      for (int i = 0; i < kWords * 4; i++) {
        const auto b = int(panel[kPanel * 2 + (i / 4 * kPanel + first + r) * 4 + i % 4]);
        if constexpr (F == Format::i8) {
          values[i] = float(b - 128) * scale;
        } else {
          float* const to = values + i / 4 * 8 + i % 4;
          to[0] = float((b & 15) - 8) * scale;
          to[4] = float((b >> 4) - 8) * scale;
        }
      }
      std::memcpy(rows + (size_t(r) * size_t(cols) + size_t(k0)) * sizeof(float), values,
                  size_t(std::min(kGroup, cols - k0)) * sizeof(float));
    }
}

}  // namespace

void unpack(Format f, const std::byte* panel, int cols, int first, int count, std::byte* rows) {
  switch (f) {
    case Format::f32:
      return turn<4>(panel, cols, first, count, rows);
    case Format::f16:
      return turn<2>(panel, cols, first, count, rows);
    case Format::bf16:
      return turn_pairs(panel, cols, first, count, rows);
    case Format::i8:
      return scale_groups<Format::i8>(panel, cols, first, count, rows);
    case Format::i4:
      return scale_groups<Format::i4>(panel, cols, first, count, rows);
  }
}

}  // namespace rwkv::panels
