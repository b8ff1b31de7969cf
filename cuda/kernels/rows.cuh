// What happens along rows: embedding, norm, the lerps of the token shift, the small matrices of RWKV-7a, the search for
// numbers that are not finite. Columns up to the padding of an operand are written as zeros.
#pragma once
#include "cuda/kernels/numbers.cuh"

namespace rwkv::cuda {

// x[t] = norm(table[token[t]]); a block for each row.
RWKV_KERNEL void RWKV_BOUNDS(256) embed(PARAMS(EmbedParams, p)) {
  SHARED(SumShared, s);
  start();
  const int t = int(blockIdx.x);
  const size_t from = size_t(p.token[t]) * size_t(p.ld);
  float sum = 0;
  for (int i = int(threadIdx.x); i < p.cols; i += int(blockDim.x))
    sum += load_number(p.table, p.dtype, from + size_t(i));
  Moments m = {float(p.cols), sum_block(sum, s.part) / float(p.cols), 0.0f};
  float squares = 0;
  for (int i = int(threadIdx.x); i < p.cols; i += int(blockDim.x)) {
    const float d = load_number(p.table, p.dtype, from + size_t(i)) - m.mean;
    squares = fmaf(d, d, squares);
  }
  m.squares = sum_block(squares, s.part);
  const float scale = scale_of(m, p.norm.eps);
  for (int i = int(threadIdx.x); i < round_up(p.cols, kPad); i += int(blockDim.x)) {  // whole warps
    const bool real = i < p.cols;
    const float v =
        real ? normed(load_number(p.table, p.dtype, from + size_t(i)), m, scale, p.norm.weight[i], p.norm.bias[i])
             : 0.0f;
    if (p.out.data) store_operand(p.out, t, i, v);
    if (!p.x) continue;
    float* row = p.x + size_t(t) * size_t(p.ld_x);
    if (real) row[i] = v;
    write_statistics(row, p.cols, i / kSpan, v);
  }
}

// y[i] = norm(x[rows[i]]); blockIdx.x is i.
RWKV_KERNEL void RWKV_BOUNDS(256) norm(PARAMS(NormParams, p)) {
  start();
  const int t = int(blockIdx.x), from = int(blockIdx.y) * kRowColumns;
  const float* x = p.x + size_t(p.rows[t]) * size_t(p.ld);
  const Moments m = row_moments(x, p.cols);
  const float scale = scale_of(m, p.norm.eps);
  const int end = from + kRowColumns < round_up(p.cols, kPad) ? from + kRowColumns : round_up(p.cols, kPad);
  for (int i = from + int(threadIdx.x); i < end; i += int(blockDim.x)) {
    const float v = i < p.cols ? normed(x[i], m, scale, p.norm.weight[i], p.norm.bias[i]) : 0.0f;
    if (p.y && i < p.cols) p.y[size_t(t) * size_t(p.ld_y) + size_t(i)] = v;
    if (p.out.data) store_operand(p.out, t, i, v);
  }
}

// out = xn + (previous xn - xn) (mu + dynamic) for every job; blockIdx.x is the row. The thread that reads a column of
// a sequence's shift from src also writes it to dst, afterwards: both may be the same slot. Left to itself, the
// compiler wants more blocks on 9.0, and spills.
RWKV_KERNEL void RWKV_BOUNDS(256, 4) mix(PARAMS(MixParams, p)) {
  start();
  const int t = int(blockIdx.x), from = int(blockIdx.y) * kRowColumns, s = p.step.sequence[t];
  const bool first = t == p.step.start[s];
  const float* x = p.x + size_t(t) * size_t(p.ld);
  const float* before = first ? x : x - p.ld;  // the row before is of the same sequence
  const Moments m = row_moments(x, p.cols);
  const Moments m_before = first ? m : row_moments(before, p.cols);
  const float scale = scale_of(m, p.norm.eps), scale_before = scale_of(m_before, p.norm.eps);
  const auto* src = reinterpret_cast<const float*>(p.step.src[s] + p.shift);
  const int end = from + kRowColumns < round_up(p.cols, kPad) ? from + kRowColumns : round_up(p.cols, kPad);
  for (int i = from + int(threadIdx.x); i < end; i += int(blockDim.x)) {
    const bool real = i < p.cols;
    float xn = 0, step = 0;
    if (real) {
      const float weight = p.norm.weight[i], bias = p.norm.bias[i];
      xn = normed(x[i], m, scale, weight, bias);
      step = (first ? src[i] : normed(before[i], m_before, scale_before, weight, bias)) - xn;
    }
    for (int j = 0; j < p.count; j++) {
      const MixJobParams& job = p.job[j];
      float mu = real ? job.mu[i] : 0.0f;
      if (real && job.dynamic) mu += job.dynamic[size_t(t) * size_t(job.ld_dynamic) + size_t(i)];
      store_operand(job.out, t, i, fmaf(step, mu, xn));
    }
  }
  if (!first || p.write == 0) return;
  const float* last = p.x + size_t(p.step.start[s + 1] - 1) * size_t(p.ld);
  const Moments m_last = row_moments(last, p.cols);
  const float scale_last = scale_of(m_last, p.norm.eps);
  auto* dst = reinterpret_cast<float*>(p.step.dst[s] + p.shift);
  for (int i = from + int(threadIdx.x); i < end && i < p.cols; i += int(blockDim.x))
    dst[i] = normed(last[i], m_last, scale_last, p.norm.weight[i], p.norm.bias[i]);
}

// y[t] = z[t] (table[token[t]] + base[t]); a block for each row.
RWKV_KERNEL void RWKV_BOUNDS(256) deep_embed(PARAMS(DeepEmbedParams, p)) {
  start();
  const int t = int(blockIdx.x);
  const size_t from = size_t(p.token[t]) * size_t(p.d) * size_t(p.d);
  const float *base = p.base + size_t(t) * size_t(p.ld_base), *z = p.z + size_t(t) * size_t(p.ld_z);
  for (int j = int(threadIdx.x); j < round_up(p.d, kPad); j += int(blockDim.x)) {
    float sum = 0;
    for (int i = 0; j < p.d && i < p.d; i++) {
      const size_t at = size_t(i) * size_t(p.d) + size_t(j);
      sum = fmaf(z[i], load_number(p.table, p.dtype, from + at) + base[at], sum);
    }
    store_operand(p.y, t, j, sum);
  }
}

// (rows, columns / kFiniteColumns) blocks.
RWKV_KERNEL void RWKV_BOUNDS(256) finite(PARAMS(FiniteParams, p)) {
  start();
  const float* x = p.x + size_t(blockIdx.x) * size_t(p.ld);
  const int from = int(blockIdx.y) * kFiniteColumns;
  const int end = from + kFiniteColumns < p.cols ? from + kFiniteColumns : p.cols;
  bool found = false;
  for (int i = from + int(threadIdx.x); i < end; i += int(blockDim.x))
    found |= (bits(x[i]) & 0x7f800000u) == 0x7f800000u;
  if (ballot(found) != 0 && lane() == 0) atomic_or(p.flag, 1 << p.bit);
}

// Rows that came from elsewhere, with the statistics that they lack; a block for each.
RWKV_KERNEL void RWKV_BOUNDS(256) write_rows(PARAMS(WriteRowsParams, p)) {
  start();
  const float* from = p.from + size_t(blockIdx.x) * size_t(p.cols);
  float* row = p.x + size_t(blockIdx.x) * size_t(p.ld);
  for (int i = int(threadIdx.x); i < round_up(p.cols, kPad); i += int(blockDim.x)) {  // whole warps
    const float v = i < p.cols ? from[i] : 0.0f;
    if (i < p.cols) row[i] = v;
    write_statistics(row, p.cols, i / kSpan, v);
  }
}

// Of a sequence's rows only the last is kept, in its slot; (rows, columns / kFiniteColumns) blocks.
RWKV_KERNEL void RWKV_BOUNDS(256) keep_rows(PARAMS(KeepRowsParams, p)) {
  start();
  const int row = p.rows[blockIdx.x], s = p.step.sequence[row], from = int(blockIdx.y) * kFiniteColumns;
  if (row + 1 != p.step.start[s + 1]) return;
  const int end = from + kFiniteColumns < p.cols ? from + kFiniteColumns : p.cols;
  auto* to = reinterpret_cast<float*>(p.step.dst[s] + p.offset);
  for (int i = from + int(threadIdx.x); i < end; i += int(blockDim.x))
    to[i] = p.from[size_t(blockIdx.x) * size_t(p.ld) + size_t(i)];
}

// (rows, columns / kFiniteColumns) blocks.
RWKV_KERNEL void RWKV_BOUNDS(256) copy_rows(PARAMS(CopyRowsParams, p)) {
  start();
  const int from = int(blockIdx.y) * kFiniteColumns;
  const int end = from + kFiniteColumns < p.cols ? from + kFiniteColumns : p.cols;
  for (int i = from + int(threadIdx.x); i < end; i += int(blockDim.x))
    p.to[size_t(blockIdx.x) * size_t(p.ld_to) + size_t(i)] = p.from[size_t(blockIdx.x) * size_t(p.ld_from) + size_t(i)];
}

}  // namespace rwkv::cuda
