// RWKV-4's recurrence: every channel for itself, numerator and denominator divided by e^m, m the greatest exponent so
// far. The formulas are those of cpu/kernels/wkv4.inl, operation by operation.
#pragma once
#include "cuda/kernels/numbers.cuh"

namespace rwkv::cuda {

// (channels / 128, sequences) blocks: the same kernel for one row of a sequence and for many.
RWKV_KERNEL void RWKV_BOUNDS(128) wkv4(PARAMS(Wkv4Params, p)) {
  start();
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x), s = int(blockIdx.y);
  if (i >= round_up(p.cols, kPad)) return;
  const int begin = p.step.start[s], end = p.step.start[s + 1];
  if (i >= p.cols) {
    for (int t = begin; t < end; t++) store_operand(p.y, t, i, 0.0f);
    return;
  }
  const auto src = [&](uint64_t part) { return reinterpret_cast<const float*>(p.step.src[s] + part)[i]; };
  const auto dst = [&](uint64_t part, float v) { reinterpret_cast<float*>(p.step.dst[s] + part)[i] = v; };
  const float bonus = p.bonus[i], decay = p.decay[i];
  float a = src(p.a), b = src(p.b), m = src(p.m);
  for (int t = begin; t < end; t++) {
    const size_t at = size_t(t) * size_t(p.ld) + size_t(i);
    const float k = p.k[at], v = p.v[at];
    // This token counts with its bonus in the result and without it in the state.
    const float now = k + bonus, top = larger(m, now);
    const float past = exponential(m - top), weight = exponential(now - top);
    const float mean = fmaf(weight, v, past * a) / fmaf(past, b, weight);
    store_operand(p.y, t, i, p.r[at] * mean);

    const float later = m + decay, next = larger(later, k);
    const float kept = exponential(later - next), added = exponential(k - next);
    a = fmaf(added, v, kept * a);
    b = fmaf(kept, b, added);
    m = next;
  }
  dst(p.a, a), dst(p.b, b), dst(p.m, m);
}

}  // namespace rwkv::cuda
