// What follows the sums of a product: those of the warps are joined in order, then activation, gate, and the operand of
// the next product, or the residual and its statistics.
#pragma once
#include "cuda/kernels/numbers.cuh"

namespace rwkv::cuda {

// A lane's i-th number of fragment m lies in FinishShared so that neither those who write it nor those who read
// meet in a bank.
template <int M>
RWKV_DEVICE int finish_place(int m, int i, int lane) {
  return m * 128 + i * 32 + (lane + i + m * (M == 2 ? 16 : 8)) % 32;
}
// Where element (row, token) of 16 M rows and 8 tokens lies. Lane g has rows g and g + 8 of each 16, or two or four
// that lie together, two of them in each fragment.
template <int Together, int M>
RWKV_DEVICE int fragment_place(int row, int token) {
  const int g = row % (8 * Together) / Together;
  const int m = Together == 4 ? row / 32 * 2 + row % 4 / 2 : row / 16, high = Together == 1 ? row / 8 % 2 : row % 2;
  return finish_place<M>(m, high * 2 + token % 2, g * 4 + token / 2);
}

// What becomes of a number of the product; `old` is what it is added to, if it is.
RWKV_DEVICE float finished(const LinearJobParams& q, float v, float gate, float old) {
  if (q.sum) return q.gate ? fmaf(gate, v, old) : old + v;
  v = activate(q.act, v);
  return q.out.data ? v * gate : v;
}

// One number of a finished product; all lanes come here, 16 neighbours with neighbouring columns of one token.
RWKV_DEVICE void finish_number(const LinearJobParams& q, int token, int col, float v) {
  const bool wanted = token < q.tokens, real = wanted && col < q.rows;
  const float gate = real && q.gate ? q.gate[size_t(token) * size_t(q.ld_gate) + size_t(col)] : 1.0f;
  float* row = q.sum ? q.sum + size_t(token) * size_t(q.ld_sum) : nullptr;
  if (q.bias && real) v += q.bias[col];
  v = finished(q, v, gate, row && real ? row[col] : 0.0f);
  if (row) {
    if (real) row[col] = v;
    write_statistics(wanted ? row : nullptr, q.rows, col / kSpan, v);
  } else if (q.out.data) {
    if (wanted) store_operand(q.out, token, col, real ? v : 0.0f);
  } else if (real) {
    q.y[size_t(token) * size_t(q.ld_y) + size_t(col)] = v;
  }
}

// Four neighbouring numbers of a row, of which the first `count` are there.
RWKV_DEVICE void load_four(const float* from, int count, float (&v)[4]) {
  if (count == 4) {
    const float4 all = *reinterpret_cast<const float4*>(from);
    v[0] = all.x, v[1] = all.y, v[2] = all.z, v[3] = all.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; i++) v[i] = i < count ? from[i] : 0.0f;
}
RWKV_DEVICE void store_four(float* to, int count, const float (&v)[4]) {
  if (count == 4) {
    *reinterpret_cast<float4*>(to) = {v[0], v[1], v[2], v[3]};
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (i < count) to[i] = v[i];
}

// Four numbers of a finished product, from a column that is a multiple of four on; all lanes come here, 4 neighbours
// with neighbouring columns of one token. Rows of floats begin at multiples of 16 bytes.
RWKV_DEVICE void finish_four(const LinearJobParams& q, int token, int col, float (&v)[4]) {
  const bool wanted = token < q.tokens && col < q.n;
  const int rest = wanted ? q.rows - col : 0, count = rest < 0 ? 0 : rest < 4 ? rest : 4;
  if (q.bias) {
    float bias[4];
    load_four(q.bias + col, count, bias);
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] += bias[i];
  }
  float gate[4] = {1.0f, 1.0f, 1.0f, 1.0f}, old[4] = {};
  float* row = q.sum ? q.sum + size_t(token) * size_t(q.ld_sum) : nullptr;
  if (q.gate) load_four(q.gate + size_t(token) * size_t(q.ld_gate) + size_t(col), count, gate);
  if (row) load_four(row + col, count, old);
#pragma unroll
  for (int i = 0; i < 4; i++) v[i] = i < count ? finished(q, v[i], gate[i], old[i]) : 0.0f;
  if (row) {
    store_four(row + col, count, v);
    write_statistics(row, q.rows, col, count, v);
  } else if (q.out.data) {
    if (wanted) store_operands(q.out, token, col, v);
  } else {
    store_four(q.y + size_t(token) * size_t(q.ld_y) + size_t(col), count, v);
  }
}

// Every warp brings its share of the sums of 16 M rows from `row` and 8 tokens from `token` on.
template <int Together, int M>
RWKV_DEVICE void finish(const LinearJobParams& q, FinishShared<M>& s, const float (&d)[M][4], int row, int token) {
  sync();  // whoever still reads the tokens before
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int i = 0; i < 4; i++) s.part[warp()][finish_place<M>(m, i, lane())] = d[m][i];
  sync();
  for (int i = int(threadIdx.x); i < M * 128; i += int(blockDim.x)) {  // whole warps
    const int r = i / 128 * 16 + i % 16, t = i / 16 % 8, at = fragment_place<Together, M>(r, t);
    float v = s.part[0][at];
#pragma unroll
    for (int w = 1; w < kWarps; w++) v += s.part[w][at];
    finish_number(q, token + t, row + r, v);
  }
}

}  // namespace rwkv::cuda
