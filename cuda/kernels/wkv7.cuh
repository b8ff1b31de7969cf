// RWKV-7's recurrence with everything that happens inside a head; formulas in model/rwkv7.h.
//
// wkv7 takes heads of any size: a thread has a row of the state, the keys of one value, in global memory, and adds over
// them in ascending order, as the CPU does. wkv7_64 keeps the state in registers.
#pragma once
#include "cuda/kernels/heads64.cuh"
#include "cuda/kernels/wkv7_gates.cuh"

namespace rwkv::cuda {

RWKV_DEVICE int sequence_of(const Wkv7Params& p) { return p.sequences ? p.sequences[blockIdx.y] : int(blockIdx.y); }

template <class S>
RWKV_KERNEL void RWKV_BOUNDS(256, 3) wkv7(PARAMS(Wkv7Params, p)) {
  SHARED(WkvShared, s);
  start();
  const Head head = head_of(p, sequence_of(p));
  const HeadState<S> states = head_state_of<S>(p, sequence_of(p));
  const int n = p.n, first = int(threadIdx.x), stride = int(blockDim.x);
  for (int t = head.begin; t < head.end; t++) {
    const size_t at = size_t(t) * size_t(p.ld) + head.channel;
    const S* src = t == head.begin ? states.src : states.dst;
    float squares = 0, bonus = 0;
    for (int i = first; i < n; i += stride) {
      const size_t c = head.channel + size_t(i);
      const Wkv7Channel x = wkv7_channel(p, at + size_t(i), c, wkv7_low(p, at + size_t(i)));
      s.r[i] = x.r, s.w[i] = x.w, s.k[i] = x.k, s.v[i] = x.v, s.kk[i] = x.kk, s.b[i] = x.a;
      squares = fmaf(x.kk, x.kk, squares);
      bonus = fmaf(x.r * x.k, p.r_k[c], bonus);
    }
    const float norm = inverse_norm(sum_block(squares, s.part));
    for (int i = first; i < n; i += stride) {
      s.kk[i] *= norm;
      s.b[i] = 0.0f - s.kk[i] * s.b[i];
    }
    bonus = sum_block(bonus, s.part);
    for (int j = first; j < n; j += stride) {
      const float v = s.v[j];
      const S* from = src + size_t(j) * size_t(n);
      S* to = states.dst + size_t(j) * size_t(n);
      float removed = 0, y = 0;
      for (int i = 0; i < n; i++) removed = fmaf(s.kk[i], kept(from[i]), removed);
      for (int i = 0; i < n; i++) {
        const float state = fmaf(s.k[i], v, fmaf(s.b[i], removed, s.w[i] * kept(from[i])));
        to[i] = to_keep<S>(state);
        y = fmaf(s.r[i], state, y);
      }
      s.y[j] = y;
    }
    const Moments m = block_moments(s.y, n, s.part);
    const float scale = scale_of(m, p.out.eps);
    for (int i = first; i < n; i += stride) {
      const size_t c = head.channel + size_t(i);
      const float v = normed(s.y[i], m, scale, p.out.weight[c], p.out.bias[c]);
      store_operand(p.y, t, int(c), fmaf(bonus, s.v[i], v) * p.g[at + size_t(i)]);
    }
  }
  zero_padding(p, head);
}

RWKV_DEVICE float number_of_job(const Wkv7Params& p, int job, size_t at) {
  if (job == 3) return p.v_mix ? p.v_mix[at] : 0.0f;
  return job == 0 ? p.w[at] : job == 1 ? p.a[at] : p.g[at];
}
// A lane has channels l and l + 32.
template <class Low>
RWKV_DEVICE void make_vectors(const Wkv7Params& p, size_t channel, int t, Wkv7Vectors& o, const Low& low) {
  const size_t at = size_t(t) * size_t(p.ld) + channel;
  Wkv7Low lows[2];
  Wkv7Channel x[2];
  float squares = 0, bonus = 0;
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const size_t i = size_t(lane() + 32 * j);
    const auto number = [&](int job) { return low(job, int(i), at + i); };
    lows[j] = {number(0), number(1), number(kLowGate), number(3)};
    x[j] = wkv7_channel(p, at + i, channel + i, lows[j]);
    squares = fmaf(x[j].kk, x[j].kk, squares);
    bonus = fmaf(x[j].r * x[j].k, p.r_k[channel + i], bonus);
  }
  const float norm = inverse_norm(sum_lanes(squares));
  bonus = sum_lanes(bonus);
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const int i = lane() + 32 * j;
    const float kk = x[j].kk * norm;
    o.r[i] = x[j].r, o.w[i] = x[j].w, o.k[i] = x[j].k, o.v[i] = x[j].v, o.kk[i] = kk, o.b[i] = 0.0f - kk * x[j].a;
    o.g[i] = lows[j].g;
  }
  if (lane() == 0) o.bonus = bonus;
}

// Group norm, bonus and gate.
RWKV_DEVICE void finish_token(const Wkv7Params& p, size_t channel, int t, const Wkv7Vectors& x, const float* y) {
  norm_head(p, channel, t, y, [&](int i, float v) { return fmaf(x.bonus, x.v[i], v) * x.g[i]; });
}

RWKV_DEVICE float take_token(const Wkv7Vectors& x, int row, int q, float4 (&state)[4]) {
  float removed = 0, y = 0;
#pragma unroll
  for (int m = 0; m < 4; m++) removed = add_product(keys_of(x.kk, q, m), state[m], removed);
  removed = sum_four(removed);
  const float v = x.v[row];
#pragma unroll
  for (int m = 0; m < 4; m++) {
    const float4 w = keys_of(x.w, q, m), k = keys_of(x.k, q, m), b = keys_of(x.b, q, m);
    state[m] = {fmaf(k.x, v, fmaf(b.x, removed, w.x * state[m].x)), fmaf(k.y, v, fmaf(b.y, removed, w.y * state[m].y)),
                fmaf(k.z, v, fmaf(b.z, removed, w.z * state[m].z)), fmaf(k.w, v, fmaf(b.w, removed, w.w * state[m].w))};
    y = add_product(keys_of(x.r, q, m), state[m], y);
  }
  return sum_four(y);
}

// Blocks of a processor. Left to itself, the compiler chooses so few registers for halves that some are spilled; for
// floats it would spill with any of these numbers.
template <class S>
constexpr int kBlocks = sizeof(S) == 2 ? 3 : 0;

template <class S>
RWKV_KERNEL void RWKV_BOUNDS(256, kBlocks<S>) wkv7_64(PARAMS(Wkv7Params, p)) {
  SHARED(Wkv7HeadShared, s);
  start();
  run_sequence<S>(p, s, sequence_of(p));
}

}  // namespace rwkv::cuda
