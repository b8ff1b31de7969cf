// What the recurrences with a matrix for each head have in common: blocks are (heads, sequences), and a block goes
// through all rows of its sequence s. The state of a head is [value][key].
#pragma once
#include "cuda/kernels/numbers.cuh"

namespace rwkv::cuda {

// A head's rows of a sequence and its states before and after; both may be the same.
struct Head {
  int begin, end;
  size_t channel;  // the head's first
  const float* src;
  float* dst;
};
template <class P>
RWKV_DEVICE Head head_of(const P& p, int s) {
  const int h = int(blockIdx.x);
  const uint64_t at = p.state + uint64_t(h) * uint64_t(p.n) * uint64_t(p.n) * sizeof(float);
  return {p.step.start[s], p.step.start[s + 1], size_t(h) * size_t(p.n),
          reinterpret_cast<const float*>(p.step.src[s] + at), reinterpret_cast<float*>(p.step.dst[s] + at)};
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
