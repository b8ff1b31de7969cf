// RWKV-7's recurrence for 64 rows of a head at once, on tensor cores: whatever of them does not depend on the state S
// in front, as Q, Y, E and N of Wkv7Piece. c_i sums the logarithms of the decays up to row i; rows of matrices are
//   a: -kk exp(c_(i-1)), r: r exp(c_i), k: k exp(-c_i), b: kk a exp(-c_i)
// and products of rows i with rows j are nothing but for j <= i, those of a for j < i:
//   Aab = a b', Aak = a k', Aqk = r k', Aqb = r b'
//   W = (I - Aab)^-1 a, U = (I - Aab)^-1 Aak V: what b is multiplied with is W S + U
//   Q = r + Aqb W, Y = Aqk V + Aqb U, E = exp(c_last) b' W, N = exp(c_last) (k' V + b' U)
// Exponentials stay in the range of halves: c counts from the middle of each 16 rows, and for products with rows before
// them from a point between. The inverse of 16 rows is made by substitution in float32, and W and U go from 16 rows to
// the next: powers of Aab would lose everything where a key repeats.
#pragma once
#include "cuda/kernels/fragments.cuh"
#include "cuda/kernels/wkv7_gates.cuh"

namespace rwkv::cuda {

// A power of two near a row's largest number, by which the row is divided.
RWKV_DEVICE float size_of(float largest) {
  const uint32_t exponent = bits(largest) & 0x7f800000u, least = 0x30000000u, most = 0x4f000000u;
  return from_bits(exponent < least ? least : exponent > most ? most : exponent);
}
RWKV_DEVICE float inverse_size(float size) { return from_bits(0x7f000000u - bits(size)); }

// Eight numbers of each lane, joined over the warp. Lane l gets the one that was v[l / 4].
template <class Join>
RWKV_DEVICE float join_eight(float (&v)[8], const Join& join) {
#pragma unroll
  for (int n = 4; n > 0; n /= 2) {
    const bool high = (lane() & 4 * n) != 0;
#pragma unroll
    for (int i = 0; i < n; i++) {
      const float mine = high ? v[i + n] : v[i], other = high ? v[i] : v[i + n];
      v[i] = join(mine, shuffle_xor(other, 4 * n));
    }
  }
  const float joined = join(v[0], shuffle_xor(v[0], 2));
  return join(joined, shuffle_xor(joined, 1));
}

// The numbers of eight rows, by a warp: a lane has channels l and l + 32.
RWKV_DEVICE void wkv7_rows(const Wkv7Params& p, const Wkv7Chunk& chunk, size_t channel, Wkv7ChunkShared& s,
                           Wkv7Piece& piece) {
  float squares[8] = {}, bonus[8] = {}, r_most[8] = {}, k_most[8] = {};
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const int row = warp() * 8 + i;
    if (row >= chunk.count) continue;
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const size_t c = channel + size_t(lane() + 32 * j), at = size_t(chunk.row + row) * size_t(p.ld) + c;
      const Wkv7Key x = wkv7_key(p, at, c, p.a[at]);
      const float r = p.r[at];
      squares[i] = fmaf(x.kk, x.kk, squares[i]);
      bonus[i] = fmaf(r * x.k, p.r_k[c], bonus[i]);
      r_most[i] = larger(fabsf(r), r_most[i]);
      k_most[i] = larger(fabsf(x.k), k_most[i]);
    }
  }
  const auto add = [](float a, float b) { return a + b; };
  const auto most = [](float a, float b) { return larger(a, b); };
  const float norm = inverse_norm(join_eight(squares, add)), share = join_eight(bonus, add);
  const float r_size = size_of(join_eight(r_most, most)), k_size = size_of(join_eight(k_most, most));
  if (lane() % 4 != 0) return;
  const int row = warp() * 8 + lane() / 4;
  s.norm[row] = norm, s.r_size[row] = r_size, s.k_size[row] = k_size;
  piece.bonus[row] = share * inverse_size(k_size) * kWkvUnit, piece.scale[row] = r_size * kWkvUnit;
}

// The decay from the middle of 16 rows to the middle of the next.
RWKV_DEVICE float wkv7_step(const Wkv7ChunkShared& s, int block, int channel) {
  return s.decay[2 * block + 1][channel] * s.decay[2 * block + 2][channel];
}

