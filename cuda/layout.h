// Where the numbers of weights and activations lie: one definition for the host, the kernels and the tests.
//
// Weights by rows are cut into blocks of 16 rows whose rows are 64 bytes long (int4: 32), so that the 16 bytes of a
// lane (g = lane / 4, t = lane % 4) at chunk t of row g are what it feeds to two (int8, int4: four) tensor-core
// products. The order of k inside of a product is free as long as both sides agree: lanes take consecutive k on both.
//   f16, bf16  [N/16][K/32] blocks of [16][32]
//   f32        [N/16][K/16] blocks of [16][16]
//   i8         [N/16][K/64] blocks of [16][64] bytes, each number + 128; then the scales as bf16 [N/16][K/64][16]
//   i4         [N/16][K/64] blocks of [8 rows g][4 t][rows g and g + 8][8 bytes], each number + 8; then the scales
//              the same. Of 8 consecutive k in a word, nibble p is k = 2 p and nibble p + 4 is k = 2 p + 1
// Weights by columns, for products that do not load the columns of zeros: a head of kHead bytes, of which the first
// word is not zero if a number is not finite, then [K][N] elements (i4: output c in the low half of a byte for even c),
// then the scales as bf16 [K/64][N].
// N and K are padded to 64 with zeros. Operands are [K/E][tokens rounded up to 8] rows of 64 bytes, E elements each; k
// past the matrix are zeros, tokens past the last are anything.
// Rows of float32 activations are followed by {mean, sum of squared deviations} of each 16 columns, which whoever
// writes a residual writes too.
#pragma once
#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#define RWKV_BOTH __host__ __device__
#else
#define RWKV_BOTH
#endif

namespace rwkv::cuda {

enum class Stored : uint32_t { f32, f16, bf16, i8, i4 };               // as Format of backend.h
enum class Activation : uint8_t { none, tanh, sigmoid, silu, relu2 };  // as Act
enum class Order : uint8_t { rows, columns };                          // of the numbers of a matrix

constexpr int kPad = 64;        // rows and columns of a matrix are padded to this
constexpr int kBlockRows = 16;  // rows of a block of weights
constexpr int kChunk = 64;      // bytes of a row of a block and of an operand
constexpr int kGroup = 64;      // k that share a scale
constexpr int kHead = 64;       // bytes in front of weights by columns
constexpr int kSpan = 16;       // columns that share a mean and deviation

RWKV_BOTH constexpr int round_up(int n, int to) { return (n + to - 1) / to * to; }
RWKV_BOTH constexpr bool quantised(Stored f) { return f == Stored::i8 || f == Stored::i4; }
RWKV_BOTH constexpr int bits_of(Stored f) {
  return f == Stored::f32 ? 32 : f == Stored::i8 ? 8 : f == Stored::i4 ? 4 : 16;
}
// k of a block of weights, which is what one step of a warp multiplies.
RWKV_BOTH constexpr int block_k(Stored f) { return f == Stored::f32 ? 16 : quantised(f) ? 64 : 32; }
RWKV_BOTH constexpr int block_bytes(Stored f) { return f == Stored::i4 ? 512 : 1024; }
RWKV_BOTH constexpr Stored operand_of(Stored weights) { return quantised(weights) ? Stored::f16 : weights; }

// n and k here and below are padded.
RWKV_BOTH constexpr size_t number_bytes(Stored f, int n, int k) {
  return size_t(n) * size_t(k) * size_t(bits_of(f)) / 8;
}
RWKV_BOTH constexpr size_t weight_bytes(Stored f, Order order, int n, int k) {
  return (order == Order::columns ? kHead : 0) + number_bytes(f, n, k) +
         (quantised(f) ? size_t(n) * size_t(k / kGroup) * 2 : 0);
}

// The byte of element (row, col) of a matrix; of int4 the byte that holds it, in its high half if high_nibble says so.
RWKV_BOTH constexpr size_t weight_at(Stored f, Order order, int n, int k, int row, int col) {
  if (order == Order::columns) return kHead + (size_t(col) * size_t(n) + size_t(row)) * size_t(bits_of(f)) / 8;
  const int bk = block_k(f), r = row % kBlockRows, c = col % bk;
  const size_t block = size_t(row / kBlockRows) * size_t(k / bk) + size_t(col / bk);
  const int at = f != Stored::i4 ? r * kChunk + c * bits_of(f) / 8
                                 : ((r % 8 * 4 + c / 16) * 2 + r / 8) * 8 + c / 8 % 2 * 4 + c / 4 % 2 + c % 2 * 2;
  return block * size_t(block_bytes(f)) + size_t(at);
}
RWKV_BOTH constexpr bool high_nibble(Order order, int row, int col) {
  return (order == Order::columns ? row : col / 2) % 2 != 0;
}
// The byte of the scale of a row's group.
RWKV_BOTH constexpr size_t scale_at(Stored f, Order order, int n, int k, int row, int group) {
  const size_t first = (order == Order::columns ? kHead : 0) + number_bytes(f, n, k);
  if (order == Order::columns) return first + (size_t(group) * size_t(n) + size_t(row)) * 2;
  return first +
         ((size_t(row / kBlockRows) * size_t(k / kGroup) + size_t(group)) * kBlockRows + size_t(row % kBlockRows)) * 2;
}

// An operand of `rows8` tokens, a multiple of 8.
RWKV_BOTH constexpr int operand_elements(Stored f) { return f == Stored::f32 ? 16 : 32; }  // of a row of 64 bytes
RWKV_BOTH constexpr size_t operand_at(Stored f, int rows8, int token, int col) {
  const int e = operand_elements(f);
  return (size_t(col / e) * size_t(rows8) + size_t(token)) * kChunk + size_t(col % e) * (kChunk / size_t(e));
}
RWKV_BOTH constexpr size_t operand_bytes(Stored f, int rows8, int k) {
  return size_t(k / operand_elements(f)) * size_t(rows8) * kChunk;
}

// Floats from row to row of (T, cols) activations, and where the statistics of a span begin in a row.
RWKV_BOTH constexpr int row_stride(int cols) { return round_up(round_up(cols, kSpan) / 8 * 9, 32); }
RWKV_BOTH constexpr int statistics_at(int cols, int span) { return round_up(cols, kSpan) + 2 * span; }

}  // namespace rwkv::cuda
