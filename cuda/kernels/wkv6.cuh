// RWKV-5's and 6's recurrence with everything that happens inside a head; formulas in model/rwkv6.h.
//
// wkv6 takes heads of any size: a thread has a row of the state, the keys of one value, in global memory, and adds over
// them in ascending order, as the CPU does. wkv6_64 keeps the state in registers.
#pragma once
#include "cuda/kernels/heads64.cuh"

namespace rwkv::cuda {

template <class S>
RWKV_KERNEL void RWKV_BOUNDS(256, 3) wkv6(PARAMS(Wkv6Params, p)) {
  SHARED(WkvShared, s);
  start();
  const Head head = head_of(p, int(blockIdx.y));
  const HeadState<S> states = head_state_of<S>(p, int(blockIdx.y));
  const int n = p.n, first = int(threadIdx.x), stride = int(blockDim.x);
  for (int t = head.begin; t < head.end; t++) {
    const size_t at = size_t(t) * size_t(p.ld) + head.channel;
    const S* src = t == head.begin ? states.src : states.dst;
    float share = 0;  // of the token itself: sum r u k, times v
    for (int i = first; i < n; i += stride) {
      const size_t c = head.channel + size_t(i);
      s.r[i] = p.r[at + size_t(i)], s.k[i] = p.k[at + size_t(i)], s.v[i] = p.v[at + size_t(i)];
      s.w[i] = exponential(0.0f - exponential(p.w ? p.decay[c] + p.w[at + size_t(i)] : p.decay[c]));
      share = fmaf(s.r[i] * p.bonus[c], s.k[i], share);
    }
    share = sum_block(share, s.part);
    for (int j = first; j < n; j += stride) {
      const float v = s.v[j];
      const S* from = src + size_t(j) * size_t(n);
      S* to = states.dst + size_t(j) * size_t(n);
      float y = 0;
      for (int i = 0; i < n; i++) {
        const float state = kept(from[i]);
        y = fmaf(s.r[i], state, y);
        to[i] = to_keep<S>(fmaf(s.k[i], v, s.w[i] * state));
      }
      s.y[j] = fmaf(share, v, y);
    }
    const Moments m = block_moments(s.y, n, s.part);  // a thread's own numbers before the first barrier
    const float scale = scale_of(m, p.out.eps);
    for (int i = first; i < n; i += stride) {
      const size_t c = head.channel + size_t(i);
      const float v = normed(s.y[i], m, scale, p.out.weight[c], p.out.bias[c]);
      store_operand(p.y, t, int(c), p.g ? v * p.g[at + size_t(i)] : v);
    }
  }
  zero_padding(p, head);
}

RWKV_DEVICE float number_of_job(const Wkv6Params& p, int, size_t at) { return p.w ? p.w[at] : 0.0f; }
// A lane has channels l and l + 32.
template <class Low>
RWKV_DEVICE void make_vectors(const Wkv6Params& p, size_t channel, int t, Wkv6Vectors& o, const Low& low) {
  const size_t at = size_t(t) * size_t(p.ld) + channel;
  float share = 0;
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const size_t i = size_t(lane() + 32 * j);
    const float r = p.r[at + i], k = p.k[at + i];
    share = fmaf(r * p.bonus[channel + i], k, share);
    o.r[i] = r, o.k[i] = k, o.v[i] = p.v[at + i], o.g[i] = p.g ? p.g[at + i] : 1.0f;
    o.w[i] = exponential(0.0f - exponential(p.decay[channel + i] + low(0, int(i), at + i)));
  }
  share = sum_lanes(share);
  if (lane() == 0) o.share = share;
}

// Group norm and gate.
RWKV_DEVICE void finish_token(const Wkv6Params& p, size_t channel, int t, const Wkv6Vectors& x, const float* y) {
  norm_head(p, channel, t, y, [&](int i, float v) { return v * x.g[i]; });
}

RWKV_DEVICE float take_token(const Wkv6Vectors& x, int row, int q, float4 (&state)[4]) {
  const float v = x.v[row];
  float y = 0;
#pragma unroll
  for (int m = 0; m < 4; m++) {
    const float4 w = keys_of(x.w, q, m), k = keys_of(x.k, q, m);
    y = add_product(keys_of(x.r, q, m), state[m], y);
    state[m] = {fmaf(k.x, v, w.x * state[m].x), fmaf(k.y, v, w.y * state[m].y), fmaf(k.z, v, w.z * state[m].z),
                fmaf(k.w, v, w.w * state[m].w)};
  }
  return fmaf(x.share, v, sum_four(y));
}

// 3 blocks a processor: left to itself, the compiler wants more and spills.
template <class S>
RWKV_KERNEL void RWKV_BOUNDS(256, 3) wkv6_64(PARAMS(Wkv6Params, p)) {
  SHARED(Wkv6HeadShared, s);
  start();
  run_sequence<S>(p, s, int(blockIdx.y));
}

}  // namespace rwkv::cuda
