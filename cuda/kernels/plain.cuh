// Around products that another library makes, whose matrices are plain rows: how they come from ours, and what follows
// their sums.
#pragma once
#include "cuda/kernels/finish.cuh"

namespace rwkv::cuda {

// A thread moves 16 bytes of a line of 64 to their place in a row.
RWKV_KERNEL void RWKV_BOUNDS(256) plain(PARAMS(PlainParams, p)) {
  start();
  const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, units = int64_t(p.chunks) * 4;
  const int64_t row = at / units, unit = at % units;
  if (row >= p.rows) return;
  const int64_t line = (row / p.lines * p.chunks + unit / 4) * p.lines + row % p.lines;
  static_cast<uint4*>(p.to)[at] = static_cast<const uint4*>(p.from)[line * 4 + unit % 4];
}

// (tokens, outputs / 1024) blocks.
RWKV_KERNEL void RWKV_BOUNDS(256) finish_rows(PARAMS(FinishRowsParams, p)) {
  start();
  const LinearJobParams& q = p.job;
  const int token = int(blockIdx.x), col = int(blockIdx.y * blockDim.x + threadIdx.x) * 4;
  float v[4] = {};
  if (col < q.n) load_four(p.from + size_t(token) * size_t(q.n) + size_t(col), 4, v);
  finish_four(q, token, col, v);
}

}  // namespace rwkv::cuda
