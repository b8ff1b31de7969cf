// What is left of RWKV-7's recurrence once wkv7_chunk has made the pieces: the state from chunk to chunk, and from the
// states in front of them all results.
#pragma once
#include "cuda/kernels/fragments.cuh"
#include "cuda/kernels/heads.cuh"
#include "cuda/kernels/wkv7_gates.cuh"

namespace rwkv::cuda {

// Block (value / 16, key / 16) of the state in front of a chunk, as halves: where each lane has read its sums of N.
RWKV_DEVICE uint32_t (&carried(Wkv7Piece& piece, int value, int key))[32][4] {
  return *reinterpret_cast<uint32_t (*)[32][4]>(piece.n[8 * value + 2 * key]);
}

// A piece's numbers for 16 values, in a warp's registers.
struct Wkv7Next {
  uint32_t e[4][4][4];  // [key of the next state][key]
  float n[4][2][4];
  float decay[4][4];
};
RWKV_DEVICE void load_summands(Wkv7Next& x, const Wkv7Piece& piece, int tile) {
#pragma unroll
  for (int key = 0; key < 4; key++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i < 2) load_sums(x.n[key][i], piece.n[8 * tile + 2 * key + i]);
      x.decay[key][i] = piece.decay[16 * key + i / 2 * 8 + lane() % 4 * 2 + i % 2];
    }
}
RWKV_DEVICE void load_factors(Wkv7Next& x, const Wkv7Piece& piece, int key) {
#pragma unroll
  for (int i = 0; i < 4; i++) load_fragment(x.e[key][i], piece.e[4 * key + i]);
}

// (heads, runs, 2) blocks; a warp has 16 values of the state and all of its keys, and needs no other. It loads of the
// next chunk while it multiplies with this one.
template <class S>
RWKV_KERNEL void RWKV_BOUNDS(64) wkv7_carry(PARAMS(Wkv7ChunkParams, p)) {
  start();
  const Wkv7Run run = p.run[blockIdx.y];
  const int head = int(blockIdx.x), tile = int(blockIdx.z) * 2 + warp();
  const size_t heads = size_t(p.wkv.heads);
  Wkv7Piece* piece = p.piece + size_t(run.first) * heads + size_t(head);
  const HeadState<S> states = head_state_of<S>(p.wkv, run.sequence);
  // Of sum i of 16 keys.
  const auto place = [&](int key, int i) {
    const int value = 16 * tile + lane() / 4 + i % 4 / 2 * 8;
    return value * 64 + 16 * key + i / 4 * 8 + lane() % 4 * 2 + i % 2;
  };
  float state[4][2][4];
  Wkv7Next x;
#pragma unroll
  for (int key = 0; key < 4; key++) {
    load_factors(x, *piece, key);
#pragma unroll
    for (int i = 0; i < 8; i++) state[key][i / 4][i % 4] = kept(states.src[place(key, i)]) * (1.0f / kWkvUnit);
  }
  load_summands(x, *piece, tile);
#pragma unroll 1
  for (int i = 0; i < run.chunks; i++) {
    uint32_t before[4][4];
#pragma unroll
    for (int key = 0; key < 4; key++) {
      to_fragment(before[key], state[key]);
      store_fragment(carried(*piece, tile, key), before[key]);
#pragma unroll
      for (int j = 0; j < 8; j++)
        state[key][j / 4][j % 4] =
            fmaf(state[key][j / 4][j % 4], x.decay[key][j / 4 * 2 + j % 2], x.n[key][j / 4][j % 4]);
    }
    if (i + 1 < run.chunks) {
      piece += heads;
      load_summands(x, *piece, tile);
    }
#pragma unroll
    for (int key = 0; key < 4; key++) {
#pragma unroll
      for (int j = 0; j < 4; j++) add_product(state[key], before[j], x.e[key][j]);
      if (i + 1 < run.chunks) load_factors(x, *piece, key);
    }
  }
#pragma unroll
  for (int key = 0; key < 4; key++)
#pragma unroll
    for (int i = 0; i < 8; i++) states.dst[place(key, i)] = to_keep<S>(state[key][i / 4][i % 4] * kWkvUnit);
}

// Over the eight rows of a fragment, which are lanes l, l + 4, ...
RWKV_DEVICE float sum_rows(float v) {
  for (int mask = 4; mask < 32; mask *= 2) v += shuffle_xor(v, mask);
  return v;
}

// (heads, chunks) blocks; a warp has 16 rows.
RWKV_KERNEL void RWKV_BOUNDS(128) wkv7_chunk_out(PARAMS(Wkv7ChunkParams, p)) {
  const Wkv7Params& w = p.wkv;
  start();
  const int head = int(blockIdx.x), row = warp();
  const Wkv7Chunk chunk = p.chunk[blockIdx.y];
  Wkv7Piece& piece = p.piece[size_t(blockIdx.y) * size_t(w.heads) + size_t(head)];
  if (16 * row >= chunk.count) return;
  float y[4][2][4];
  uint32_t v[4][4];
#pragma unroll
  for (int value = 0; value < 4; value++) {
    load_fragment(v[value], piece.v[4 * value + row]);
#pragma unroll
    for (int n = 0; n < 2; n++) load_sums(y[value][n], piece.y[8 * value + 2 * row + n]);
  }
#pragma unroll
  for (int key = 0; key < 4; key++) {
    uint32_t q[4], state[4];
    load_fragment(q, piece.q[4 * row + key]);
#pragma unroll
    for (int value = 0; value < 4; value++) {
      load_fragment(state, carried(piece, value, key));
      add_product(y[value], state, q);
    }
  }
  // A lane has 8 values of each of four rows.
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int t = 16 * row + i / 2 * 8 + lane() % 4 * 2 + i % 2;
    const float scale = piece.scale[t], bonus = piece.bonus[t];
    float found[8], sum = 0, squares = 0;
#pragma unroll
    for (int j = 0; j < 8; j++) found[j] = y[j / 2][i / 2][j % 2 * 2 + i % 2] * scale, sum += found[j];
    Moments m = {64.0f, sum_rows(sum) / 64.0f, 0.0f};
#pragma unroll
    for (int j = 0; j < 8; j++) squares = fmaf(found[j] - m.mean, found[j] - m.mean, squares);
    m.squares = sum_rows(squares);
    const float norm = scale_of(m, w.out.eps);
    if (t >= chunk.count) continue;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const size_t c = size_t(head) * 64 + size_t(8 * j + lane() / 4), to = size_t(chunk.row + t);
      const float value = half_to_float(uint16_t(v[j / 2][j % 2 + i / 2 * 2] >> i % 2 * 16));
      const float result = fmaf(bonus, value, normed(found[j], m, norm, w.out.weight[c], w.out.bias[c]));
      store_operand(w.y, int(to), int(c), result * w.g[to * size_t(w.ld) + c]);
    }
  }
}

}  // namespace rwkv::cuda
