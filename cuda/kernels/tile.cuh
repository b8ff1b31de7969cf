// Products with more than 64 tokens: a block has kTile outputs of kTile tokens and goes through k from the first to the
// last, so a row has the same bits whatever the number of tokens, its place and its neighbours.
//
// Step by step, the k of a row of 64 bytes of the operand come to shared memory, those of the outputs' weights beside
// them. The steps that follow are on their way while one is multiplied. A step is small, so that two blocks fit into a
// processor of any device: one multiplies while the other one waits. There, 16 bytes change places within 128, so that
// what lanes read together meets no bank twice.
//
// A warp has 64 of the outputs and 32 of the tokens: 4 x 4 fragments. Rows of fragments are neighbouring outputs, but
// where lanes make fragments of 8 neighbouring outputs at one k (int8, int4 and float32 by columns): fragment m then
// holds outputs 2 m and 2 m + 1 of every lane's eight.
#pragma once
#include "cuda/kernels/small.cuh"

namespace rwkv::cuda {

// As lane() and warp(), but compilers know that they are not negative, which saves the registers that are short here.
RWKV_DEVICE int tile_lane() { return int(threadIdx.x % 32); }
RWKV_DEVICE int tile_warp() { return int(threadIdx.x / 32 % kWarps); }

constexpr int kWarpOutputs = 64, kWarpTokens = 32;
RWKV_DEVICE int first_output() { return tile_warp() / (kTile / kWarpTokens) * kWarpOutputs; }  // of a warp
RWKV_DEVICE int first_token() { return tile_warp() % (kTile / kWarpTokens) * kWarpTokens; }

// Where 16 bytes lie in a stage: the `unit` of a line of 64, a token's or an output's, and of weights by columns, k
// after k.
RWKV_DEVICE int line_place(int line, int unit) { return line * kChunk + (unit ^ line / 2 % 4) * 16; }
template <Stored F>
RWKV_DEVICE int column_place(int unit) {
  constexpr int kUnits = kTile * bits_of(F) / 128;  // at one k
  if (F == Stored::f32) return unit * 16;
  return (unit ^ (quantised(F) ? unit / (8 * kUnits) % 4 * 2 : unit / kUnits % 8)) * 16;
}
// Whether a fragment's rows g and g + 8 are outputs 2 m and 2 m + 1 of a lane's eight.
template <Stored F, Order O>
constexpr bool kEights = O == Order::columns && (F == Stored::f32 || quantised(F));

// A lane's 8 outputs at one k.
template <Stored F>
struct Eight {
  uint32_t word[bits_of(F) / 4];
};
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

// Asks for one step; zeros for the tokens and outputs that are not there. Every address is what all threads share and
// a small number of the thread's own.
template <Stored F, Order O>
RWKV_DEVICE void load_step(const LinearJobParams& q, TileStage<F>& s, int row, int token, uint32_t step) {
  constexpr int kThreads = 32 * kWarps, kAll = TileStage<F>::kNumbers / 16, kStep = TileStage<F>::kStep;
  const int at = int(threadIdx.x % kThreads);
  const auto* x = static_cast<const unsigned char*>(q.x) + (size_t(step) * size_t(q.rows8) + size_t(token)) * kChunk;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int of = at / 4 + i * (kTile / 2);
    copy_async(s.x + line_place(of, at % 4), x + (at + i * kThreads) * 16, of < q.tokens - token);
  }
  const auto* w = static_cast<const unsigned char*>(q.w);
  if constexpr (O == Order::rows) {  // a block of weights is one or two steps, and has so many lines of 64 bytes
    constexpr int kParts = block_k(F) / kStep, kPart = 4 / kParts, kLines = block_bytes(F) / kChunk;
    const size_t bytes = size_t(q.k / block_k(F)) * block_bytes(F);  // of 16 rows
    w += size_t(row / kBlockRows) * bytes + size_t(step / kParts * block_bytes(F) + step % kParts * kPart * 16);
    const int own = at / kPart % kLines * kChunk + at % kPart * 16, first = at / kPart / kLines;
#pragma unroll
    for (int i = 0; i * kThreads < kAll; i++) {
      const int block = first + i * (kThreads / kPart / kLines);
      if (kAll >= kThreads || at < kAll)
        copy_async(s.w + (kParts == 1 ? line_place(at / 4 + i * (kThreads / 4), at % 4) : at * 16),
                   w + block * int(bytes) + own, block * kBlockRows < q.n - row);
    }
  } else {
    constexpr int kUnits = kTile * bits_of(F) / 128;  // of the outputs at one k
    const int bytes = q.n * bits_of(F) / 8, first = at / kUnits, unit = at % kUnits;
    w += weight_at(F, O, q.n, q.k, row, int(step * kStep));
#pragma unroll
    for (int i = 0; i * kThreads < kAll; i++) {
      const int k = first + i * (kThreads / kUnits);
      if (kAll >= kThreads || at < kAll)
        copy_async(s.w + column_place<F>(i * kThreads + at), w + k * bytes + unit * 16,
                   unit * (128 / bits_of(F)) < q.n - row);
    }
  }
  if constexpr (quantised(F)) {
    const unsigned char* scales =
        static_cast<const unsigned char*>(q.w) + scale_at(F, O, q.n, q.k, row, int(step * kStep / kGroup));
    const int own = O == Order::rows ? at / 2 * (q.k / kGroup) * kBlockRows * 2 + at % 2 * 16 : at * 16;
    if (at < kTile / 8) copy_async(s.scales + at * 8, scales + own, at * 8 < q.n - row);
  }
}

