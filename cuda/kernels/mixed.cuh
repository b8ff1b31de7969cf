// Products with up to 8 tokens, each of a sequence of its own, that make their operand themselves: norm, token shift
// and lerp of what a lane is about to multiply with. The bits are those of `mix` and `small`, one after the other,
// whose functions these are. Every block norms the rows again, so this is for few tokens.
#pragma once
#include "cuda/kernels/small.cuh"

namespace rwkv::cuda {

// Two numbers as an operand of 16 bits has them.
template <Stored O>
RWKV_DEVICE uint32_t operand_pair(float low, float high) {
  if constexpr (O == Stored::f16) return clamp_to_half(low) | uint32_t(clamp_to_half(high)) << 16;
  return float_to_bf16(low) | uint32_t(float_to_bf16(high)) << 16;
}

// Of 8 columns from `col` on; `keep`: the normed row also goes to the state.
template <Stored O>
RWKV_DEVICE uint4 mixed_operand(const MixParams& p, const MixJobParams& job, const MixedShared& s, int col, int token,
                                bool keep) {
  if (token >= p.step.tokens) return {0, 0, 0, 0};
  const float* x = p.x + size_t(token) * size_t(p.ld);
  const auto* src = reinterpret_cast<const float*>(p.step.src[token] + p.shift);
  auto* dst = reinterpret_cast<float*>(p.step.dst[token] + p.shift);
  const Moments& m = s.moments[token];
  const float scale = s.scale[token];
  float v[8];
#pragma unroll
  for (int i = 0; i < 8; i++) {
    v[i] = 0;
    if (col + i >= p.cols) continue;
    const float xn = normed(x[col + i], m, scale, p.norm.weight[col + i], p.norm.bias[col + i]);
    float mu = job.mu[col + i];
    if (job.dynamic) mu += job.dynamic[size_t(token) * size_t(job.ld_dynamic) + size_t(col + i)];
    v[i] = fmaf(src[col + i] - xn, mu, xn);
    if (keep) dst[col + i] = xn;
  }
  return {operand_pair<O>(v[0], v[1]), operand_pair<O>(v[2], v[3]), operand_pair<O>(v[4], v[5]),
          operand_pair<O>(v[6], v[7])};
}

// 3 blocks a processor: left to itself, the compiler wants 4 and spills.
template <Stored F>
RWKV_KERNEL void RWKV_BOUNDS(256, 3) mixed(PARAMS(MixedParams, p)) {
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
  // The first block of all goes through every column of its operand.
  const bool keep = p.mix.write != 0 && blockIdx.x == 0;
  float acc[1][1][4] = {};
  as_stored<F>(q, [&](auto stored) {
    constexpr Stored kOperand = operand_of(stored.value);
    const Share k = share_of(q, stored.value);
#pragma unroll 1
    for (int block = k.begin; block < k.end; block++)
      multiply_block<stored.value, 1, 1>(q, tile, block, acc, [&](int b, int token, int chunk) {
        return mixed_operand<kOperand>(p.mix, mix, s, b * operand_elements(kOperand) + chunk * 8, token, keep);
      });
  });
  const float d[1][4] = {{acc[0][0][0], acc[0][0][1], acc[0][0][2], acc[0][0][3]}};
  finish<Order::rows>(q, s.sums, d, tile * kBlockRows, 0);
}

}  // namespace rwkv::cuda
