// RWKV-5's and 6's recurrence with everything that happens inside a head, of any size. A thread has a row of the state,
// the keys of one value, and adds over them in ascending order, as the CPU does.
#pragma once
#include "cuda/kernels/heads.cuh"

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

}  // namespace rwkv::cuda