// A lane's int8 or int4 weights of fragment m by rows, k = 8 t to 8 t + 7, where weight_fragment takes them from.
template <Stored F>
RWKV_DEVICE void read_rows(const TileStage<F>& s, int m, uint4 (&w)[2]) {
  constexpr int kBytes = TileStage<F>::kNumbers / (kTile / kBlockRows);
  const unsigned char* from = s.w + (first_output() / kBlockRows + m) * kBytes;
  if constexpr (F == Stored::i4) {
    const auto* words = reinterpret_cast<const uint32_t*>(from) + tile_lane() / 2 * 4 + tile_lane() % 2;
    w[0] = {words[0], 0, words[2], 0};
  } else {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint64_t v = *reinterpret_cast<const uint64_t*>(from + i * kBytes / 2 + tile_lane() * 8);
      w[i] = {uint32_t(v), uint32_t(v >> 32), 0, 0};
    }
  }
}
// A lane's 8 neighbouring outputs at k = 8 part + lane_k by columns.
template <Stored F>
RWKV_DEVICE void read_eight(const TileStage<F>& s, int part, int lane_k, Eight<F>& e) {
  constexpr int kBytes = kTile * bits_of(F) / 8, kLine = 8 * 16;  // at one k; within a line units change places
  const int at = part * 8 * kBytes + (first_output() + tile_lane() / 4 * 8) * bits_of(F) / 8;
  const unsigned char* from =
      s.w + (column_place<F>(at / 16) ^ lane_k * kBytes % kLine) + lane_k * kBytes / kLine * kLine + at % 16;
  if constexpr (F == Stored::f32) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint4 v = *reinterpret_cast<const uint4*>(from + i * 16);
#pragma unroll
      for (int j = 0; j < 4; j++) e.word[4 * i + j] = word(v, j);
    }
  } else if constexpr (F == Stored::i8) {
    const uint64_t v = *reinterpret_cast<const uint64_t*>(from);
    e.word[0] = uint32_t(v), e.word[1] = uint32_t(v >> 32);
  } else {
    e.word[0] = *reinterpret_cast<const uint32_t*>(from);
  }
}

