// A second storage of a matrix, column by column, for products with a token whose inputs are mostly zero: relu^2 leaves
// half of the ffn's hidden units zero with random weights and 86 to 90 % in trained models, and the column of a zero
// need not be read.
//
// kColumnHead bytes that say whether columns may be skipped, then, with R = column_rows(rows):
//   f32, f16, bf16  [K][R]
//   i8  [K/64] of each group: the rows' scales as bf16 [R], then [64][R] bytes of columns, each in [1, 255] as in a
//              panel; of every 64 rows the number of row 16 v + 4 j + i is at 16 j + 4 v + i: four columns
//              turned into lanes of four (lanes_of_columns) have their rows in order, whatever the vector width
// with K = padded_k(cols); what is past the matrix is as in the panels, zero rows and columns of no weight.
//
// Why skipping changes no bit, if all weights are finite: a zero input adds w * 0 = +-0, which leaves every sum but -0
// as it is, and makes of -0 a zero of either sign. So with and without skipping sums agree up to the sign of zeros, and
// what is made of them for LinearJob::sum is the sum + 0, which is +0 for both zeros (finish() in kernels/finish.inl).
// -0 comes from negative products that are flushed to zero. An infinite weight times 0 would be NaN: such a matrix, and
// one with a scale that is not finite, is never skipped in.
#pragma once
#include "cpu/kernels.h"

namespace rwkv::cpu {

constexpr size_t kColumnHead = 64;
constexpr int kColumnRows = 64;  // rows are padded to a multiple of this, with zeros

static constexpr size_t column_rows(int rows) { return size_t(rows + kColumnRows - 1) / kColumnRows * kColumnRows; }
static constexpr bool has_columns(Format f) { return f != Format::i4; }
// Of all columns from the beginning up to column k, a multiple of kGroup or the end.
static constexpr size_t column_bytes(Format f, size_t rows, int k) {
  if (f == Format::i8) return size_t(k / kGroup) * rows * (2 + kGroup);
  return size_t(k) * rows * (f == Format::f32 ? 4 : 2);
}

// Columns [k0, k0 + kGroup) of the panels, or those up to the end, to their places; true if all are finite.
bool turn_columns(Format format, const std::byte* panels, int rows, int k, int k0, std::byte* columns);
// What the head says.
void allow_skipping(std::byte* columns, bool allowed);
bool may_skip(const std::byte* columns);

}  // namespace rwkv::cpu
