// Products with up to 8 tokens, each of a sequence of its own, that make their operand themselves: norm, token shift
// and lerp of 128 columns of its share at a time, which a warp lays into shared memory, and multiplies with. The bits
// are those of `mix` and `small`, one after the other, whose functions these are. Every block norms the rows again, so
// this is for few tokens.
#pragma once
#include "cuda/kernels/small.cuh"

namespace rwkv::cuda {

// Where a token's column lies in a warp's operand. Tokens that are read together do not meet in a bank: neither by 16
// bits, where four lanes read 64 neighbouring bytes, nor by int8 and int4, where they read every other 16 of 128.
RWKV_DEVICE int mixed_place(int token, int col) { return token * kMixedColumns + (col ^ token % 2 * 40); }

// The operand of 128 columns from `first` on, as far as they lie before `end`, where rows can be read by fours. What is
// the same for all tokens is loaded once.
template <Stored O, bool Dynamic>
RWKV_DEVICE void make_fours(const MixParams& p, const MixJobParams& job, const MixedShared& s, uint16_t* to, int first,
                            int end) {
  const int col = first + 4 * lane(), tokens = p.step.tokens;
  if (col >= end) return;
  if (col >= p.cols) {
#pragma unroll 1
    for (int token = 0; token < tokens; token++) *reinterpret_cast<uint64_t*>(to + mixed_place(token, 4 * lane())) = 0;
    return;
  }
  float weight[4], bias[4], mu[4];
  load_four(p.norm.weight + col, 4, weight), load_four(p.norm.bias + col, 4, bias), load_four(job.mu + col, 4, mu);
#pragma unroll 1
  for (int token = 0, at = 4 * lane(); token < tokens; token++, at = (at + kMixedColumns) ^ 40) {
    const MixedToken& row = s.token[token];
    float x[4], before[4], dynamic[4], v[4];
    load_four(p.x + (token * p.ld + col), 4, x);
    load_four(row.before + col, 4, before);
    if constexpr (Dynamic) load_four(job.dynamic + (token * int(job.ld_dynamic) + col), 4, dynamic);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      x[i] = normed(x[i], row.mean, row.scale, weight[i], bias[i]);
      v[i] = fmaf(before[i] - x[i], Dynamic ? mu[i] + dynamic[i] : mu[i], x[i]);
    }
    *reinterpret_cast<uint64_t*>(to + at) = O == Stored::f16 ? four_to_half(v) : four_to_bf16(v);
  }
}
// The same wherever rows begin, and of any number of columns.
template <Stored O>
RWKV_DEVICE void make_any(const MixParams& p, const MixJobParams& job, const MixedShared& s, uint16_t* to, int first,
                          int end) {
#pragma unroll 1
  for (int i = lane(); i < p.step.tokens * kMixedColumns; i += 32) {
    const int token = i / kMixedColumns, at = i % kMixedColumns, col = first + at;
    float v = 0;
    if (col >= end) continue;
    if (col < p.cols) {
      const MixedToken& row = s.token[token];
      const float x = normed(p.x[token * p.ld + col], row.mean, row.scale, p.norm.weight[col], p.norm.bias[col]);
      float mu = job.mu[col];
      if (job.dynamic) mu += job.dynamic[token * int(job.ld_dynamic) + col];
      v = fmaf(row.before[col] - x, mu, x);
    }
    to[mixed_place(token, at)] = O == Stored::f16 ? clamp_to_half(v) : float_to_bf16(v);
  }
}

// The normed rows go to the state, some columns by each block.
RWKV_DEVICE void keep_normed(const MixParams& p, const MixedShared& s) {
  const int threads = int(gridDim.x * blockDim.x);
  for (int i = int(blockIdx.x * blockDim.x + threadIdx.x); i < p.step.tokens * p.cols; i += threads) {
    const int token = i / p.cols, col = i % p.cols;
    auto* after = reinterpret_cast<float*>(p.step.dst[token] + p.shift);
    after[col] = normed(p.x[token * p.ld + col], s.token[token].mean, s.token[token].scale, p.norm.weight[col],
                        p.norm.bias[col]);
  }
}

