// Conversions, functions and sums. The functions are the CPU's polynomials (cpu/kernels/math.inl) operation by
// operation, so that all devices agree on them; sums are trees of a fixed shape.
#pragma once
#include "cuda/kernels/gpu.h"

namespace rwkv::cuda {

// What a kernel of a step begins with, if there is nothing to do before.
RWKV_DEVICE void start() {
  let_next_start();
  wait_for_previous();
}

// ---- conversions ----
RWKV_DEVICE float bf16_to_float(uint16_t h) { return from_bits(uint32_t(h) << 16); }
RWKV_DEVICE uint16_t float_to_bf16(float v) {  // to nearest even, NaN kept
  const uint32_t b = bits(v);
  if (v != v) return uint16_t(b >> 16 | 0x40);
  return uint16_t((b + 0x7fff + (b >> 16 & 1)) >> 16);
}
// A finite number that is too large for a half becomes the largest: weights of bf16 files lead to such activations.
RWKV_DEVICE uint16_t clamp_to_half(float v) {
  const float most = 65504.0f;
  const bool infinite = (bits(v) & 0x7fffffffu) >= 0x7f800000u;  // or NaN
  return float_to_half(infinite ? v : v > most ? most : v < -most ? -most : v);
}
// Four of either, as they lie in memory; what takes more care is rare.
RWKV_DEVICE uint64_t four_to_half(const float (&v)[4]) {
  uint32_t word[2] = {floats_to_halves(v[0], v[1]), floats_to_halves(v[2], v[3])};
  const uint32_t infinite = ((word[0] & 0x7c007c00u) + 0x04000400u) | ((word[1] & 0x7c007c00u) + 0x04000400u);
  if ((infinite & 0x80008000u) != 0) {
#pragma unroll
    for (int i = 0; i < 2; i++) word[i] = clamp_to_half(v[2 * i]) | uint32_t(clamp_to_half(v[2 * i + 1])) << 16;
  }
  return word[0] | uint64_t(word[1]) << 32;
}
RWKV_DEVICE uint64_t four_to_bf16(const float (&v)[4]) {
  uint32_t word[2];
  if (((v[0] != v[0]) | (v[1] != v[1]) | (v[2] != v[2]) | (v[3] != v[3])) != 0) {
#pragma unroll
    for (int i = 0; i < 2; i++) word[i] = float_to_bf16(v[2 * i]) | uint32_t(float_to_bf16(v[2 * i + 1])) << 16;
  } else {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint32_t low = bits(v[2 * i]), high = bits(v[2 * i + 1]);
      word[i] = permute(low + 0x7fff + (low >> 16 & 1), high + 0x7fff + (high >> 16 & 1), 0x7632);
    }
  }
  return word[0] | uint64_t(word[1]) << 32;
}
RWKV_DEVICE float load_number(const void* from, Stored dtype, size_t i) {
  if (dtype == Stored::f32) return static_cast<const float*>(from)[i];
  const uint16_t h = static_cast<const uint16_t*>(from)[i];
  return dtype == Stored::f16 ? half_to_float(h) : bf16_to_float(h);
}
// To where element (token, col) of an operand lies.
RWKV_DEVICE void store_operand(const OperandPointer& out, int token, int col, float v) {
  void* to = static_cast<unsigned char*>(out.data) + operand_at(out.format, out.rows8, token, col);
  if (out.format == Stored::f32)
    *static_cast<float*>(to) = v;
  else
    *static_cast<uint16_t*>(to) = out.format == Stored::f16 ? clamp_to_half(v) : float_to_bf16(v);
}
// The same of four columns from a multiple of four on.
RWKV_DEVICE void store_operands(const OperandPointer& out, int token, int col, const float (&v)[4]) {
  void* to = static_cast<unsigned char*>(out.data) + operand_at(out.format, out.rows8, token, col);
  if (out.format == Stored::f32) {
    *static_cast<float4*>(to) = {v[0], v[1], v[2], v[3]};
    return;
  }
  *static_cast<uint64_t*>(to) = out.format == Stored::f16 ? four_to_half(v) : four_to_bf16(v);
}

// ---- functions ----
RWKV_DEVICE float smaller(float a, float b) { return a < b ? a : b; }  // the second one if either is NaN
RWKV_DEVICE float larger(float a, float b) { return a > b ? a : b; }

RWKV_DEVICE float exponential(float x) {
  x = larger(-104.0f, smaller(89.0f, x));
  const float shift = 0x1.8p23f;
  const float t = fmaf(x, 0x1.715476p0f, shift), n = t - shift;
  float r = fmaf(n, -0x1.62e4p-1f, x);
  r = fmaf(n, -0x1.7f7d1cp-20f, r);
  float q = 0x1.6a2434p-10f;
  q = fmaf(q, r, 0x1.1239e2p-7f);
  q = fmaf(q, r, 0x1.5558f2p-5f);
  q = fmaf(q, r, 0x1.555492p-3f);
  q = fmaf(q, r, 0x1.fffffcp-2f);
  const float p = fmaf(r * r, q, r) + 1.0f;
  const int e = int(bits(t) - bits(shift)), half = e >> 1;
  return p * from_bits(uint32_t(half + 127) << 23) * from_bits(uint32_t(e - half + 127) << 23);
}
RWKV_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + exponential(0.0f - x)); }
RWKV_DEVICE float hyperbolic_tangent(float x) {
  const uint32_t sign = bits(x) & 0x80000000u;
  const float a = from_bits(bits(x) & 0x7fffffffu), z = a * a;
  if (!(a < 0.625f)) return from_bits(bits(1.0f - 2.0f / (exponential(a + a) + 1.0f)) | sign);
  float q = -0x1.75e1ccp-8f;
  q = fmaf(q, z, 0x1.52269ap-6f);
  q = fmaf(q, z, -0x1.b83c5ap-5f);
  q = fmaf(q, z, 0x1.110726p-3f);
  q = fmaf(q, z, -0x1.555532p-2f);
  return from_bits(bits(fmaf(a * z, q, a)) | sign);
}
RWKV_DEVICE float activate(Activation act, float x) {
  if (act == Activation::tanh) return hyperbolic_tangent(x);
  if (act == Activation::sigmoid) return sigmoid(x);
  if (act == Activation::silu) return x * sigmoid(x);
  if (act == Activation::relu2) {
    const float positive = larger(0.0f, x);
    return positive * positive;
  }
  return x;
}

