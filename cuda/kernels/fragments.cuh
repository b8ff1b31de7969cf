// Blocks of 16 rows and 16 columns as tensor cores take them: a fragment is a lane's words of the left factor
// (m16n8k16), and of the right one too, whose transpose has the same. So what a product gives is a factor of the next
// one at once.
#pragma once
#include "cuda/kernels/gpu.h"

namespace rwkv::cuda {

// d += a b', all 16 x 16. Sums [n] are of columns 8 n to 8 n + 7.
RWKV_DEVICE void add_product(float (&d)[2][4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
#pragma unroll
  for (int n = 0; n < 2; n++) {
    const uint32_t columns[2] = {b[n], b[n + 2]};
    mma_f16(d[n], a, columns);
  }
}
RWKV_DEVICE void to_fragment(uint32_t (&to)[4], const float (&d)[2][4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) to[i] = floats_to_halves(d[i / 2][i % 2 * 2], d[i / 2][i % 2 * 2 + 1]);
}
RWKV_DEVICE void from_fragment(float (&d)[2][4], const uint32_t (&from)[4]) {
#pragma unroll
  for (int i = 0; i < 8; i++) d[i / 4][i % 4] = half_to_float(uint16_t(from[i / 2] >> i % 2 * 16));
}

// A lane's 16 bytes of a fragment, or of eight columns of sums.
RWKV_DEVICE void load_fragment(uint32_t (&to)[4], const uint32_t (&from)[32][4]) {
  const uint4 v = *reinterpret_cast<const uint4*>(from[lane()]);
  to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}
RWKV_DEVICE void store_fragment(uint32_t (&to)[32][4], const uint32_t (&v)[4]) {
  *reinterpret_cast<uint4*>(to[lane()]) = uint4{v[0], v[1], v[2], v[3]};
}
RWKV_DEVICE void load_sums(float (&to)[4], const float (&from)[32][4]) {
  const float4 v = *reinterpret_cast<const float4*>(from[lane()]);
  to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}
RWKV_DEVICE void store_sums(float (&to)[32][4], const float (&v)[4]) {
  *reinterpret_cast<float4*>(to[lane()]) = float4{v[0], v[1], v[2], v[3]};
}
// The same block's transpose.
RWKV_DEVICE void store_turned(uint32_t (&to)[32][4], const float (&d)[2][4]) {
  uint32_t v[4];
  to_fragment(v, d);
  const uint32_t turned[4] = {turn_tile(v[0]), turn_tile(v[2]), turn_tile(v[1]), turn_tile(v[3])};
  store_fragment(to, turned);
}
// Where half (row, col) of a block is.
RWKV_DEVICE uint16_t* half_of(uint32_t (&fragment)[32][4], int row, int col) {
  uint32_t* word = &fragment[row % 8 * 4 + col % 8 / 2][row / 8 + col / 8 * 2];
  return reinterpret_cast<uint16_t*>(word) + col % 2;
}

// Matrices of rows of 64 halves in shared memory. 16 bytes are moved, so that those of eight rows at the same columns
// lie in different banks.
RWKV_DEVICE int half_place(int row, int col) { return row * 64 + (col / 8 ^ row % 8) * 8 + col % 8; }
// The block from (row, col) on, or its transpose.
template <bool Turned>
RWKV_DEVICE void load_block(uint32_t (&to)[4], const uint16_t* m, int row, int col) {
  const int l = lane(), low = l / 8 % 2 * 8, high = l / 16 * 8;
  load_tiles<Turned>(to, m + half_place(row + l % 8 + (Turned ? high : low), col + (Turned ? low : high)));
}

}  // namespace rwkv::cuda
