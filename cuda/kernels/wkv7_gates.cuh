// What RWKV-7 makes of a channel's activations before they meet the state; formulas in model/rwkv7.h.
#pragma once
#include "cuda/kernels/numbers.cuh"

namespace rwkv::cuda {

// What low-rank products give for a channel of a token; v_mix is nothing in the first layer.
struct Wkv7Low {
  float w, a, g, v_mix;
};
RWKV_DEVICE Wkv7Low wkv7_low(const Wkv7Params& p, size_t at) {
  return {p.w[at], p.a[at], p.g[at], p.v_mix ? p.v_mix[at] : 0.0f};
}

// A channel c's numbers of a token, which are at `at`; w, v_mix and a are those of Wkv7Low.
RWKV_DEVICE float wkv7_decay(const Wkv7Params& p, size_t c, float w) {
  return exponential(-0x1.368b30p-1f * sigmoid(p.w0[c] + w));  // -exp(-1/2)
}
// Of the first layer whoever asks also writes it to v_first.
RWKV_DEVICE float wkv7_value(const Wkv7Params& p, size_t at, size_t c, float v_mix) {
  const float v = p.v[at];
  return p.v_mix ? fmaf(p.v_first[at] - v, sigmoid(p.v0[c] + v_mix), v) : v;
}
struct Wkv7Key {
  float k, kk, a;  // kk before it is normalised
};
RWKV_DEVICE Wkv7Key wkv7_key(const Wkv7Params& p, size_t at, size_t c, float low_a) {
  const float a = sigmoid(p.a0[c] + low_a), k = p.k[at];
  return {k * fmaf(a - 1.0f, p.k_a[c], 1.0f), k * p.k_k[c], a};
}
struct Wkv7Channel {
  float r, w, a, k, kk, v;
};
RWKV_DEVICE Wkv7Channel wkv7_channel(const Wkv7Params& p, size_t at, size_t c, const Wkv7Low& low) {
  const Wkv7Key key = wkv7_key(p, at, c, low.a);
  const float v = wkv7_value(p, at, c, low.v_mix);
  if (!p.v_mix) p.v_first[at] = v;
  return {p.r[at], wkv7_decay(p, c, low.w), key.a, key.k, key.kk, v};
}
RWKV_DEVICE float inverse_norm(float squares) { return 1.0f / larger(1e-12f, sqrtf(squares)); }

}  // namespace rwkv::cuda
