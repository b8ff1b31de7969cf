// RWKV-7's recurrence, one head, with everything that happens inside a head.
//
// The state lies as [key][value] with values in lanes: no sum crosses lanes, every lane adds over the keys in ascending
// order, and one pass over the state per token also forms the next token's S kk. Values are swept in slices (all tokens
// of one slice before the next), so a slice stays in L1.
#pragma once
#include "cpu/kernels/math.inl"
#include "cpu/kernels/row.inl"

namespace rwkv::cpu {
namespace {

// What the tokens of a block need besides the state, rows of padded_n. kk has a row more: the last token has no next.
constexpr int kWkvBlock = kMaxHead;
constexpr int kStateAhead = 4096;  // bytes of a state that are fetched ahead
struct WkvBlock {
  alignas(64) float r[kWkvBlock], w[kWkvBlock], k[kWkvBlock], v[kWkvBlock], b[kWkvBlock], y[kWkvBlock];
  alignas(64) float kk[2 * kWkvBlock];
};

// The vectors of one token: decay, in-context rate, the mixed value, the normalised removal key. Returns sum r k r_k.
template <bool Whole>
inline float wkv7_token(const Wkv7Head& p, size_t at, float* r, float* w, float* k, float* v, float* b, float* kk) {
  const int n = p.n, ld = padded_n(n);
  const Floats one = all(1.0f), decay = all(-0x1.368b30p-1f);  // exp(-1/2)
  const float squares = sum_row(n, [&](Floats s, int i) {
    const Floats q = mul(load_some<Whole>(p.k + at + i, n - i), load_some<Whole>(p.k_k + i, n - i));
    store(kk + i, q);
    return fma(q, q, s);
  });
  const Floats norm = div(one, max(all(1e-12f), sqrt(all(squares))));
  const auto token = [=](const float* x, int i) { return load_some<Whole>(x + at + i, n - i); };
  const auto channel = [=](const float* x, int i) { return load_some<Whole>(x + i, n - i); };
  // One thing after the other, the decay's two exponentials far apart: a processor looks a few hundred instructions
  // ahead, and a chain of both with all else in between would fill that.
  for (int i = 0; i < ld; i += kLanes) store(w + i, mul(decay, sigmoid(add(channel(p.w0, i), token(p.w, i)))));
  RowSum bonus;
  for (int i = 0; i < ld; i += kLanes) {
    const Floats a = sigmoid(add(channel(p.a0, i), token(p.a, i)));
    const Floats key = mul(token(p.k, i), fma(sub(a, one), channel(p.k_a, i), one));
    const Floats q = mul(load(kk + i), norm);
    store(r + i, token(p.r, i));
    store(k + i, key);
    store(kk + i, q);
    store(b + i, sub(zero(), mul(q, a)));
    Floats& s = bonus.part[i / kLanes % kParts];
    s = fma(mul(token(p.r, i), key), channel(p.r_k, i), s);
  }
  for (int i = 0; i < ld; i += kLanes) {
    Floats value = token(p.v, i);
    if (p.v_mix) {
      const Floats gate = sigmoid(add(channel(p.v0, i), token(p.v_mix, i)));
      value = fma(sub(token(p.v_first, i), value), gate, value);
    } else {
      store_some<Whole>(p.v_first + at + i, value, n - i);
    }
    store(v + i, value);
  }
  for (int i = 0; i < ld; i += kLanes) store(w + i, exp(load(w + i)));
  return bonus.total();
}

// The rows of a token of the next block, or of the next head: where a model has many, each lies in a page of its own.
inline void fetch_token(const Wkv7Head& p, size_t at) {
  for (const float* x : {p.r, p.w, p.k, p.v, p.a, p.g, p.v_mix ? p.v_mix : p.v, static_cast<const float*>(p.v_first)})
    for (int i = 0; i < p.n; i += 16) prefetch_l2(reinterpret_cast<const std::byte*>(x + at + i));
}

// C vectors of values from `at` on: S <- S diag(w) - (S kk)(kk a)^T + v k^T, y = S r, for all tokens of a block.
template <int C>
void wkv7_sweep(const Wkv7Head& p, const float* src, int tokens, int at, WkvBlock& block, size_t coming) {
  float* dst = p.dst;
  const int n = p.n, ld = padded_n(n);
  Floats removed[C];  // S kk of the token to come
  for (int c = 0; c < C; c++) removed[c] = zero();
  for (int i = 0; i < n; i++)
    for (int c = 0; c < C; c++) removed[c] = fma(all(block.kk[i]), load(src + i * ld + at + c * kLanes), removed[c]);
  for (int t = 0; t < tokens; t++, src = dst) {
    if (at == 0) fetch_token(p, coming + size_t(t) * p.ld);
    const float *r = block.r + t * ld, *w = block.w + t * ld, *k = block.k + t * ld, *b = block.b + t * ld;
    const float* next = block.kk + (t + 1) * ld;
    Floats v[C], y[C], sum[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
      v[c] = load(block.v + t * ld + at + c * kLanes);
      y[c] = sum[c] = zero();
    }
#pragma GCC unroll 2
    for (int i = 0; i < n; i++) {
      const Floats wi = all(w[i]), bi = all(b[i]), ki = all(k[i]), ri = all(r[i]), ni = all(next[i]);
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) {
        const int j = i * ld + at + c * kLanes;
        const Floats s = fma(ki, v[c], fma(bi, removed[c], mul(wi, load(src + j))));
        store(dst + j, s);
        y[c] = fma(ri, s, y[c]);
        sum[c] = fma(ni, s, sum[c]);
      }
    }
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
      store(block.y + t * ld + at + c * kLanes, y[c]);
      removed[c] = sum[c];
    }
  }
}