// A thread's channel of 16 rows: their decays between each and the middle, and over each half.
RWKV_DEVICE void wkv7_decays(const Wkv7Params& p, const Wkv7Chunk& chunk, size_t channel, int block, int d,
                             Wkv7ChunkShared& s, float (&decay)[16]) {
#pragma unroll
  for (int i = 0; i < 16; i++) {
    const int row = 16 * block + i;
    const size_t c = channel + size_t(d), at = size_t(chunk.row + row) * size_t(p.ld) + c;
    decay[i] = row < chunk.count ? wkv7_decay(p, c, p.w[at]) : 1.0f;
  }
  float before = 1, after = 1;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const float w = decay[7 - i];
    decay[7 - i] = before, before *= w;
    after *= decay[8 + i], decay[8 + i] = after;
  }
  s.decay[2 * block][d] = before, s.decay[2 * block + 1][d] = after;
}

// The values of a thread's channel of 16 rows. All are loaded before the first is stored.
RWKV_DEVICE void wkv7_write_values(const Wkv7Params& p, const Wkv7Chunk& chunk, size_t channel, int block, int d,
                                   const Wkv7ChunkShared& s, Wkv7Piece& piece) {
  const size_t c = channel + size_t(d), at = size_t(chunk.row + 16 * block) * size_t(p.ld) + c;
  float v[16];
#pragma unroll
  for (int i = 0; i < 16; i++) {
    const size_t of = at + size_t(i) * size_t(p.ld);
    v[i] = 16 * block + i < chunk.count ? wkv7_value(p, of, c, p.v_mix ? p.v_mix[of] : 0.0f) : 0.0f;
  }
  if (!p.v_mix)
#pragma unroll
    for (int i = 0; i < 16; i++)
      if (16 * block + i < chunk.count) p.v_first[at + size_t(i) * size_t(p.ld)] = v[i];
#pragma unroll
  for (int i = 0; i < 16; i++) v[i] *= s.k_size[16 * block + i] * (1.0f / kWkvUnit);
#pragma unroll
  for (int i = 0; i < 16; i += 2)
    *reinterpret_cast<uint32_t*>(half_of(piece.v[d / 16 * 4 + block], d % 16, i)) = floats_to_halves(v[i], v[i + 1]);
}

// The factors of all products, of a thread's channel of 16 rows.
RWKV_DEVICE void wkv7_factors(const Wkv7Params& p, const Wkv7Chunk& chunk, size_t channel, int block, int d,
                              const float (&decay)[16], Wkv7ChunkShared& s) {
  const float near = wkv7_step(s, block > 0 ? block - 1 : 0, d), far = near * wkv7_step(s, 1, d);
  float before = 1.0f / s.decay[2 * block][d];  // relative to the middle: what is there before the row
#pragma unroll
  for (int i = 0; i < 16; i++) {
    const int row = 16 * block + i;
    const size_t c = channel + size_t(d), at = size_t(chunk.row + row) * size_t(p.ld) + c;
    Wkv7Key x = {};
    float r = 0;
    if (row < chunk.count) x = wkv7_key(p, at, c, p.a[at]), r = p.r[at];
    const float inverse = 1.0f / decay[i], now = i < 8 ? inverse : decay[i], back = i < 8 ? decay[i] : inverse;
    const float kk = x.kk * s.norm[row];
    const float row_r = r * inverse_size(s.r_size[row]) * now, row_a = (0.0f - kk) * before;
    const float row_k = x.k * inverse_size(s.k_size[row]) * back, row_b = kk * x.a * back;
    const int to = half_place(row, d), moved = half_place(i, d);
    s.r[to] = float_to_half(row_r), s.a[to] = float_to_half(row_a);
    s.k[to] = float_to_half(row_k), s.b[to] = float_to_half(row_b);
    if (block > 0) {
      s.moved[block - 1][moved] = float_to_half(row_r * near);
      s.moved[block + 3][moved] = float_to_half(row_a * near);
    } else {
      s.moved[8][moved] = float_to_half(row_k * near);
      s.moved[9][moved] = float_to_half(row_b * near);
    }
    if (block == 3) {
      s.moved[3][moved] = float_to_half(row_r * far);
      s.moved[7][moved] = float_to_half(row_a * far);
    }
    before = now;
  }
}

// Products of rows with rows: kind, then block of 16 rows and 16 earlier ones.
constexpr int kQk = 0, kQb = 10, kAk = 20, kAb = 30;
RWKV_DEVICE int block_of(int row, int col) { return row * (row + 1) / 2 + col; }

