// How the CPU's weights lie, in memory and in files that are packed: in panels of 32 rows, one behind the other, so
// that a thread reads its rows as one sequential stream:
//   f32   [panels][K][32]          float; f16 the same of halves, whose denormals count
//   bf16  [panels][K/2][32][2]     two consecutive k of one row share a 32-bit lane
//   i8    [panels][K/64]           of each group: the rows' scales as bf16 [32], then [16][32][4] four consecutive k of
//                                  one row in a lane, each in [-127, 127] and 128 more, as vpdpbusd wants them
//   i4    [panels][K/64]           the same with [8][32][4] bytes: k to k + 3 in the low halves of four bytes, k + 4 to
//                                  k + 7 in the high ones, each in [-8, 7] and 8 more
// with K = padded_k(cols); rows past the matrix are zeros. A scale is as stored the largest magnitude of its group /
// 127; of int4 the number of the largest magnitude / -8, and numbers that would be 8 are 7. bf16 has float32's range,
// and rounding to it costs nothing, since numbers are divided by what is stored.
#pragma once
#include <cstddef>

#include "backend/backend.h"

namespace rwkv::panels {

constexpr int kPanel = 32;  // rows of W per panel: 2 zmm or 4 ymm of lanes
constexpr int kStep = 4;    // k is padded to a multiple of this with zeros
constexpr int kGroup = 64;  // columns of int8 and int4 that share a scale; there k is padded to a multiple of this

// Static, as the functions of cpu/kernels.h, which says why.
static constexpr int padded_k(Format f, int k) {
  const int step = f == Format::i8 || f == Format::i4 ? kGroup : kStep;
  return (k + step - 1) / step * step;
}
static constexpr int panels_of(int rows) { return (rows + kPanel - 1) / kPanel; }
static constexpr size_t panel_bytes(Format f, int k) {  // of k columns, a multiple of what k is padded to
  if (f == Format::i8) return size_t(k / kGroup) * kPanel * (2 + kGroup);
  if (f == Format::i4) return size_t(k / kGroup) * kPanel * (2 + kGroup / 2);
  return size_t(k) * kPanel * (f == Format::f32 ? 4 : 2);
}
static constexpr size_t matrix_bytes(Format f, int rows, int cols) {
  return size_t(panels_of(rows)) * panel_bytes(f, padded_k(f, cols));
}

// Rows [first, first + count) of a panel as a file has them, `cols` numbers each, of int8 and int4 the number times its
// scale, which float32 holds exactly. Who quantises those again gets the same numbers and scales: the largest of a
// group is 127 or -8 times its scale.
static constexpr DType dtype_of_rows(Format f) {
  return f == Format::f16 ? DType::f16 : f == Format::bf16 ? DType::bf16 : DType::f32;
}
void unpack(Format f, const std::byte* panel, int cols, int first, int count, std::byte* rows);

}  // namespace rwkv::panels
