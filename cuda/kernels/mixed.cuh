// Products with up to 8 tokens, each of a sequence of its own, that make their operand themselves: norm, token shift
// and lerp of what a lane is about to multiply with. The bits are those of `mix` and `small`, one after the other,
// whose functions these are. Every block norms the rows again, so this is for few tokens.
#pragma once
#include "cuda/kernels/small.cuh"

namespace rwkv::cuda {

template <bool Value>
struct Known {
  static constexpr bool value = Value;
};

// Two numbers as an operand of 16 bits has them.
template <Stored O>
RWKV_DEVICE uint32_t operand_pair(float low, float high) {
  if constexpr (O == Stored::f16) return clamp_to_half(low) | uint32_t(clamp_to_half(high)) << 16;
  return float_to_bf16(low) | uint32_t(float_to_bf16(high)) << 16;
}

// A lane's token, or -1, and where what is read of it begins: pointers would be more registers than there are.
struct MixedRow {
  int token, x, dynamic;  // in floats
  const float* before;
};
RWKV_DEVICE MixedRow mixed_row(const MixParams& p, const MixJobParams& job, int token) {
  if (token >= p.step.tokens) return {-1, 0, 0, nullptr};
  return {token, token * p.ld, token * int(job.ld_dynamic),
          reinterpret_cast<const float*>(p.step.src[token] + p.shift)};
}
// Whether all lanes can read four numbers at once: slots may place a part anywhere.
RWKV_DEVICE bool reads_fours(const MixParams& p, const MixJobParams& job, const MixedRow& row) {
  uint64_t all = 0;
  for (const float* from : {p.x + row.x, row.before, job.dynamic + row.dynamic, p.norm.weight, p.norm.bias, job.mu})
    all |= reinterpret_cast<uint64_t>(from);
  return ballot(all % 16 != 0 || p.cols % 8 != 0) == 0;
}

// Of 8 columns from `col` on.
template <Stored O, bool Fours>
RWKV_DEVICE uint4 mixed_operand(const MixParams& p, const MixJobParams& job, const MixedShared& s, const MixedRow& row,
                                int col) {
  if (row.token < 0 || col >= p.cols) return {0, 0, 0, 0};
  uint4 operand = {0, 0, 0, 0};
#pragma unroll 1
  for (int half = 0; half < 2; half++, col += 4) {
    const int rest = p.cols - col, count = Fours ? 4 : rest < 0 ? 0 : rest < 4 ? rest : 4;
    const auto read = [&](const float* from, float (&v)[4]) {
      if constexpr (Fours) {
        load_four(from + col, 4, v);
      } else {
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = i < count ? from[col + i] : 0.0f;
      }
    };
    float x[4], before[4], weight[4], bias[4], mu[4], v[4];
    read(p.x + row.x, x), read(p.norm.weight, weight), read(p.norm.bias, bias);
#pragma unroll
    for (int i = 0; i < 4; i++) x[i] = normed(x[i], s.moments[row.token], s.scale[row.token], weight[i], bias[i]);
    read(row.before, before), read(job.mu, mu);
    if (job.dynamic) {
      float dynamic[4];
      read(job.dynamic + row.dynamic, dynamic);
#pragma unroll
      for (int i = 0; i < 4; i++) mu[i] += dynamic[i];
    }
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = i < count ? fmaf(before[i] - x[i], mu[i], x[i]) : 0.0f;
    operand = {operand.z, operand.w, operand_pair<O>(v[0], v[1]), operand_pair<O>(v[2], v[3])};
  }
  return operand;
}

// The normed rows go to the state, some columns by each block.
RWKV_DEVICE void keep_normed(const MixParams& p, const MixedShared& s) {
  const int threads = int(gridDim.x * blockDim.x);
  for (int i = int(blockIdx.x * blockDim.x + threadIdx.x); i < p.step.tokens * p.cols; i += threads) {
    const int token = i / p.cols, col = i % p.cols;
    auto* after = reinterpret_cast<float*>(p.step.dst[token] + p.shift);
    after[col] = normed(p.x[size_t(token) * size_t(p.ld) + size_t(col)], s.moments[token], s.scale[token],
                        p.norm.weight[col], p.norm.bias[col]);
  }
}

// 4 blocks a processor hold all of 1.5B's r, k, v and rank-in products at once on 132; int8 and int4 would spill.
template <Stored F>
RWKV_KERNEL void RWKV_BOUNDS(256, quantised(F) ? 3 : 4) mixed(PARAMS(MixedParams, p)) {
  SHARED(MixedShared, s);
  int job = 0;
  while (job + 1 < p.linear.count && int(blockIdx.x) >= p.linear.job[job + 1].first) job++;
  const LinearJobParams& q = p.linear.job[job];
  const MixJobParams& mix = p.mix.job[p.which[job]];
  const int tile = int(blockIdx.x) - q.first;
  let_next_start();
  as_stored<F>(q, [&](auto stored) { prefetch_share<stored.value>(q, tile, share_of(q, stored.value)); });
  wait_for_previous();
  if (warp() < q.tokens) {
    const Moments m = row_moments(p.mix.x + size_t(warp()) * size_t(p.mix.ld), p.mix.cols);
    if (lane() == 0) s.moments[warp()] = m, s.scale[warp()] = scale_of(m, p.mix.norm.eps);
  }
  sync();
  const MixedRow row = mixed_row(p.mix, mix, lane() / 4);
  const bool fours = reads_fours(p.mix, mix, row);
  float acc[1][1][4] = {};
  as_stored<F>(q, [&](auto stored) {
    constexpr Stored kOperand = operand_of(stored.value);
    const Share k = share_of(q, stored.value);
    const auto multiply_all = [&](auto as_fours) {
#pragma unroll 1
      for (int block = k.begin; block < k.end; block++)
        multiply_block<stored.value, 1, 1>(q, tile, block, acc, [&](int b, int, int chunk) {
          const int col = b * operand_elements(kOperand) + chunk * 8;
          return mixed_operand<kOperand, as_fours.value>(p.mix, mix, s, row, col);
        });
    };
    if (fours)
      multiply_all(Known<true>());
    else
      multiply_all(Known<false>());
  });
  if (p.mix.write != 0) keep_normed(p.mix, s);
  const float d[1][4] = {{acc[0][0][0], acc[0][0][1], acc[0][0][2], acc[0][0][3]}};
  finish<1>(q, s.sums, d, tile * kBlockRows, 0);
}

}  // namespace rwkv::cuda
