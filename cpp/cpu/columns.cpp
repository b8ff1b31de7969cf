#include "cpu/columns.h"

#include <algorithm>
#include <cstring>

namespace rwkv::cpu {

namespace {

constexpr uint32_t kAllowed = 1;  // the head of columns that were never written is zero

// Where the number of a row is in a column of bytes.
constexpr int place_of(int row) { return row / 64 * 64 + row / 4 % 4 * 16 + row / 16 % 4 * 4 + row % 4; }

// True if no number of `words` words of float32, or of pairs of halves, is infinite or NaN.
template <Format F>
bool finite(const std::byte* from, int words) {
  constexpr uint32_t kExponent = F == Format::f32 ? 0x7f800000 : F == Format::f16 ? 0x7c00 : 0x7f80;
  uint32_t found = 0;
  for (int i = 0; i < words; i++) {
    uint32_t word;
    std::memcpy(&word, from + i * 4, 4);
    found |= uint32_t((word & kExponent) == kExponent);
    if (F != Format::f32) found |= uint32_t((word >> 16 & kExponent) == kExponent);
  }
  return found == 0;
}

// The columns [k0, k0 + kn) of one panel, whose first row is `row`.
template <Format F>
bool turn_panel(const std::byte* from, int kn, size_t row, size_t ld, std::byte* to) {
  constexpr size_t kSize = F == Format::f32 ? 4 : 2;
  if constexpr (F == Format::i8) {
    std::memcpy(to + row * 2, from, kPanel * 2);
    for (int j = 0; j < kn; j++) {
      std::byte* column = to + ld * size_t(2 + j);
      for (int r = 0; r < kPanel; r++)
        column[place_of(int(row) + r)] = from[kPanel * 2 + (j / 4 * kPanel + r) * 4 + j % 4];
    }
    return finite<F>(from, kPanel / 2);
  } else {
    constexpr size_t kStride = F == Format::bf16 ? 4 : kSize;  // from row to row in a panel
    for (int j = 0; j < kn; j++) {
      const std::byte* at = from + (F == Format::bf16 ? j / 2 * kPanel * 4 + j % 2 * 2 : j * kPanel * int(kSize));
      for (size_t r = 0; r < kPanel; r++) std::memcpy(to + (size_t(j) * ld + row + r) * kSize, at + r * kStride, kSize);
    }
    return finite<F>(from, kn * kPanel * int(kSize) / 4);
  }
}

}  // namespace

bool turn_columns(Format format, const std::byte* panels, int rows, int k, int k0, std::byte* columns) {
  const size_t ld = column_rows(rows), stride = panel_bytes(format, k);
  const auto turn = format == Format::f32    ? turn_panel<Format::f32>
                    : format == Format::f16  ? turn_panel<Format::f16>
                    : format == Format::bf16 ? turn_panel<Format::bf16>
                                             : turn_panel<Format::i8>;
  std::byte* to = columns + kColumnHead + column_bytes(format, ld, k0);
  bool finite = true;
  for (int panel = 0; panel < panels_of(rows); panel++) {
    const std::byte* from = panels + size_t(panel) * stride + panel_bytes(format, k0);
    finite &= turn(from, std::min(kGroup, k - k0), size_t(panel) * kPanel, ld, to);
  }
  return finite;
}

void allow_skipping(std::byte* columns, bool allowed) {
  const uint32_t head = allowed ? kAllowed : 0;
  std::memcpy(columns, &head, sizeof head);
}

bool may_skip(const std::byte* columns) {
  uint32_t head;
  std::memcpy(&head, columns, sizeof head);
  return head == kAllowed;
}

}  // namespace rwkv::cpu