// One step of f16 or bf16: two products for each fragment, k in order.
template <Stored F, Order O>
RWKV_DEVICE void multiply_halves(const TileStage<F>& s, float (&acc)[4][4][4]) {
  const int l = tile_lane();
  // By columns: fragment 0 of the first k; the others are two times 16 bytes further each, in lines of 128.
  const int columns = column_place<F>((l / 16 * 8 + l % 8) * (kTile / 8) + first_output() / 8 + l / 8 % 2);
  uint32_t x[4][4];
#pragma unroll
  for (int n = 0; n < 4; n++)  // 8 tokens, and 8 k of 32 each
    load_tiles<false>(x[n], s.x + line_place(first_token() + n * 8 + l % 8, l / 8));
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int m = 0; m < 4; m++) {
      uint32_t a[4];  // outputs 0 to 7 and 8 to 15 at 8 k, then at the next 8
      if constexpr (O == Order::rows) {
        load_tiles<false>(a, s.w + line_place(first_output() + m * 16 + l % 16, i * 2 + l / 16));
      } else {
        load_tiles<true>(a, s.w + (columns ^ m * 32) + i * 16 * kTile * 2);
      }
#pragma unroll
      for (int n = 0; n < 4; n++) {
        const uint32_t b[2] = {x[n][2 * i], x[n][2 * i + 1]};
        multiply<F>(acc[m][n], a, b);
      }
    }
}

// The same of int8 or int4, which become halves exactly; lane t has k = 8 t to 8 t + 7. What a step, half of a group,
// adds up to is scaled.
template <Stored F, Order O>
RWKV_DEVICE void multiply_quantised(const TileStage<F>& s, float (&acc)[4][4][4]) {
  const int g = tile_lane() / 4, t = tile_lane() % 4;
  uint4 x[4];
#pragma unroll
  for (int n = 0; n < 4; n++) x[n] = *reinterpret_cast<const uint4*>(s.x + line_place(first_token() + n * 8 + g, t));
  Eight<F> eight[8];
  if constexpr (O == Order::columns) {
#pragma unroll
    for (int i = 0; i < 8; i++) read_eight<F>(s, t, i, eight[i]);
  }
#pragma unroll
  for (int m = 0; m < 4; m++) {
    uint32_t a[2][4];
    if constexpr (O == Order::rows) {
      uint4 w[2];
      read_rows<F>(s, m, w);
      weight_fragment<F>(w, 0, a[0]), weight_fragment<F>(w, 1, a[1]);
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++) a[i / 4][i % 4] = pair_of<F>(eight[i / 2 * 2], eight[i / 2 * 2 + 1], m, i % 2 != 0);
    }
    const int output = first_output() + (O == Order::rows ? m * kBlockRows + g : 8 * g + 2 * m);
    const float low = bf16_to_float(s.scales[output]);
    const float high = bf16_to_float(s.scales[output + (O == Order::rows ? 8 : 1)]);
#pragma unroll
    for (int n = 0; n < 4; n++) {
      float sum[4] = {};
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const uint32_t b[2] = {word(x[n], i * 2), word(x[n], i * 2 + 1)};
        multiply<F>(sum, a[i], b);
      }
#pragma unroll
      for (int i = 0; i < 4; i++) acc[m][n][i] = fmaf(i < 2 ? low : high, sum[i], acc[m][n][i]);
    }
  }
}

// float32 without tensor cores: a lane has the outputs and tokens that fragments would give it, and adds k after k.
template <Order O>
RWKV_DEVICE void multiply_floats_step(const TileStage<Stored::f32>& s, float (&acc)[4][4][4]) {
  const int g = tile_lane() / 4, t = tile_lane() % 4;
#pragma unroll 1
  for (int unit = 0; unit < 4; unit++) {
    float w[4][8];  // k, outputs: two of each fragment
#pragma unroll
    for (int i = 0; i < (O == Order::rows ? 8 : 4); i++) {
      if constexpr (O == Order::rows) {
        const int row = first_output() + i / 2 * kBlockRows + i % 2 * 8 + g;
        const uint4 v = *reinterpret_cast<const uint4*>(s.w + line_place(row, unit));
#pragma unroll
        for (int k = 0; k < 4; k++) w[k][i] = from_bits(word(v, k));
      } else {
        Eight<Stored::f32> e;
        read_eight<Stored::f32>(s, unit / 2, unit % 2 * 4 + i, e);
#pragma unroll
        for (int j = 0; j < 8; j++) w[i][j] = from_bits(e.word[j]);
      }
    }
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const int token = first_token() + n * 8 + 2 * t + j;
        const uint4 x = *reinterpret_cast<const uint4*>(s.x + line_place(token, unit));
#pragma unroll
        for (int k = 0; k < 4; k++)
#pragma unroll
          for (int i = 0; i < 8; i++) {
            float& to = acc[i / 2][n][i % 2 * 2 + j];
            to = fmaf(from_bits(word(x, k)), w[k][i], to);
          }
      }
  }
}