// Whether all of a step's rows can be read by fours: slots may place a part anywhere.
RWKV_DEVICE bool reads_fours(const MixParams& p, const MixJobParams& job, const MixedShared& s) {
  uint64_t all = uint64_t(p.cols | p.ld | job.ld_dynamic) * sizeof(float);
  for (const float* from : {p.x, p.norm.weight, p.norm.bias, job.mu, job.dynamic})
    all |= reinterpret_cast<uint64_t>(from);
  if (lane() < p.step.tokens) all |= reinterpret_cast<uint64_t>(s.token[lane()].before);
  return ballot(all % 16 != 0) == 0;
}

// 4 blocks a processor hold all of 1.5B's r, k, v and rank-in products at once on 132. All weights of a window are
// loaded at once where there are registers for it: not by int8, nor for the 16 bits beside it.
template <Stored F>
RWKV_KERNEL void RWKV_BOUNDS(256, 4) mixed(PARAMS(MixedParams, p)) {
  SHARED(MixedShared, s);
  int job = 0;
  while (job + 1 < p.linear.count && int(blockIdx.x) >= p.linear.job[job + 1].first) job++;
  const LinearJobParams& q = p.linear.job[job];
  const MixJobParams& mix = p.mix.job[p.which[job]];
  const int tile = int(blockIdx.x) - q.first;
  const Stored stored = quantised(F) ? Stored(q.stored) : F;
  const Share k = share_of(q, stored);
  let_next_start();
  as_stored<F>(q, [&](auto as) { prefetch_share<as.value>(q, tile, k); });
  for (int col = 32 * int(threadIdx.x); col < p.mix.cols; col += 32 * int(blockDim.x))  // a line of each
    prefetch(p.mix.norm.weight + col), prefetch(p.mix.norm.bias + col), prefetch(mix.mu + col);
  wait_for_previous();
  if (warp() < q.tokens) {
    const Moments m = row_moments(p.mix.x + size_t(warp()) * size_t(p.mix.ld), p.mix.cols);
    const auto* before = reinterpret_cast<const float*>(p.mix.step.src[warp()] + p.mix.shift);
    if (lane() == 0) s.token[warp()] = {before, m.mean, scale_of(m, p.mix.norm.eps)};
  }
  sync();
  const bool fours = reads_fours(p.mix, mix, s);
  uint16_t* own = s.operand[warp()];
  const auto make = [&](auto operand, int first, int end) {
    if (!fours)
      make_any<operand.value>(p.mix, mix, s, own, first, end);
    else if (mix.dynamic)
      make_fours<operand.value, true>(p.mix, mix, s, own, first, end);
    else
      make_fours<operand.value, false>(p.mix, mix, s, own, first, end);
  };
  float acc[1][1][4] = {};
#pragma unroll 1
  for (int from = k.begin; from < k.end; from += kMixedColumns / block_k(stored)) {
    const int first = from * block_k(stored), end = k.end * block_k(stored);
    if (stored == Stored::bf16)
      make(StoredAs<Stored::bf16>(), first, end);
    else
      make(StoredAs<Stored::f16>(), first, end);
    sync_warp();
    as_stored<F>(q, [&](auto as) {
      constexpr int kBlocks = kMixedColumns / block_k(as.value), kRows = block_k(as.value) / 32;
      const auto multiply_next = [&](int i) {
        multiply_block<as.value, 1, 1>(q, tile, from + i, acc, [&](int b, int token, int chunk) {
          if (token >= q.tokens) return uint4{0, 0, 0, 0};
          return *reinterpret_cast<const uint4*>(own + mixed_place(token, (b - from * kRows) * 32 + chunk * 8));
        });
      };
      if (F != Stored::i8 && quantised(as.value) == quantised(F) && k.end - from >= kBlocks) {
#pragma unroll
        for (int i = 0; i < kBlocks; i++) multiply_next(i);
      } else {
#pragma unroll 1
        for (int i = 0; i < kBlocks && i < k.end - from; i++) multiply_next(i);
      }
    });
    sync_warp();
  }
  if (p.mix.write != 0) keep_normed(p.mix, s);
  const float d[1][4] = {{acc[0][0][0], acc[0][0][1], acc[0][0][2], acc[0][0][3]}};
  finish<1>(q, s.sums, d, tile * kBlockRows, 0);
}

}  // namespace rwkv::cuda
