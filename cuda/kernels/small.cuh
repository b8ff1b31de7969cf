// Products with up to 64 tokens, W by rows. Whatever the number of tokens, tiles and jobs, an output is summed in one
// order: warp w takes the blocks of k from w/8 to (w + 1)/8 of them, in order; the eight sums are joined in order. So a
// row of a batch has the same bits in any batch.
//
// Weights are the 16 rows of a tensor-core product, tokens its 8 columns; with fewer tokens columns are zeros. A
// lane loads 16 bytes of rows g and g + 8 and of token g: with those, product i has k in the order in which lanes hold
// them (layout.h). int8 and int4 become halves exactly, are summed for a group of 64 and then scaled.
#pragma once
#include "cuda/kernels/finish.cuh"

namespace rwkv::cuda {

template <Stored F>
RWKV_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (F == Stored::bf16)
    mma_bf16(d, a, b);
  else
    mma_f16(d, a, b);
}

RWKV_DEVICE uint32_t word(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// The `chunk`-th 16 bytes of a token's row of an operand; zeros for tokens that are not there.
RWKV_DEVICE uint4 load_operand(const LinearJobParams& q, int block, int token, int chunk) {
  if (token >= q.tokens) return {0, 0, 0, 0};
  const auto* x = static_cast<const unsigned char*>(q.x);
  return *reinterpret_cast<const uint4*>(x + (size_t(block) * size_t(q.rows8) + size_t(token)) * kChunk + chunk * 16);
}

// Product i of a lane's bytes of a block: rows g and g + 8 in turn, first halves of words and then second ones.
template <Stored F>
RWKV_DEVICE void weight_fragment(const uint4 (&w)[2], int i, uint32_t (&a)[4]) {
  if constexpr (F == Stored::i8) {  // bytes n + 128 become halves 1024 + 128 + n
    for (int r = 0; r < 2; r++) {
      a[r] = subtract_halves(permute(word(w[r], i), 0x64646464u, 0x4140), 0x64806480u);
      a[2 + r] = subtract_halves(permute(word(w[r], i), 0x64646464u, 0x4342), 0x64806480u);
    }
  } else if constexpr (F == Stored::i4) {  // a lane's 16 bytes hold both rows
    for (int r = 0; r < 2; r++) {
      const uint32_t nibbles = word(w[0], 2 * r + i / 2) >> (i % 2 * 8);
      a[r] = subtract_halves((nibbles & 0x000f000fu) | 0x64006400u, 0x64086408u);
      a[2 + r] = subtract_halves((nibbles >> 4 & 0x000f000fu) | 0x64006400u, 0x64086408u);
    }
  } else {
    a[0] = word(w[0], 2 * i), a[1] = word(w[1], 2 * i);
    a[2] = word(w[0], 2 * i + 1), a[3] = word(w[1], 2 * i + 1);
  }
}

// One block of k of MT blocks of rows, for NT tiles of 8 tokens, of whose operand(block, token, chunk) are 16 bytes.
template <Stored F, int NT, int MT, class Operand>
RWKV_DEVICE void multiply_block(const LinearJobParams& q, int tile, int block, float (&acc)[MT][NT][4],
                                const Operand& operand) {
  constexpr int kProducts = quantised(F) ? 4 : 2, kOperands = kProducts / 2;  // 16 bytes of a token feed two products
  const int blocks = q.k / block_k(F), g = lane() / 4, t = lane() % 4;
  const auto* weights = static_cast<const unsigned char*>(q.w);
  uint4 w[MT][2], x[NT][kOperands];
#pragma unroll
  for (int m = 0; m < MT; m++) {
    const unsigned char* all = weights + size_t(tile + m) * size_t(blocks) * block_bytes(F) + lane() * 16;
    const unsigned char* from = all + size_t(block) * block_bytes(F);
    w[m][0] = load_stream(from);
    if constexpr (F != Stored::i4) w[m][1] = load_stream(from + 512);
  }
#pragma unroll
  for (int n = 0; n < NT; n++)
#pragma unroll
    for (int i = 0; i < kOperands; i++)
      x[n][i] = quantised(F) ? operand(2 * block + t / 2, n * 8 + g, t % 2 * 2 + i) : operand(block, n * 8 + g, t);
#pragma unroll
  for (int m = 0; m < MT; m++) {
    float group[NT][4] = {};
#pragma unroll
    for (int i = 0; i < kProducts; i++) {
      uint32_t a[4];
      weight_fragment<F>(w[m], i, a);
#pragma unroll
      for (int n = 0; n < NT; n++) {
        const uint32_t b[2] = {word(x[n][i / 2], i % 2 * 2), word(x[n][i / 2], i % 2 * 2 + 1)};
        multiply<F>(quantised(F) ? group[n] : acc[m][n], a, b);
      }
    }
    if constexpr (quantised(F)) {
      const auto* scales = reinterpret_cast<const uint16_t*>(weights + number_bytes(F, q.n, q.k)) +
                           (size_t(tile + m) * size_t(blocks) + size_t(block)) * kBlockRows;
      const float low = bf16_to_float(scales[g]), high = bf16_to_float(scales[g + 8]);
#pragma unroll
      for (int n = 0; n < NT; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) acc[m][n][i] = fmaf(i < 2 ? low : high, group[n][i], acc[m][n][i]);
    }
  }
}

// float32 has no tensor cores that keep its precision: a lane adds its 4 k of rows g and g + 8 for all tokens, the four
// lanes of a row join at the end, and the sums go where a fragment would have them.
template <int NT>
RWKV_DEVICE void multiply_floats(const LinearJobParams& q, int tile, int begin, int end, float (&acc)[1][NT][4]) {
  const int blocks = q.k / 16, t = lane() % 4;
  float sum[2][NT * 8] = {};
#pragma unroll(NT == 1 ? 2 : 1)
  for (int block = begin; block < end; block++) {
    const unsigned char* from =
        static_cast<const unsigned char*>(q.w) + (size_t(tile) * size_t(blocks) + size_t(block)) * 1024 + lane() * 16;
    const uint4 w[2] = {load_stream(from), load_stream(from + 512)};
#pragma unroll
    for (int n = 0; n < NT * 8; n++) {
      const uint4 x = load_operand(q, block, n, t);
#pragma unroll
      for (int r = 0; r < 2; r++)
#pragma unroll
        for (int i = 0; i < 4; i++) sum[r][n] = fmaf(from_bits(word(x, i)), from_bits(word(w[r], i)), sum[r][n]);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; r++)
#pragma unroll
    for (int n = 0; n < NT * 8; n++) {
      float v = sum[r][n] + shuffle_xor(sum[r][n], 1);
      v += shuffle_xor(v, 2);
      if (n % 8 / 2 == t) acc[0][n / 8][2 * r + n % 2] = v;
    }
}

// A warp's share of k, in blocks.
struct Share {
  int blocks, begin, end;  // blocks: of all
};
RWKV_DEVICE Share share_of(const LinearJobParams& q, Stored f) {
  const int blocks = q.k / block_k(f);
  return {blocks, blocks * warp() / kWarps, blocks * (warp() + 1) / kWarps};
}
// The beginning of a warp's weights, on their way while the kernel waits for its operand.
RWKV_DEVICE void prefetch_ahead(const void* weights, size_t from, int bytes) {
  constexpr int kLine = 128, kMost = 8192;
  for (int i = lane() * kLine; i < bytes && i < kMost; i += 32 * kLine)
    prefetch(static_cast<const unsigned char*>(weights) + from + size_t(i));
}
template <Stored F>
RWKV_DEVICE void prefetch_share(const LinearJobParams& q, int tile, const Share& k) {
  prefetch_ahead(q.w, (size_t(tile) * size_t(k.blocks) + size_t(k.begin)) * block_bytes(F),
                 (k.end - k.begin) * block_bytes(F));
}

template <Stored F>
struct StoredAs {
  static constexpr Stored value = F;
};
// work(StoredAs<F>()), or with what a job's weights are stored as beside those of int8 and int4.
template <Stored F, class Work>
RWKV_DEVICE void as_stored(const LinearJobParams& q, const Work& work) {
  if (quantised(F) && q.stored == uint16_t(Stored::f16))
    work(StoredAs<Stored::f16>());
  else if (quantised(F) && q.stored == uint16_t(Stored::bf16))
    work(StoredAs<Stored::bf16>());
  else
    work(StoredAs<F>());
}

// Left to itself, the compiler wants two blocks a processor of int4 with four tiles on 10.0, and spills.
template <Stored F, int NT, int MT>
RWKV_KERNEL void RWKV_BOUNDS(256, NT == 4 && quantised(F) ? 1 : 0) small(PARAMS(LinearParams, p)) {
  SHARED(FinishShared<MT>, s);
  int job = 0;
  while (job + 1 < p.count && int(blockIdx.x) >= p.job[job + 1].first) job++;
  const LinearJobParams& q = p.job[job];
  const int tile = (int(blockIdx.x) - q.first) * MT;
  let_next_start();
  as_stored<F>(q, [&](auto stored) {
    const Share k = share_of(q, stored.value);
#pragma unroll
    for (int m = 0; m < MT; m++) prefetch_share<stored.value>(q, tile + m, k);
  });
  wait_for_previous();
  float acc[MT][NT][4] = {};
  if constexpr (F == Stored::f32) {
    const Share k = share_of(q, F);
    multiply_floats<NT>(q, tile, k.begin, k.end, acc);
  } else {
    as_stored<F>(q, [&](auto stored) {
      const Share k = share_of(q, stored.value);
#pragma unroll(NT == 8 ? 1 : 2)  // the widest have no registers to spare
      for (int block = k.begin; block < k.end; block++)
        multiply_block<stored.value, NT, MT>(
            q, tile, block, acc, [&](int b, int token, int chunk) { return load_operand(q, b, token, chunk); });
    });
  }
#pragma unroll
  for (int n = 0; n < NT; n++) {
    if (n * 8 >= q.tokens) break;
    float d[MT][4];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int i = 0; i < 4; i++) d[m][i] = acc[m][n][i];
    finish<1>(q, s, d, tile * kBlockRows, n * 8);
  }
}

}  // namespace rwkv::cuda
