// RWKV-5's and 6's recurrence, one head, with everything that happens inside a head.
//
// The state lies as in RWKV-7: [key][value], values in lanes, swept in slices over the tokens of a block. A token's own
// share of its result, sum_i r_i u_i k_i v_j, needs no state: it is one number per token times v.
#pragma once
#include "cpu/kernels/math.inl"
#include "cpu/kernels/row.inl"

namespace rwkv::cpu {
namespace {

// What the tokens of a block need besides the state, rows of padded_n.
constexpr int kWkv6Block = kMaxHead;
struct Wkv6Block {
  alignas(64) float r[kWkv6Block], w[kWkv6Block], k[kWkv6Block], v[kWkv6Block], y[kWkv6Block];
};

// The vectors of one token. Returns sum r u k.
inline float wkv6_token(const Wkv6Head& p, size_t at, float* r, float* w, float* k, float* v) {
  const int n = p.n;
  return sum_row(n, [&](Floats s, int i) {
    const int count = n - i;
    const auto token = [=](const float* x) { return load_first(x + at + i, count); };
    Floats decay = load_first(p.decay + i, count);
    if (p.w) decay = add(decay, token(p.w));
    store(r + i, token(p.r));
    store(w + i, exp(sub(zero(), exp(decay))));
    store(k + i, token(p.k));
    store(v + i, token(p.v));
    return fma(mul(token(p.r), load_first(p.bonus + i, count)), token(p.k), s);
  });
}

// C vectors of values from `at` on: y = S r without the token's own share, then S <- S diag(w) + v k^T, for all tokens
// of a block.
template <int C>
void wkv6_sweep(const float* src, float* dst, int n, int tokens, int at, Wkv6Block& block) {
  const int ld = padded_n(n);
  for (int t = 0; t < tokens; t++, src = dst) {
    const float *r = block.r + t * ld, *w = block.w + t * ld, *k = block.k + t * ld;
    Floats v[C], y[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
      v[c] = load(block.v + t * ld + at + c * kLanes);
      y[c] = zero();
    }
#pragma GCC unroll 2
    for (int i = 0; i < n; i++) {
      const Floats wi = all(w[i]), ki = all(k[i]), ri = all(r[i]);
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) {
        const int j = i * ld + at + c * kLanes;
        const Floats s = load(src + j);
        y[c] = fma(ri, s, y[c]);
        store(dst + j, fma(ki, v[c], mul(wi, s)));
      }
    }
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) store(block.y + t * ld + at + c * kLanes, y[c]);
  }
}

void wkv6(const Wkv6Head& p) {
  const int n = p.n, ld = padded_n(n), most = kWkv6Block / ld;
  const float* src = p.src;
  Wkv6Block block;
  float own[kWkv6Block / 16];
  for (int begin = 0; begin < p.tokens; begin += most, src = p.dst) {
    const int tokens = p.tokens - begin < most ? p.tokens - begin : most;
    for (int t = 0; t < tokens; t++) {
      const int o = t * ld;
      own[t] = wkv6_token(p, size_t(begin + t) * p.ld, block.r + o, block.w + o, block.k + o, block.v + o);
    }

    int at = 0;
    for (; at + kWkvVectors * kLanes <= ld; at += kWkvVectors * kLanes)
      wkv6_sweep<kWkvVectors>(src, p.dst, n, tokens, at, block);
    for (; at < ld; at += kLanes) wkv6_sweep<1>(src, p.dst, n, tokens, at, block);

    for (int t = 0; t < tokens; t++) {
      float* y = block.y + t * ld;
      const float *v = block.v + t * ld, *g = p.g ? p.g + size_t(begin + t) * p.ld : nullptr;
      for (int i = 0; i < ld; i += kLanes) store(y + i, fma(all(own[t]), load(v + i), load(y + i)));
      const Moments m = moments(y, n, p.eps);
      float* out = p.y + size_t(begin + t) * p.ldy;
      for (int i = 0; i < n; i += kLanes) {
        const Floats d = mul(sub(load(y + i), m.mean), m.scale);
        const Floats normed = fma(d, load_first(p.ln_weight + i, n - i), load_first(p.ln_bias + i, n - i));
        store_first(out + i, g ? mul(normed, load_first(g + i, n - i)) : normed, n - i);
      }
    }
  }
}

}  // namespace
}  // namespace rwkv::cpu
