// Rows of a matrix as a file has them become packed weights. Numbers of int8 and int4 and their scales are those that
// the CPU makes (cpu/pack.cpp), bit for bit.
#pragma once
#include "cuda/kernels/numbers.cuh"

namespace rwkv::cuda {

struct Quantised {
  uint32_t number[2];  // of a lane's two columns, with the format's offset
  uint16_t scale;      // bf16
};

// A warp's group of 64 numbers, two of each lane in columns `at` and `at + step` of the group.
template <Stored F>
RWKV_DEVICE Quantised quantise(const float (&v)[2], int at, int step) {
  constexpr uint32_t kZero = F == Stored::i8 ? 128 : 8;
  constexpr float kLargest = F == Stored::i8 ? 127.0f : 7.0f, kLeast = 0x1p-126f;
  constexpr uint32_t kMagnitude = 0x7fffffffu, kInfinity = 0x7f800000u;
  uint32_t top = bits(v[0]) & kMagnitude;  // magnitudes' bits have their order, infinity and NaN last
  if ((bits(v[1]) & kMagnitude) > top) top = bits(v[1]) & kMagnitude;
  for (int mask = 16; mask > 0; mask /= 2) {
    const uint32_t other = shuffle_xor(top, mask);
    if (other > top) top = other;
  }
  float scale = from_bits(top) / 127.0f;
  if (F == Stored::i4) {  // -8 is the number of the largest magnitude, the first of several
    int first = (bits(v[0]) & kMagnitude) == top ? at : (bits(v[1]) & kMagnitude) == top ? at + step : kGroup;
    for (int mask = 16; mask > 0; mask /= 2) {
      const int other = shuffle_xor(first, mask);
      if (other < first) first = other;
    }
    const bool negative = bits(first == at ? v[0] : v[1]) >> 31 != 0;
    const bool of_owner = ballot((first == at || first == at + step) && negative) != 0;
    scale = (of_owner ? -from_bits(top) : from_bits(top)) / -8.0f;
  }
  const bool finite = top < kInfinity;
  Quantised q = {{kZero, kZero}, float_to_bf16(finite ? scale : from_bits(0x7fc00000u))};
  scale = bf16_to_float(q.scale);
  if (fabsf(scale) < kLeast) q.scale = 0;  // the CPU would flush products with a denormal, and such numbers
  if (!finite || q.scale == 0) return q;
  for (int i = 0; i < 2; i++) {
    const float n = (fabsf(v[i]) < kLeast ? 0.0f : v[i]) / scale;
    q.number[i] = (bits((n > kLargest ? kLargest : n) + 0x1.8p23f) + kZero) & 0xff;  // to the nearest, even of two
  }
  return q;
}

template <Stored F>
RWKV_DEVICE void store_number(unsigned char* to, float v) {
  if constexpr (F == Stored::f32)
    *reinterpret_cast<float*>(to) = v;
  else
    *reinterpret_cast<uint16_t*>(to) = F == Stored::f16 ? clamp_to_half(v) : float_to_bf16(v);
}

// (rows / 16, groups of 64 columns) blocks; a warp takes two rows. What lies past the last row stays as it was.
template <Stored F, Order O>
RWKV_KERNEL void RWKV_BOUNDS(256) pack(PARAMS(PackParams, p)) {
  const int n = round_up(p.rows, kPad), k = round_up(p.cols, kPad), group = int(blockIdx.y);
  // Of a byte of int4 by rows, one lane has both numbers.
  constexpr bool kBytes = F == Stored::i4 && O == Order::rows;
  const int at = kBytes ? lane() / 4 * 8 + lane() % 2 * 4 + lane() % 4 / 2 : lane(), step = kBytes ? 2 : 32;
  auto* to = static_cast<unsigned char*>(p.to);
  uint32_t below[2] = {};  // numbers of the row before
  for (int i = 0; i < 2; i++) {
    const int from = (int(blockIdx.x) * kWarps + warp()) * 2 + i, row = p.row + from;
    float v[2];
    for (int j = 0; j < 2; j++) {
      const int col = group * kGroup + at + j * step;
      const bool real = from < p.count && col < p.cols;
      v[j] = real ? load_number(p.from, p.dtype, size_t(from) * size_t(p.cols) + size_t(col)) : 0.0f;
    }
    bool finite = true;
    if constexpr (quantised(F)) {
      const Quantised q = quantise<F>(v, at, step);
      finite = (q.scale & 0x7f80) != 0x7f80;
      if (row < p.rows && lane() == 0) *reinterpret_cast<uint16_t*>(to + scale_at(F, O, n, k, row, group)) = q.scale;
      if constexpr (kBytes) {
        if (row < p.rows) to[weight_at(F, O, n, k, row, group * kGroup + at)] = uint8_t(q.number[0] | q.number[1] << 4);
      } else {
        for (int j = 0; j < 2; j++) {
          const int col = group * kGroup + at + j * step;
          if (F == Stored::i8 && row < p.rows) to[weight_at(F, O, n, k, row, col)] = uint8_t(q.number[j]);
          if (F == Stored::i4 && i == 1 && row - 1 < p.rows)
            to[weight_at(F, O, n, k, row - 1, col)] = uint8_t(below[j] | q.number[j] << 4);
          below[j] = q.number[j];
        }
      }
    } else {
      for (int j = 0; j < 2; j++) {
        finite &= (bits(v[j]) & 0x7f800000u) != 0x7f800000u;
        const int col = group * kGroup + at + j * step;
        if (row < p.rows) store_number<F>(to + weight_at(F, O, n, k, row, col), v[j]);
      }
    }
    if (O == Order::columns && ballot(!finite) != 0 && lane() == 0) atomic_or(reinterpret_cast<int32_t*>(to), 1);
  }
}

}  // namespace rwkv::cuda