RWKV_DEVICE void wkv7_products(Wkv7ChunkShared& s) {
  uint32_t found[5][4];
#pragma unroll
  for (int i = 0; i < 5; i++) {
    const int task = warp() + 8 * i, block = task % 10;
    const int row = block < 1 ? 0 : block < 3 ? 1 : block < 6 ? 2 : 3, col = block - block_of(row, 0);
    const bool of_r = task < kAk, with_k = task / 10 % 2 == 0;
    const int moved = row == 3 && col < 2 ? 3 : row - 1;  // between both
    const uint16_t* left = row == col ? (of_r ? s.r : s.a) + 16 * 64 * row : s.moved[of_r ? moved : moved + 4];
    const uint16_t* right = col == 0 && row > 1 ? s.moved[with_k ? 8 : 9] : (with_k ? s.k : s.b) + 16 * 64 * col;
    float d[2][4] = {};
#pragma unroll
    for (int k = 0; k < 4; k++) {
      uint32_t a[4], b[4];
      load_block<false>(a, left, 0, 16 * k);
      load_block<false>(b, right, 0, 16 * k);
      add_product(d, a, b);
    }
    if (row == col)
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const int r = lane() / 4 + j / 2 % 2 * 8, c = j / 4 * 8 + lane() % 4 * 2 + j % 2;
        if (c > r || (c == r && !of_r)) d[j / 4][j % 4] = 0;
        if (task >= kAb) s.diagonal[row][r][c] = d[j / 4][j % 4];
      }
    to_fragment(found[i], d);
  }
  sync();
#pragma unroll
  for (int i = 0; i < 5; i++) store_fragment(s.product[warp() + 8 * i], found[i]);
  sync();
}

// (I - Aab)^-1 - I of the four blocks of 16 rows, in the place of Aab's: a thread has a column.
RWKV_DEVICE void wkv7_inverse(Wkv7ChunkShared& s) {
  if (warp() < 2) {
    const int block = int(threadIdx.x) / 16, col = int(threadIdx.x) % 16;
    float x[16];
#pragma unroll
    for (int i = 0; i < 16; i++) {
      float sum = i == col ? 1.0f : 0.0f;
#pragma unroll
      for (int j = 0; j < i; j++) sum = fmaf(s.diagonal[block][i][j], x[j], sum);
      x[i] = sum;
      *half_of(s.product[kAb + block_of(block, block)], i, col) = float_to_half(i == col ? 0.0f : sum);
    }
  }
  sync();
}

// d += x A', of x's blocks up to (Whole) or before a block of rows.
template <bool Whole>
RWKV_DEVICE void add_blocks(float (&d)[2][4], const uint32_t (&x)[4][4], Wkv7ChunkShared& s, int kind, int row) {
#pragma unroll
  for (int col = 0; col < (Whole ? row + 1 : row); col++) {
    uint32_t b[4];
    load_fragment(b, s.product[kind + block_of(row, col)]);
    add_product(d, x[col], b);
  }
}
// x = (I - Aab)^-1 d for a block of rows, whose x before it are known; all transposed.
RWKV_DEVICE void solve_rows(uint32_t (&x)[4][4], float (&d)[2][4], Wkv7ChunkShared& s, int row) {
  add_blocks<false>(d, x, s, kAb, row);
  uint32_t right[4], inverse[4];
  to_fragment(right, d);
  load_fragment(inverse, s.product[kAb + block_of(row, row)]);
  add_product(d, right, inverse);
  to_fragment(x[row], d);
}
// Sums of 16 channels' columns, times what their decay is from the middle of 16 rows to the next or to the end.
RWKV_DEVICE void decay_columns(float (&d)[2][4], const Wkv7ChunkShared& s, int block, int channel) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int c = channel + i / 2 * 8 + lane() % 4 * 2 + i % 2;
    const float w = block < 3 ? wkv7_step(s, block, c) : s.decay[7][c];
    d[i / 2][i % 2] *= w, d[i / 2][i % 2 + 2] *= w;
  }
}

