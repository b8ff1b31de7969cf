// RWKV-6's and 7's recurrences for sequences of one row each, together with the products in front that lead out of the
// low ranks: of those a head needs its 64 outputs. A block has some sequences of a head, which are the columns of its
// products, and loads the weights once for them. The bits are those of `small` and `wkv6_64` or `wkv7_64`, one after
// the other.
#pragma once
#include "cuda/kernels/small.cuh"
#include "cuda/kernels/wkv6.cuh"
#include "cuda/kernels/wkv7.cuh"

namespace rwkv::cuda {

// Which of the warps that share k in `small` has a block of it.
RWKV_DEVICE int owner_of(int block, int blocks) { return (kWarps * block + kWarps - 1) / blocks; }

// 16 outputs of 8 tokens by one warp: the sums of all those warps, joined in their order. Several blocks of k are on
// their way at a time.
template <Stored F>
RWKV_DEVICE void multiply_alone(const LinearJobParams& q, int tile, float (&total)[4]) {
  const int blocks = q.k / block_k(F);
  if constexpr (F == Stored::f32) {
    for (int w = 0; w < kWarps; w++) {
      float sum[1][1][4] = {};
      multiply_floats<1>(q, tile, blocks * w / kWarps, blocks * (w + 1) / kWarps, sum);
      for (int i = 0; i < 4; i++) total[i] += sum[0][0][i];
    }
  } else {
    constexpr int kAhead = 4;
    const unsigned char* weights =
        static_cast<const unsigned char*>(q.w) + size_t(tile) * size_t(blocks) * block_bytes(F) + lane() * 16;
    float sum[4] = {};
#pragma unroll 1
    for (int first = 0; first < blocks; first += kAhead) {
      uint4 w[kAhead][2], x[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; i++) {
        if (first + i >= blocks) continue;
        const unsigned char* from = weights + size_t(first + i) * block_bytes(F);
        w[i][0] = load_stream(from), w[i][1] = load_stream(from + 512);
        x[i] = load_operand(q, first + i, lane() / 4, lane() % 4);
      }
#pragma unroll
      for (int i = 0; i < kAhead; i++) {
        const int block = first + i;
        if (block >= blocks) continue;
#pragma unroll
        for (int j = 0; j < 2; j++) {
          uint32_t a[4];
          weight_fragment<F>(w[i], j, a);
          const uint32_t b[2] = {word(x[i], 2 * j), word(x[i], 2 * j + 1)};
          multiply<F>(sum, a, b);
        }
        if (owner_of(block, blocks) == owner_of(block + 1, blocks)) continue;
#pragma unroll
        for (int j = 0; j < 4; j++) total[j] += sum[j], sum[j] = 0;
      }
    }
  }
}

RWKV_DEVICE int jobs_of(const Wkv6Params&) { return 1; }
RWKV_DEVICE int jobs_of(const Wkv7Params& p) { return p.v_mix ? 4 : 3; }

// Four warps multiply for RWKV-7's gate, the largest of the ranks, and four for all others; each has 16 outputs.
RWKV_DEVICE bool is_mine(int job) { return (job == kLowGate) == (warp() < 4); }
RWKV_DEVICE int tile_of_head() { return int(blockIdx.x) * 4 + warp() % 4; }

template <Stored F, class P, int Jobs>
RWKV_DEVICE void prefetch_jobs(const WkvDecodeParams<P, Jobs>& p) {
  for (int i = 0; i < jobs_of(p.wkv); i++) {
    const int bytes = p.job[i].k / block_k(F) * block_bytes(F);
    if (is_mine(i)) prefetch_ahead(p.job[i].w, size_t(tile_of_head()) * size_t(bytes), bytes);
  }
}

// (heads, sequences / group) blocks.
template <Stored F, class S, class P, class V, int Jobs>
RWKV_DEVICE void decode(const WkvDecodeParams<P, Jobs>& p, WkvDecodeShared<V, Jobs>& s) {
  const int first = int(blockIdx.y) * p.group, rest = p.wkv.step.sequences - first,
            count = rest < p.group ? rest : p.group, jobs = jobs_of(p.wkv);
  const int row = int(threadIdx.x) / 4, q = int(threadIdx.x) % 4;
  float4 state[4];
  load_row(state, head_state_of<S>(p.wkv, first).src, row, q);
  for (int i = 0; i < jobs; i++) {
    if (!is_mine(i)) continue;
    LinearJobParams job = p.job[i];
    job.x = static_cast<const unsigned char*>(job.x) + first * kChunk, job.tokens = count;
    float d[4] = {};
    multiply_alone<F>(job, tile_of_head(), d);
#pragma unroll
    for (int j = 0; j < 4; j++)
      s.low[i][lane() % 4 * 2 + j % 2][warp() % 4 * kBlockRows + j / 2 * 8 + lane() / 4] = d[j];
  }
  sync();
  const size_t channel = size_t(blockIdx.x) * 64;
  if (warp() < count)
    make_vectors(p.wkv, channel, first + warp(), s.token[warp()],
                 [&](int job, int i, size_t) { return job < jobs ? s.low[job][warp()][i] : 0.0f; });
  sync();
  for (int i = 0; i < count; i++) {
    float4 next[4] = {};
    if (i + 1 < count) load_row(next, head_state_of<S>(p.wkv, first + i + 1).src, row, q);
    const float y = step_row<S>(s.token[i], row, q, state);
    if (q == 0) s.y[i][row] = y;
    store_row(head_state_of<S>(p.wkv, first + i).dst, row, q, state);
#pragma unroll
    for (int m = 0; m < 4; m++) state[m] = next[m];
  }
  sync();
  if (warp() < count) finish_token(p.wkv, channel, first + warp(), s.token[warp()], s.y[warp()]);
}

template <Stored F, class S>
RWKV_KERNEL void RWKV_BOUNDS(256, F == Stored::f32 ? 1 : 2) wkv6_decode(PARAMS(Wkv6DecodeParams, p)) {
  SHARED(Wkv6DecodeShared, s);
  let_next_start();
  prefetch_jobs<F>(p);
  wait_for_previous();
  decode<F, S>(p, s);
}
template <Stored F, class S>
RWKV_KERNEL void RWKV_BOUNDS(256, F == Stored::f32 ? 1 : 2) wkv7_decode(PARAMS(Wkv7DecodeParams, p)) {
  SHARED(Wkv7DecodeShared, s);
  let_next_start();
  prefetch_jobs<F>(p);
  wait_for_previous();
  decode<F, S>(p, s);
}

}  // namespace rwkv::cuda
