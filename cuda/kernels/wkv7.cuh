// RWKV-7's recurrence with everything that happens inside a head; formulas in model/rwkv7.h.
//
// wkv7 takes heads of any size: a thread has a row of the state, the keys of one value, in global memory, and adds over
// them in ascending order, as the CPU does. wkv7_64 keeps the state in registers: four threads have a row, thread q of
// them the keys 4 (q + 4 m) to 4 (q + 4 m) + 3, and a barrier a token suffices: warp 0 makes the vectors of the
// next token and warp 1 finishes the one before while all take this one.
#pragma once
#include "cuda/kernels/heads.cuh"
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

// The vectors of one token, by one warp: a lane has channels l and l + 32. low(i, at) is what low-rank products give
// for channel i of the head.
template <class Low>
RWKV_DEVICE void wkv7_vectors(const Wkv7Params& p, size_t channel, int t, Wkv7Vectors& o, const Low& low) {
  const size_t at = size_t(t) * size_t(p.ld) + channel;
  Wkv7Low lows[2];
  Wkv7Channel x[2];
  float squares = 0, bonus = 0;
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const size_t i = size_t(lane() + 32 * j);
    lows[j] = low(int(i), at + i);
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

// Group norm, bonus and gate of one token, by one warp.
RWKV_DEVICE void wkv7_result(const Wkv7Params& p, size_t channel, int t, const Wkv7Vectors& x, const float* y) {
  const float low = y[lane()], high = y[lane() + 32];
  Moments m = {64.0f, sum_lanes(low + high) / 64.0f, 0.0f};
  m.squares = sum_lanes(fmaf(low - m.mean, low - m.mean, (high - m.mean) * (high - m.mean)));
  const float scale = scale_of(m, p.out.eps);
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const int i = lane() + 32 * j;
    const size_t c = channel + size_t(i);
    const float v = normed(j == 0 ? low : high, m, scale, p.out.weight[c], p.out.bias[c]);
    store_operand(p.y, t, int(c), fmaf(x.bonus, x.v[i], v) * x.g[i]);
  }
}

// The keys of thread q of a row in chunk m, of a vector in shared memory.
RWKV_DEVICE float4 keys_of(const float* vector, int q, int m) {
  return *reinterpret_cast<const float4*>(vector + 4 * (q + 4 * m));
}
// Four keys of a state, which they are a multiple of.
RWKV_DEVICE float4 kept_keys(const float* from) { return *reinterpret_cast<const float4*>(from); }
RWKV_DEVICE float4 kept_keys(const uint16_t* from) {
  const uint64_t h = *reinterpret_cast<const uint64_t*>(from);
  return {kept(uint16_t(h)), kept(uint16_t(h >> 16)), kept(uint16_t(h >> 32)), kept(uint16_t(h >> 48))};
}
RWKV_DEVICE void keep_keys(float* to, const float4& v) { *reinterpret_cast<float4*>(to) = v; }
RWKV_DEVICE void keep_keys(uint16_t* to, const float4& v) {
  const auto half = [](float x, int place) { return uint64_t(clamp_to_half(x)) << 16 * place; };
  *reinterpret_cast<uint64_t*>(to) = half(v.x, 0) | half(v.y, 1) | half(v.z, 2) | half(v.w, 3);
}
template <class S>
RWKV_DEVICE float4 as_kept(const float4& v) {
  const auto one = [](float x) { return kept(to_keep<S>(x)); };
  return {one(v.x), one(v.y), one(v.z), one(v.w)};
}
RWKV_DEVICE float add_product(const float4& a, const float4& b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}
RWKV_DEVICE float sum_four(float v) {
  v += shuffle_xor(v, 1);
  return v + shuffle_xor(v, 2);
}

// What thread q of a row has of it.
template <class S>
RWKV_DEVICE void load_row(float4 (&state)[4], const S* head, int row, int q) {
#pragma unroll
  for (int m = 0; m < 4; m++) state[m] = kept_keys(head + row * 64 + 4 * (q + 4 * m));
}
template <class S>
RWKV_DEVICE void store_row(S* head, int row, int q, const float4 (&state)[4]) {
#pragma unroll
  for (int m = 0; m < 4; m++) keep_keys(head + row * 64 + 4 * (q + 4 * m), state[m]);
}
// One token; returns the row's result, in all of its threads.
template <class S>
RWKV_DEVICE float wkv7_token(const Wkv7Vectors& x, int row, int q, float4 (&state)[4]) {
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
    state[m] = as_kept<S>(state[m]);
  }
  return sum_four(y);
}

// Blocks of a processor. Left to itself, the compiler chooses so few registers for halves that some are spilled; for
// floats it would spill with any of these numbers.
template <class S>
constexpr int kBlocks = sizeof(S) == 2 ? 3 : 0;

template <class S>
RWKV_KERNEL void RWKV_BOUNDS(256, kBlocks<S>) wkv7_64(PARAMS(Wkv7Params, p)) {
  SHARED(Wkv7Shared, s);
  start();
  const Head head = head_of(p, sequence_of(p));
  const HeadState<S> states = head_state_of<S>(p, sequence_of(p));
  const int row = int(threadIdx.x) / 4, q = int(threadIdx.x) % 4, count = head.end - head.begin;
  const auto low = [&](int, size_t at) { return wkv7_low(p, at); };
  float4 state[4];
  load_row(state, states.src, row, q);
  if (warp() == 0) wkv7_vectors(p, head.channel, head.begin, s.token[0], low);
  sync();
  for (int i = 0; i < count; i++) {
    const Wkv7Vectors& x = s.token[i % 3];
    if (warp() == 0 && i + 1 < count) wkv7_vectors(p, head.channel, head.begin + i + 1, s.token[(i + 1) % 3], low);
    if (warp() == 1 && i > 0) wkv7_result(p, head.channel, head.begin + i - 1, s.token[(i + 2) % 3], s.y[(i + 1) % 2]);
    const float y = wkv7_token<S>(x, row, q, state);
    if (q == 0) s.y[i % 2][row] = y;
    sync();
  }
  if (warp() == 1) wkv7_result(p, head.channel, head.end - 1, s.token[(count + 2) % 3], s.y[(count + 1) % 2]);
  store_row(states.dst, row, q, state);
}

}  // namespace rwkv::cuda
