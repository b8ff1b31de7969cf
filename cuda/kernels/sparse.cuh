// Products with up to 64 tokens, W by columns: those whose inputs are zeros for all tokens are not loaded, if all
// numbers of W are finite. The arithmetic is that of small.cuh, whose order of k, lanes and warps this has, so the bits
// are the same as well, with and without skipping: what is not loaded counts as zeros, and zeros times zeros change no
// sum.
//
// A block has 64 outputs. A lane loads 8 neighbouring ones of each of its k and makes fragments of them: fragment m
// holds outputs 2 m and 2 m + 1 of every lane's eight. More tokens than 8 NT go in turns.
#pragma once
#include "cuda/kernels/small.cuh"

namespace rwkv::cuda {

// A lane's 8 outputs at one k.
template <Stored F>
struct Eight {
  uint32_t word[bits_of(F) / 4];
};
template <Stored F>
RWKV_DEVICE void load_eight(const LinearJobParams& q, int k, int output, bool wanted, Eight<F>& e) {
  const unsigned char* from =
      static_cast<const unsigned char*>(q.w) + kHead + (size_t(k) * size_t(q.n) + size_t(output)) * bits_of(F) / 8;
  if constexpr (bits_of(F) >= 16) {
#pragma unroll
    for (int i = 0; i < bits_of(F) / 16; i++) {
      const uint4 v = wanted ? load_stream(from + 16 * i) : uint4{0, 0, 0, 0};
#pragma unroll
      for (int j = 0; j < 4; j++) e.word[4 * i + j] = word(v, j);
    }
  } else {
#pragma unroll
    for (int i = 0; i < bits_of(F) / 4; i++) e.word[i] = wanted ? reinterpret_cast<const uint32_t*>(from)[i] : 0;
  }
}

// Outputs 2 m and 2 m + 1 (high) of two k as a pair of halves.
template <Stored F>
RWKV_DEVICE uint32_t pair_of(const Eight<F>& a, const Eight<F>& b, int m, bool high) {
  if constexpr (F == Stored::i8) {
    const int at = m % 2 * 2 + high;
    const uint32_t bytes = permute(a.word[m / 2], b.word[m / 2], uint32_t(at | (at + 4) << 4));
    return subtract_halves(permute(bytes, 0x64646464u, 0x4140), 0x64806480u);
  } else if constexpr (F == Stored::i4) {
    const uint32_t bytes = permute(a.word[0], b.word[0], uint32_t(m | (m + 4) << 8));
    return subtract_halves((bytes >> (high ? 4 : 0) & 0x000f000fu) | 0x64006400u, 0x64086408u);
  } else {
    return permute(a.word[m], b.word[m], high ? 0x7632 : 0x5410);
  }
}

// One block of k for NT tiles of 8 tokens from `token` on.
template <Stored F, int NT>
RWKV_DEVICE void multiply_columns(const LinearJobParams& q, int output, int block, int token, bool skip,
                                  float (&acc)[4][NT][4]) {
  constexpr int kProducts = quantised(F) ? 4 : 2, kOperands = kProducts / 2, kLane = block_k(F) / 4;  // k of a lane
  const int g = lane() / 4, t = lane() % 4;
  uint4 x[NT][kOperands];
#pragma unroll
  for (int n = 0; n < NT; n++)
#pragma unroll
    for (int i = 0; i < kOperands; i++)
      x[n][i] = quantised(F) ? load_operand(q, 2 * block + t / 2, token + n * 8 + g, t % 2 * 2 + i)
                             : load_operand(q, block, token + n * 8 + g, t);
  // Of each pair of k, the bits that any token has: lanes of one t join.
  uint32_t any[kLane / 2];
#pragma unroll
  for (int i = 0; i < kLane / 2; i++) {
    any[i] = skip ? 0 : ~0u;
#pragma unroll
    for (int n = 0; n < NT; n++) any[i] |= word(x[n][i / 4], i % 4);
    for (int mask = 4; mask < 32; mask *= 2) any[i] |= shuffle_xor(any[i], mask);
  }
  Eight<F> w[kLane];
#pragma unroll
  for (int i = 0; i < kLane; i++)
    load_eight<F>(q, block * block_k(F) + t * kLane + i, output + 8 * g, (any[i / 2] >> i % 2 * 16 & 0x7fff) != 0,
                  w[i]);
#pragma unroll
  for (int m = 0; m < 4; m++) {
    float group[NT][4] = {};
#pragma unroll
    for (int i = 0; i < kProducts; i++) {
      const uint32_t a[4] = {pair_of<F>(w[4 * i], w[4 * i + 1], m, false), pair_of<F>(w[4 * i], w[4 * i + 1], m, true),
                             pair_of<F>(w[4 * i + 2], w[4 * i + 3], m, false),
                             pair_of<F>(w[4 * i + 2], w[4 * i + 3], m, true)};
#pragma unroll
      for (int n = 0; n < NT; n++) {
        const uint32_t b[2] = {word(x[n][i / 2], i % 2 * 2), word(x[n][i / 2], i % 2 * 2 + 1)};
        multiply<F>(quantised(F) ? group[n] : acc[m][n], a, b);
      }
    }
    if constexpr (quantised(F)) {
      const auto* scales = reinterpret_cast<const uint32_t*>(
          static_cast<const unsigned char*>(q.w) + scale_at(F, Order::columns, q.n, q.k, output + 8 * g, block));
      const float low = from_bits(scales[m] << 16), high = from_bits(scales[m] & 0xffff0000u);
#pragma unroll
      for (int n = 0; n < NT; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) acc[m][n][i] = fmaf(i < 2 ? low : high, group[n][i], acc[m][n][i]);
    }
  }
}

// float32: as multiply_floats of small.cuh, for a lane's 8 outputs.
template <int NT>
RWKV_DEVICE void multiply_float_columns(const LinearJobParams& q, int output, int begin, int end, int token, bool skip,
                                        float (&acc)[4][NT][4]) {
  const int g = lane() / 4, t = lane() % 4;
  float sum[8][NT * 8] = {};
#pragma unroll 1
  for (int block = begin; block < end; block++) {
    uint4 x[NT * 8], any = {0, 0, 0, 0};
#pragma unroll
    for (int n = 0; n < NT * 8; n++) {
      x[n] = load_operand(q, block, token + n, t);
      any.x |= x[n].x, any.y |= x[n].y, any.z |= x[n].z, any.w |= x[n].w;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      Eight<Stored::f32> w;
      load_eight<Stored::f32>(q, block * 16 + t * 4 + i, output + 8 * g, !skip || (word(any, i) & 0x7fffffffu) != 0, w);
#pragma unroll
      for (int n = 0; n < NT * 8; n++)
#pragma unroll
        for (int r = 0; r < 8; r++) sum[r][n] = fmaf(from_bits(word(x[n], i)), from_bits(w.word[r]), sum[r][n]);
    }
  }
#pragma unroll
  for (int r = 0; r < 8; r++)
#pragma unroll
    for (int n = 0; n < NT * 8; n++) {
      float v = sum[r][n] + shuffle_xor(sum[r][n], 1);
      v += shuffle_xor(v, 2);
      if (n % 8 / 2 == t) acc[r / 2][n / 8][r % 2 * 2 + n % 2] = v;
    }
}

template <Stored F, int NT>
RWKV_KERNEL void RWKV_BOUNDS(256, NT == 1 && F != Stored::f32 ? 2 : 1) sparse(PARAMS(LinearParams, p)) {
  SHARED(FinishShared<4>, s);
  int job = 0;
  while (job + 1 < p.count && int(blockIdx.x) >= p.job[job + 1].first) job++;
  const LinearJobParams& q = p.job[job];
  const int output = (int(blockIdx.x) - q.first) * 64, blocks = q.k / block_k(F);
  const int begin = blocks * warp() / kWarps, end = blocks * (warp() + 1) / kWarps;
  start();  // which weights will be read only the operand says
  const bool skip = q.skip != 0 && *static_cast<const int32_t*>(q.w) == 0;
  for (int token = 0; token < q.tokens; token += 8 * NT) {
    float acc[4][NT][4] = {};
    if constexpr (F == Stored::f32) {
      multiply_float_columns<NT>(q, output, begin, end, token, skip, acc);
    } else {
#pragma unroll 1
      for (int block = begin; block < end; block++) multiply_columns<F, NT>(q, output, block, token, skip, acc);
    }
#pragma unroll
    for (int n = 0; n < NT; n++) {
      if (token + n * 8 >= q.tokens) break;
      float d[4][4];
#pragma unroll
      for (int m = 0; m < 4; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) d[m][i] = acc[m][n][i];
      finish<Order::columns>(q, s, d, output, token + n * 8);
    }
  }
}

}  // namespace rwkv::cuda
