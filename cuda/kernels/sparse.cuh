// Products with up to 64 tokens, W by columns: those whose inputs are zeros for all tokens are not loaded, if all
// numbers of W are finite. The arithmetic is that of small.cuh, whose order of k, lanes and warps this has, so the bits
// are the same as well, with and without skipping: what is not loaded counts as zeros, and zeros times zeros change no
// sum.
//
// What a warp will load it knows before it multiplies: it looks through its share of the inputs once and asks for the
// live ones' weights, so that no step waits for an input to know what to load, and for the device's memory.
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
RWKV_DEVICE const unsigned char* columns_from(const LinearJobParams& q, int k, int output) {
  return static_cast<const unsigned char*>(q.w) + weight_at(F, Order::columns, q.n, q.k, output, k);
}
template <Stored F>
RWKV_DEVICE void load_eight(const unsigned char* from, bool wanted, Eight<F>& e) {
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

// Which of the inputs from k = `first` to `end`, at most kWindow of them, any of `count` tokens has: bit j of lane i is
// for k = first + 32 i + j. What a block of outputs multiplies them with is on its way to L2 afterwards.
constexpr int kWindow = 32 * 32;
template <Stored F>
RWKV_DEVICE uint32_t find_live(const LinearJobParams& q, int output, int first, int end, int token, int count,
                               bool skip) {
  constexpr int kAtOnce = 8, kBytes = 64 * bits_of(F) / 8;
  constexpr Stored kOperand = operand_of(F);
  // The lane's own of 32 neighbours, which lie so far from the next 32.
  const int own = first + lane(), words = (end - first + 31) / 32;
  const int next = 32 / operand_elements(kOperand) * q.rows8 * kChunk;
  const auto* x = static_cast<const unsigned char*>(q.x) + operand_at(kOperand, q.rows8, token, own);
  const unsigned char* w = columns_from<F>(q, own, output);
  uint32_t live = 0;
#pragma unroll 1
  for (int i = 0; i < words; i += kAtOnce) {
    uint32_t any[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; j++) any[j] = skip ? 0 : 1;
#pragma unroll 4
    for (int t = 0; t < (skip ? count : 0); t++)
#pragma unroll
      for (int j = 0; j < kAtOnce; j++) {
        if (own + 32 * (i + j) >= end) continue;
        const unsigned char* from = x + (i + j) * next + t * kChunk;
        any[j] |= F == Stored::f32 ? *reinterpret_cast<const uint32_t*>(from) & 0x7fffffffu
                                   : *reinterpret_cast<const uint16_t*>(from) & 0x7fffu;
      }
#pragma unroll
    for (int j = 0; j < kAtOnce; j++) {
      const bool wanted = own + 32 * (i + j) < end && any[j] != 0;
      const uint32_t word = ballot(wanted);
      if (lane() == i + j) live = word;
      for (int at = 0; wanted && at < kBytes; at += 64)
        prefetch(w + size_t(32 * (i + j)) * size_t(q.n) * bits_of(F) / 8 + at);
    }
  }
  return live;
}
// The bits from the k-th of them on, which may be another one in each lane; all lanes come here.
RWKV_DEVICE uint32_t live_from(uint32_t live, int k) { return shuffle(live, k / 32) >> k % 32; }

// What a lane multiplies in one block of k, for NT tiles of 8 tokens.
template <Stored F, int NT>
struct ColumnStep {
  static constexpr int kOperands = quantised(F) ? 2 : 1, kLane = block_k(F) / 4;  // k of a lane
  uint4 x[NT][kOperands], scales = {0, 0, 0, 0};
  Eight<F> w[kLane];
};
template <Stored F, int NT>
RWKV_DEVICE void load_columns(const LinearJobParams& q, int output, int block, int token, uint32_t live,
                              ColumnStep<F, NT>& s) {
  constexpr int kLane = ColumnStep<F, NT>::kLane;
  const int g = lane() / 4, t = lane() % 4, line = q.n * bits_of(F) / 8;
  const unsigned char* from = columns_from<F>(q, block * block_k(F) + t * kLane, output + 8 * g);
#pragma unroll
  for (int i = 0; i < kLane; i++) load_eight<F>(from + i * line, (live >> i & 1) != 0, s.w[i]);
#pragma unroll
  for (int n = 0; n < NT; n++)
#pragma unroll
    for (int i = 0; i < ColumnStep<F, NT>::kOperands; i++)
      s.x[n][i] = quantised(F) ? load_operand(q, 2 * block + t / 2, token + n * 8 + g, t % 2 * 2 + i)
                               : load_operand(q, block, token + n * 8 + g, t);
  if constexpr (quantised(F))
    s.scales = *reinterpret_cast<const uint4*>(static_cast<const unsigned char*>(q.w) +
                                               scale_at(F, Order::columns, q.n, q.k, output + 8 * g, block));
}
template <Stored F, int NT>
RWKV_DEVICE void multiply_step(const ColumnStep<F, NT>& s, float (&acc)[4][NT][4]) {
#pragma unroll
  for (int m = 0; m < 4; m++) {
    float group[NT][4] = {};
#pragma unroll
    for (int i = 0; i < 2 * ColumnStep<F, NT>::kOperands; i++) {
      const Eight<F>* w = s.w + 4 * i;
      const uint32_t a[4] = {pair_of<F>(w[0], w[1], m, false), pair_of<F>(w[0], w[1], m, true),
                             pair_of<F>(w[2], w[3], m, false), pair_of<F>(w[2], w[3], m, true)};
#pragma unroll
      for (int n = 0; n < NT; n++) {
        const uint32_t b[2] = {word(s.x[n][i / 2], i % 2 * 2), word(s.x[n][i / 2], i % 2 * 2 + 1)};
        multiply<F>(quantised(F) ? group[n] : acc[m][n], a, b);
      }
    }
    if constexpr (quantised(F)) {
      const uint32_t scales = word(s.scales, m);
      const float low = from_bits(scales << 16), high = from_bits(scales & 0xffff0000u);
#pragma unroll
      for (int n = 0; n < NT; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) acc[m][n][i] = fmaf(i < 2 ? low : high, group[n][i], acc[m][n][i]);
    }
  }
}

// A warp's blocks of k from `begin` to `end`, for NT tiles of 8 tokens from `token` on. While one is multiplied the
// next one is on its way.
template <Stored F, int NT>
RWKV_DEVICE void multiply_columns(const LinearJobParams& q, int output, int begin, int end, int token, bool skip,
                                  float (&acc)[4][NT][4]) {
  constexpr int kBlocks = kWindow / block_k(F), kLane = ColumnStep<F, NT>::kLane;
  const int count = q.tokens - token < 8 * NT ? q.tokens - token : 8 * NT;
#pragma unroll 1
  for (int first = begin; first < end; first += kBlocks) {
    const int last = first + kBlocks < end ? first + kBlocks : end;
    const uint32_t live = find_live<F>(q, output, first * block_k(F), last * block_k(F), token, count, skip);
    const auto load = [&](int block, ColumnStep<F, NT>& s) {
      const uint32_t own = live_from(live, (block - first) * block_k(F) + lane() % 4 * kLane);
      load_columns<F, NT>(q, output, block, token, own, s);
    };
    ColumnStep<F, NT> step;
    if constexpr (quantised(F) && NT > 1) {  // which have no registers for two steps
#pragma unroll 1
      for (int block = first; block < last; block++) load(block, step), multiply_step<F, NT>(step, acc);
    } else {
      load(first, step);
#pragma unroll 2
      for (int block = first; block + 1 < last; block++) {
        ColumnStep<F, NT> next;
        load(block + 1, next);
        multiply_step<F, NT>(step, acc);
        step = next;
      }
      multiply_step<F, NT>(step, acc);
    }
  }
}

// float32: as multiply_floats of small.cuh, for a lane's 8 outputs.
template <int NT>
RWKV_DEVICE void multiply_float_columns(const LinearJobParams& q, int output, int begin, int end, int token, bool skip,
                                        float (&acc)[4][NT][4]) {
  constexpr int kBlocks = kWindow / 16;
  const int g = lane() / 4, t = lane() % 4;
  const int count = q.tokens - token < 8 * NT ? q.tokens - token : 8 * NT;
  float sum[8][NT * 8] = {};
  uint32_t live = 0;
#pragma unroll 1
  for (int block = begin, first = begin; block < end; block++) {
    if (block == begin || block - first == kBlocks) {
      first = block;
      const int last = first + kBlocks < end ? first + kBlocks : end;
      live = find_live<Stored::f32>(q, output, first * 16, last * 16, token, count, skip);
    }
    const uint32_t own = live_from(live, (block - first) * 16 + t * 4);
    const unsigned char* from = columns_from<Stored::f32>(q, block * 16 + t * 4, output + 8 * g);
    Eight<Stored::f32> w[4];
#pragma unroll
    for (int i = 0; i < 4; i++) load_eight<Stored::f32>(from + i * q.n * 4, (own >> i & 1) != 0, w[i]);
#pragma unroll
    for (int n = 0; n < NT * 8; n++) {
      const uint4 x = load_operand(q, block, token + n, t);
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int r = 0; r < 8; r++) sum[r][n] = fmaf(from_bits(word(x, i)), from_bits(w[i].word[r]), sum[r][n]);
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
RWKV_KERNEL void RWKV_BOUNDS(256, 1) sparse(PARAMS(LinearParams, p)) {
  SHARED(FinishShared<4>, s);
  int job = 0;
  while (job + 1 < p.count && int(blockIdx.x) >= p.job[job + 1].first) job++;
  const LinearJobParams& q = p.job[job];
  const int output = (int(blockIdx.x) - q.first) * 64, blocks = q.k / block_k(F);
  const int begin = blocks * warp() / kWarps, end = blocks * (warp() + 1) / kWarps;
  // Which weights will be read only the operand says, but all scales are, and the head that allows to skip.
  let_next_start();
  prefetch(q.w);
  if constexpr (quantised(F))
    for (int i = begin * 2 + lane(); i < end * 2; i += 32)
      prefetch(static_cast<const unsigned char*>(q.w) +
               scale_at(F, Order::columns, q.n, q.k, output + i % 2 * 32, i / 2));
  wait_for_previous();
  const bool skip = q.skip != 0 && *static_cast<const int32_t*>(q.w) == 0;
  for (int token = 0; token < q.tokens; token += 8 * NT) {
    float acc[4][NT][4] = {};
    if constexpr (F == Stored::f32) {
      multiply_float_columns<NT>(q, output, begin, end, token, skip, acc);
    } else {
      multiply_columns<F, NT>(q, output, begin, end, token, skip, acc);
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