// W, Q and E of 16 keys, by a warp.
RWKV_DEVICE void wkv7_keys(int tile, Wkv7ChunkShared& s, Wkv7Piece& piece) {
  // Of the lane's keys: the decay from the first row to the middle of 16 rows.
  float low[4], high[4];
#pragma unroll
  for (int row = 0; row < 4; row++) {
    const int c = 16 * tile + lane() / 4;
    low[row] = row == 0 ? s.decay[0][c] : low[row - 1] * wkv7_step(s, row - 1, c);
    high[row] = row == 0 ? s.decay[0][c + 8] : high[row - 1] * wkv7_step(s, row - 1, c + 8);
  }
  if (lane() % 4 == 0) {
    const int c = 16 * tile + lane() / 4;
    piece.decay[c] = low[3] * s.decay[7][c], piece.decay[c + 8] = high[3] * s.decay[7][c + 8];
  }
  const auto from_rows = [&](float (&d)[2][4], const uint16_t* m, int row) {
    uint32_t x[4];
    load_block<true>(x, m, 16 * row, 16 * tile);
    from_fragment(d, x);
#pragma unroll
    for (int i = 0; i < 8; i++) d[i / 4][i % 4] *= i % 4 < 2 ? low[row] : high[row];
  };
  uint32_t w[4][4];
#pragma unroll
  for (int row = 0; row < 4; row++) {
    float d[2][4];
    from_rows(d, s.a, row);
    solve_rows(w, d, s, row);
  }
#pragma unroll
  for (int row = 0; row < 4; row++) {
    float d[2][4];
    from_rows(d, s.r, row);
    add_blocks<true>(d, w, s, kQb, row);
    store_turned(piece.q[4 * row + tile], d);
  }
#pragma unroll 1
  for (int key = 0; key < 4; key++) {
    float d[2][4] = {};
#pragma unroll
    for (int row = 0; row < 4; row++) {
      uint32_t b[4];
      load_block<true>(b, s.b, 16 * row, 16 * key);
      add_product(d, w[row], b);
      decay_columns(d, s, row, 16 * key);
    }
    store_turned(piece.e[4 * key + tile], d);
  }
}

// U, Y and N of 16 values, by a warp.
RWKV_DEVICE void wkv7_values(int tile, Wkv7ChunkShared& s, Wkv7Piece& piece) {
  uint32_t v[4][4], u[4][4];
#pragma unroll
  for (int row = 0; row < 4; row++) load_fragment(v[row], piece.v[4 * tile + row]);
#pragma unroll
  for (int row = 0; row < 4; row++) {
    float d[2][4] = {};
    add_blocks<true>(d, v, s, kAk, row);
    solve_rows(u, d, s, row);
  }
#pragma unroll
  for (int row = 0; row < 4; row++) {
    float d[2][4] = {};
    add_blocks<true>(d, v, s, kQk, row);
    add_blocks<true>(d, u, s, kQb, row);
#pragma unroll
    for (int n = 0; n < 2; n++) store_sums(piece.y[8 * tile + 2 * row + n], d[n]);
  }
#pragma unroll 1
  for (int key = 0; key < 4; key++) {
    float d[2][4] = {};
#pragma unroll
    for (int row = 0; row < 4; row++) {
      uint32_t b[4];
      load_block<true>(b, s.k, 16 * row, 16 * key);
      add_product(d, v[row], b);
      load_block<true>(b, s.b, 16 * row, 16 * key);
      add_product(d, u[row], b);
      decay_columns(d, s, row, 16 * key);
    }
#pragma unroll
    for (int n = 0; n < 2; n++) store_sums(piece.n[8 * tile + 2 * key + n], d[n]);
  }
}

// (heads, chunks) blocks.
RWKV_KERNEL void RWKV_BOUNDS(256, 2) wkv7_chunk(PARAMS(Wkv7ChunkParams, p)) {
  SHARED(Wkv7ChunkShared, s);
  start();
  const int head = int(blockIdx.x), block = warp() / 2, d = warp() % 2 * 32 + lane();
  const size_t channel = size_t(head) * 64;
  const Wkv7Chunk chunk = p.chunk[blockIdx.y];
  Wkv7Piece& piece = p.piece[size_t(blockIdx.y) * size_t(p.wkv.heads) + size_t(head)];
  float decay[16];
  wkv7_rows(p.wkv, chunk, channel, s, piece);
  wkv7_decays(p.wkv, chunk, channel, block, d, s, decay);
  sync();
  wkv7_write_values(p.wkv, chunk, channel, block, d, s, piece);
  wkv7_factors(p.wkv, chunk, channel, block, d, decay, s);
  sync();
  wkv7_products(s);
  wkv7_inverse(s);
  if (warp() < 4)
    wkv7_keys(warp(), s, piece);
  else
    wkv7_values(warp() - 4, s, piece);
}

}  // namespace rwkv::cuda