// The same of one token whose state goes somewhere else, which nobody reads before the weights of the next layers have
// passed through the caches: it is written past them, and the next lines of the old one are fetched.
template <int C>
void wkv7_step(const float* src, float* dst, int n, int at, WkvBlock& block) {
  const int ld = padded_n(n);
  Floats removed[C], v[C], y[C];
  for (int c = 0; c < C; c++) {
    removed[c] = y[c] = zero();
    v[c] = load(block.v + at + c * kLanes);
  }
  for (int i = 0; i < n; i++)
    for (int c = 0; c < C; c++) {
      const float* from = src + i * ld + at + c * kLanes;
      prefetch_l1(reinterpret_cast<const std::byte*>(from) + kStateAhead);
      removed[c] = fma(all(block.kk[i]), load(from), removed[c]);
    }
#pragma GCC unroll 2
  for (int i = 0; i < n; i++) {
    const Floats wi = all(block.w[i]), bi = all(block.b[i]), ki = all(block.k[i]), ri = all(block.r[i]);
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
      const int j = i * ld + at + c * kLanes;
      const Floats s = fma(ki, v[c], fma(bi, removed[c], mul(wi, load(src + j))));
      store_past(dst + j, s);
      y[c] = fma(ri, s, y[c]);
    }
  }
  for (int c = 0; c < C; c++) store(block.y + at + c * kLanes, y[c]);
}

template <bool Whole>
void wkv7_head(const Wkv7Head& p) {
  const int n = p.n, ld = padded_n(n), most = kWkvBlock / ld;
  const float* src = p.src;
  WkvBlock block;
  float bonus[kWkvBlock / 16];
  const bool step = p.tokens == 1 && p.src != p.dst && reinterpret_cast<uintptr_t>(p.dst) % sizeof(Floats) == 0;
  for (int begin = 0; begin < p.tokens; begin += most, src = p.dst) {
    const int tokens = p.tokens - begin < most ? p.tokens - begin : most;
    for (int t = 0; t < tokens; t++) {
      const int o = t * ld;
      bonus[t] = wkv7_token<Whole>(p, size_t(begin + t) * p.ld, block.r + o, block.w + o, block.k + o, block.v + o,
                                   block.b + o, block.kk + o);
    }
    for (int i = 0; i < ld; i++) block.kk[tokens * ld + i] = 0;

    const size_t coming = begin + tokens < p.tokens ? size_t(begin + tokens) * p.ld : size_t(n);
    int at = 0;
    for (; at + kWkvVectors * kLanes <= ld; at += kWkvVectors * kLanes)
      step ? wkv7_step<kWkvVectors>(src, p.dst, n, at, block)
           : wkv7_sweep<kWkvVectors>(p, src, tokens, at, block, coming);
    for (; at < ld; at += kLanes)
      step ? wkv7_step<1>(src, p.dst, n, at, block) : wkv7_sweep<1>(p, src, tokens, at, block, coming);

    for (int t = 0; t < tokens; t++) {
      const float *y = block.y + t * ld, *v = block.v + t * ld, *g = p.g + size_t(begin + t) * p.ld;
      float* out = p.y + size_t(begin + t) * p.ldy;
      const Moments m = moments<Whole>(y, n, p.eps);
      for (int i = 0; i < n; i += kLanes) {
        const Floats d = mul(sub(load(y + i), m.mean), m.scale);
        const Floats normed = fma(d, load_some<Whole>(p.ln_weight + i, n - i), load_some<Whole>(p.ln_bias + i, n - i));
        store_some<Whole>(out + i, mul(fma(all(bonus[t]), load(v + i), normed), load_some<Whole>(g + i, n - i)), n - i);
      }
    }
  }
}

void wkv7(const Wkv7Head& p) { p.n % 16 == 0 ? wkv7_head<true>(p) : wkv7_head<false>(p); }

}  // namespace
}  // namespace rwkv::cpu
