// What RWKV-7 makes of a channel's activations before they meet the state; formulas in model/rwkv7.h.
#pragma once
#include "cuda/kernels/numbers.cuh"

namespace rwkv::cuda {

// A channel c's numbers of a token, which are at `at`.
RWKV_DEVICE float wkv7_decay(const Wkv7Params& p, size_t at, size_t c) {
  return exponential(-0x1.368b30p-1f * sigmoid(p.w0[c] + p.w[at]));  // -exp(-1/2)
}
// Of the first layer whoever asks also writes it to v_first.
RWKV_DEVICE float wkv7_value(const Wkv7Params& p, size_t at, size_t c) {
  const float v = p.v[at];
  return p.v_mix ? fmaf(p.v_first[at] - v, sigmoid(p.v0[c] + p.v_mix[at]), v) : v;
}
struct Wkv7Key {
  float k, kk, a;  // kk before it is normalised
};
RWKV_DEVICE Wkv7Key wkv7_key(const Wkv7Params& p, size_t at, size_t c) {
  const float a = sigmoid(p.a0[c] + p.a[at]), k = p.k[at];
  return {k * fmaf(a - 1.0f, p.k_a[c], 1.0f), k * p.k_k[c], a};
}
struct Wkv7Channel {
  float r, w, a, k, kk, v;
};
RWKV_DEVICE Wkv7Channel wkv7_channel(const Wkv7Params& p, size_t at, size_t c) {
  const Wkv7Key key = wkv7_key(p, at, c);
  const float v = wkv7_value(p, at, c);
  if (!p.v_mix) p.v_first[at] = v;
  return {p.r[at], wkv7_decay(p, at, c), key.a, key.k, key.kk, v};
}
RWKV_DEVICE float inverse_norm(float squares) { return 1.0f / larger(1e-12f, sqrtf(squares)); }

}  // namespace rwkv::cuda