// The sums of half of the tokens come together in shared memory, from where whole lines are written: 8 lanes have 32
// outputs of a token, a warp those of 4 tokens.
template <Stored F, Order O>
RWKV_DEVICE void finish_tile(const LinearJobParams& q, TileShared<F>& s, const float (&acc)[4][4][4], int row,
                             int token) {
  constexpr int kHalf = kWarpTokens / 2;
  const int g = tile_lane() / 4, t = tile_lane() % 4;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    sync();  // whoever still reads the stages, or the first half
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        float* sums = s.sums[first_token() / 2 + n * 8 + 2 * t + j] + first_output();
        float v[8];
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = acc[i / 2][2 * half + n][i % 2 * 2 + j];
        if constexpr (kEights<F, O>) {
          *reinterpret_cast<float4*>(sums + 8 * g) = {v[0], v[1], v[2], v[3]};
          *reinterpret_cast<float4*>(sums + 8 * g + 4) = {v[4], v[5], v[6], v[7]};
        } else {
#pragma unroll
          for (int i = 0; i < 8; i++) sums[i / 2 * kBlockRows + i % 2 * 8 + g] = v[i];
        }
      }
    sync();
#pragma unroll 1
    for (int i = 0; i < kTile / 2 / kWarps; i++) {
      const int of = tile_warp() * (kTile / 2 / kWarps) + i / 4 * 4 + tile_lane() / 8,
                col = i % 4 * 32 + tile_lane() % 8 * 4;
      const float4 sum = *reinterpret_cast<const float4*>(s.sums[of] + col);
      float v[4] = {sum.x, sum.y, sum.z, sum.w};
      finish_four(q, token + of / kHalf * kWarpTokens + half * kHalf + of % kHalf, row + col, v);
    }
  }
}

// (tiles of tokens, tiles of outputs of all jobs) blocks.
template <Stored F, Order O>
RWKV_KERNEL void RWKV_BOUNDS(256, F == Stored::f32 ? 1 : kBlocksOf50KB) tile(PARAMS(LinearParams, p)) {
  SHARED(TileShared<F>, s);
  start();
  int job = 0;
  while (job + 1 < p.count && int(blockIdx.y) >= p.job[job + 1].first) job++;
  const LinearJobParams& q = p.job[job];
  const int row = (int(blockIdx.y) - q.first) * kTile, token = int(blockIdx.x) * kTile;
  const uint32_t steps = uint32_t(q.k) / TileStage<F>::kStep;
  const bool idle = row + first_output() >= q.n || token + first_token() >= q.tokens;  // all of a warp
  constexpr uint32_t kAhead = TileShared<F>::kStages - 1;
  float acc[4][4][4] = {};
  for (uint32_t i = 0; i < kAhead; i++) {
    if (i < steps) load_step<F, O>(q, s.stage[i], row, token, i);
    commit();
  }
#pragma unroll 1
  for (uint32_t i = 0; i < steps; i++) {
    wait<int(kAhead) - 1>();
    sync();  // the step is there, and nobody reads the one before any more
    const auto load_next = [&] {
      if (i + kAhead < steps) load_step<F, O>(q, s.stage[(i + kAhead) % (kAhead + 1)], row, token, i + kAhead);
      commit();
    };
    if constexpr (quantised(F)) {  // which have a stage more to wait with, and not a register
      if (!idle) multiply_quantised<F, O>(s.stage[i % (kAhead + 1)], acc);
      load_next();
      continue;
    }
    load_next();
    if (idle) continue;
    if constexpr (F == Stored::f32)
      multiply_floats_step<O>(s.stage[i % (kAhead + 1)], acc);
    else if constexpr (!quantised(F))
      multiply_halves<F, O>(s.stage[i % (kAhead + 1)], acc);
  }
  wait<0>();
  finish_tile<F, O>(q, s, acc, row, token);
}

}  // namespace rwkv::cuda