// ---- sums, the same in all lanes ----
template <int Lanes = 32>
RWKV_DEVICE float sum_lanes(float v) {
  for (int mask = Lanes / 2; mask > 0; mask /= 2) v += shuffle_xor(v, mask);
  return v;
}
// Over a block of whole warps; `part` has a place for each.
RWKV_DEVICE float sum_block(float v, float* part) {
  v = sum_lanes(v);
  sync();  // whoever still reads an earlier sum
  if (lane() == 0) part[warp()] = v;
  sync();
  float total = part[0];
  for (int w = 1; w < int(blockDim.x) / 32; w++) total += part[w];
  return total;
}

// ---- mean and deviation of rows ----
// Chan's rule: as good as two passes. A part of no numbers changes nothing. Most parts are of as many numbers, whose
// share is known without a division.
RWKV_DEVICE Moments join(const Moments& a, const Moments& b) {
  const float count = a.count + b.count, delta = b.mean - a.mean;
  float share = 0.5f;
  if (a.count != b.count) {
    if (b.count == 0.0f) return a;
    if (a.count == 0.0f) return b;
    share = b.count / count;
  }
  return {count, fmaf(delta, share, a.mean), fmaf(delta * delta, a.count * share, a.squares + b.squares)};
}
RWKV_DEVICE float scale_of(const Moments& m, float eps) { return 1.0f / sqrtf(m.squares / m.count + eps); }

// Of the kSpan columns that so many neighbouring lanes hold, to behind row x of `cols`; null: nowhere.
RWKV_DEVICE void write_statistics(float* x, int cols, int span, float v) {
  const int count = cols - span * kSpan < kSpan ? cols - span * kSpan : kSpan;
  const bool real = lane() % kSpan < count;
  const float mean = sum_lanes<kSpan>(real ? v : 0.0f) / float(count);
  const float d = real ? v - mean : 0.0f;
  const float squares = sum_lanes<kSpan>(d * d);
  if (!x || count <= 0 || lane() % kSpan != 0) return;
  x[statistics_at(cols, span)] = mean;
  x[statistics_at(cols, span) + 1] = squares;
}
// The same where a lane has four columns from `col` on, of which `count` are there and the others are zeros.
RWKV_DEVICE void write_statistics(float* x, int cols, int col, int count, const float (&v)[4]) {
  const int span = col / kSpan, all = cols - span * kSpan < kSpan ? cols - span * kSpan : kSpan;
  const float mean = sum_lanes<kSpan / 4>((v[0] + v[1]) + (v[2] + v[3])) / float(all);
  float squares = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float d = i < count ? v[i] - mean : 0.0f;
    squares = fmaf(d, d, squares);
  }
  squares = sum_lanes<kSpan / 4>(squares);
  if (count == 0 || lane() % (kSpan / 4) != 0) return;
  x[statistics_at(cols, span)] = mean;
  x[statistics_at(cols, span) + 1] = squares;
}
// Of a whole row, in every lane, from what lies behind it. Lane l joins spans l, l + 32, ... in order, then lanes join.
// Loads do not wait for each other.
RWKV_DEVICE Moments row_moments(const float* x, int cols) {
  constexpr int kAtOnce = 4;
  Moments m = {0.0f, 0.0f, 0.0f};
  for (int first = lane(); first * kSpan < cols; first += 32 * kAtOnce) {
    Moments part[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) {
      const int span = first + 32 * i, rest = cols - span * kSpan;
      uint64_t both = 0;
      if (rest > 0) both = *reinterpret_cast<const uint64_t*>(x + statistics_at(cols, span));
      part[i] = {rest < 0 ? 0.0f : float(rest < kSpan ? rest : kSpan), from_bits(uint32_t(both)),
                 from_bits(uint32_t(both >> 32))};
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) m = join(m, part[i]);
  }
#pragma unroll 1
  for (int mask = 16; mask > 0; mask /= 2) {
    Moments a = m, b = {shuffle_xor(m.count, mask), shuffle_xor(m.mean, mask), shuffle_xor(m.squares, mask)};
    if ((lane() & mask) != 0) a = b, b = m;
    m = join(a, b);
  }
  return m;
}
RWKV_DEVICE float normed(float x, float mean, float scale, float weight, float bias) {
  return fmaf((x - mean) * scale, weight, bias);
}
RWKV_DEVICE float normed(float x, const Moments& m, float scale, float weight, float bias) {
  return normed(x, m.mean, scale, weight, bias);
}

}  // namespace rwkv::cuda
