// What the recurrences with heads of 64 have in common. The state of a head stays in registers: four threads have a
// row, thread q of them the keys 4 (q + 4 m) to 4 (q + 4 m) + 3.
//
// A recurrence is its params P, the vectors V of one of its tokens in shared memory, and these functions of them:
//   number_of_job(p, job, at)             what the job-th low-rank product has given
//   make_vectors(p, channel, t, v, low)   by one warp; low(job, i, at) is that number of channel i of the head
//   take_token(v, row, q, state)          by all threads; returns the row's result, in all of its threads
//   finish_token(p, channel, t, v, y)     by one warp, once all results are there
#pragma once
#include "cuda/kernels/heads.cuh"

namespace rwkv::cuda {

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

// Group norm of one token's results by one warp; finished(i, v) is what becomes of channel i of the head.
template <class P, class Finished>
RWKV_DEVICE void norm_head(const P& p, size_t channel, int t, const float* y, const Finished& finished) {
  const float low = y[lane()], high = y[lane() + 32];
  Moments m = {64.0f, sum_lanes(low + high) / 64.0f, 0.0f};
  m.squares = sum_lanes(fmaf(low - m.mean, low - m.mean, (high - m.mean) * (high - m.mean)));
  const float scale = scale_of(m, p.out.eps);
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const int i = lane() + 32 * j;
    const size_t c = channel + size_t(i);
    const float v = normed(j == 0 ? low : high, m, scale, p.out.weight[c], p.out.bias[c]);
    store_operand(p.y, t, int(c), finished(i, v));
  }
}

// One token, and what a state holds of it.
template <class S, class V>
RWKV_DEVICE float step_row(const V& x, int row, int q, float4 (&state)[4]) {
  const float y = take_token(x, row, q, state);
#pragma unroll
  for (int m = 0; m < 4; m++) state[m] = as_kept<S>(state[m]);
  return y;
}

// All rows of a sequence. A barrier a token suffices: warp 0 makes the vectors of the next token and warp 1 finishes
// the one before while all take this one.
template <class S, class P, class V>
RWKV_DEVICE void run_sequence(const P& p, WkvHeadShared<V>& s, int sequence) {
  const Head head = head_of(p, sequence);
  const HeadState<S> states = head_state_of<S>(p, sequence);
  const int row = int(threadIdx.x) / 4, q = int(threadIdx.x) % 4, count = head.end - head.begin;
  const auto low = [&](int job, int, size_t at) { return number_of_job(p, job, at); };
  float4 state[4];
  load_row(state, states.src, row, q);
  if (warp() == 0) make_vectors(p, head.channel, head.begin, s.token[0], low);
  sync();
  for (int i = 0; i < count; i++) {
    const V& x = s.token[i % 3];
    if (warp() == 0 && i + 1 < count) make_vectors(p, head.channel, head.begin + i + 1, s.token[(i + 1) % 3], low);
    if (warp() == 1 && i > 0) finish_token(p, head.channel, head.begin + i - 1, s.token[(i + 2) % 3], s.y[(i + 1) % 2]);
    const float y = step_row<S>(x, row, q, state);
    if (q == 0) s.y[i % 2][row] = y;
    sync();
  }
  if (warp() == 1) finish_token(p, head.channel, head.end - 1, s.token[(count + 2) % 3], s.y[(count + 1) % 2]);
  store_row(states.dst, row, q, state);
}

}  // namespace rwkv::cuda
