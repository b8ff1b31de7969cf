// What the recurrences with a matrix for each head have in common: blocks are (heads, sequences), and a block goes
// through all rows of its sequence s. The state of a head is [value][key], of floats or, S = uint16_t, of halves: then
// a number that is computed in float32 is rounded after each token, so that it does not matter where calls begin.
#pragma once
#include "cuda/kernels/numbers.cuh"

namespace rwkv::cuda {

// A head's rows of a sequence.
struct Head {
  int begin, end;
  size_t channel;  // the head's first
};
template <class P>
RWKV_DEVICE Head head_of(const P& p, int s) {
  return {p.step.start[s], p.step.start[s + 1], size_t(blockIdx.x) * size_t(p.n)};
}

// Its states before and after; both may be the same.
template <class S>
struct HeadState {
  const S* src;
  S* dst;
};
template <class S, class P>
RWKV_DEVICE HeadState<S> head_state_of(const P& p, int s) {
  const uint64_t at = p.state + uint64_t(blockIdx.x) * uint64_t(p.n) * uint64_t(p.n) * sizeof(S);
  return {reinterpret_cast<const S*>(p.step.src[s] + at), reinterpret_cast<S*>(p.step.dst[s] + at)};
}

// What a state holds, and what becomes of a number there.
RWKV_DEVICE float kept(float v) { return v; }
RWKV_DEVICE float kept(uint16_t half) { return half_to_float(half); }
template <class S>
RWKV_DEVICE S to_keep(float v);
template <>
RWKV_DEVICE float to_keep<float>(float v) {
  return v;
}
template <>
RWKV_DEVICE uint16_t to_keep<uint16_t>(float v) {
  return clamp_to_half(v);
}

// Of the n numbers in shared memory; all threads of the block come here.
RWKV_DEVICE Moments block_moments(const float* y, int n, float* part) {
  float sum = 0;
  for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) sum += y[i];
  const float mean = sum_block(sum, part) / float(n);
  float squares = 0;
  for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) squares = fmaf(y[i] - mean, y[i] - mean, squares);
  return {float(n), mean, sum_block(squares, part)};
}

// What lies past the last head of an operand, by its block.
template <class P>
RWKV_DEVICE void zero_padding(const P& p, const Head& head) {
  const int channels = p.heads * p.n, rest = round_up(channels, kPad) - channels;
  if (int(blockIdx.x) != p.heads - 1 || rest == 0) return;
  for (int i = int(threadIdx.x); i < (head.end - head.begin) * rest; i += int(blockDim.x))
    store_operand(p.y, head.begin + i / rest, channels + i % rest, 0.0f);
}

}  // namespace rwkv::cuda
