// What follows the sums of a product: those of the warps are joined in order, then activation, gate, and the operand of
// the next product, or the residual and its statistics.
#pragma once
#include "cuda/kernels/numbers.cuh"

namespace rwkv::cuda {

// Where fragment element (row, token) of 16 M rows and 8 tokens lies in FinishShared: by rows, fragment m holds rows
// 16 m to 16 m + 15; by columns a lane's 8 rows lie together, two in each fragment.
template <Order O>
RWKV_DEVICE int fragment_place(int row, int token) {
  const int m = O == Order::rows ? row / 16 : row % 8 / 2, high = O == Order::rows ? row / 8 % 2 : row % 2,
            g = O == Order::rows ? row % 8 : row / 8;
  return m * 128 + (high * 2 + token % 2) * 32 + g * 4 + token / 2;
}

// One number of a finished product; all lanes come here, 16 neighbours with neighbouring columns of one token.
RWKV_DEVICE void finish_number(const LinearJobParams& q, int token, int col, float v) {
  const bool wanted = token < q.tokens, real = wanted && col < q.rows;
  const float gate = real && q.gate ? q.gate[size_t(token) * size_t(q.ld_gate) + size_t(col)] : 1.0f;
  if (q.sum) {
    float* row = q.sum + size_t(token) * size_t(q.ld_sum);
    if (real) {
      v = q.gate ? fmaf(gate, v, row[col]) : row[col] + v;
      row[col] = v;
    }
    write_statistics(wanted ? row : nullptr, q.rows, col / kSpan, v);
    return;
  }
  v = activate(q.act, v);
  if (q.out.data) {
    if (wanted) store_operand(q.out, token, col, real ? v * gate : 0.0f);
  } else if (real) {
    q.y[size_t(token) * size_t(q.ld_y) + size_t(col)] = v;
  }
}

// Every warp brings its share of the sums of 16 M rows from `row` and 8 tokens from `token` on.
template <Order O, int M>
RWKV_DEVICE void finish(const LinearJobParams& q, FinishShared<M>& s, const float (&d)[M][4], int row, int token) {
  sync();  // whoever still reads the tokens before
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int i = 0; i < 4; i++) s.part[warp()][m * 128 + i * 32 + lane()] = d[m][i];
  sync();
  for (int i = int(threadIdx.x); i < M * 128; i += int(blockDim.x)) {  // whole warps
    const int r = i / 128 * 16 + i % 16, t = i / 16 % 8, at = fragment_place<O>(r, t);
    float v = s.part[0][at];
#pragma unroll
    for (int w = 1; w < kWarps; w++) v += s.part[w][at];
    finish_number(q, token + t, row + r, v);
  }
}

}  // namespace rwkv::cuda
