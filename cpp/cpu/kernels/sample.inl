// What sampling does with every token of the vocabulary: plain loops that the compiler turns into vectors. Products and
// sums alone, each in one fixed order, so the bits are the same on every set, the one without fused multiply-add too.
#pragma once

namespace rwkv::cpu {
namespace {

// f(block, its first element, its length) with the last block filled up with -inf
template <class F>
inline void for_blocks(const float* x, size_t n, F f) {
  const size_t whole = n / kSampleBlock, rest = n % kSampleBlock;
  for (size_t b = 0; b < whole; b++) f(b, x + b * kSampleBlock);
  if (rest == 0) return;
  float block[kSampleBlock];
  for (size_t i = 0; i < kSampleBlock; i++) block[i] = i < rest ? x[whole * kSampleBlock + i] : -__builtin_inff();
  f(whole, block);
}

// Integers order floats once the negative ones are turned around; counted from -inf, without sign, +inf and every NaN
// come last.
void block_maxima(const float* x, size_t n, float* maxima) {
  constexpr uint32_t kLowest = 0x807fffff;
  const auto turned = [](int32_t bits) { return bits ^ (bits >> 31 & 0x7fffffff); };
  for_blocks(x, n, [=](size_t b, const float* block) {
    uint32_t top = 0;
    for (size_t i = 0; i < kSampleBlock; i++) {
      const uint32_t rank = uint32_t(turned(__builtin_bit_cast(int32_t, block[i]))) - kLowest;
      top = top < rank ? rank : top;
    }
    maxima[b] = __builtin_bit_cast(float, turned(int32_t(top + kLowest)));
  });
}

// 2^t for t < 1023, zero below -1020
inline double power_of_2(double t) {
  constexpr double kRound = 0x1.8p52;  // added, it rounds to an integer and leaves it in the low bits
  const double shifted = t + kRound;
  const double f = t - (shifted - kRound);
  double p = 0x1.61c4f0b1bf008p-20;  // 2^f, minimax on |f| <= 1/2 with p(0) = 1, to 8e-13
  p = p * f + 0x1.00d853d5560e9p-16;
  p = p * f + 0x1.430aa88495407p-13;
  p = p * f + 0x1.5d874d060bc65p-10;
  p = p * f + 0x1.3b2ab5ed6d583p-7;
  p = p * f + 0x1.c6b08dced43a5p-5;
  p = p * f + 0x1.ebfbdff8edeb6p-3;
  p = p * f + 0x1.62e42fef89d17p-1;
  p = p * f + 1.0;
  // A mask where a choice would become a branch, and the loop remain one of scalars.
  const uint64_t bits = __builtin_bit_cast(uint64_t, p) + (__builtin_bit_cast(uint64_t, shifted) << 52);
  return __builtin_bit_cast(double, bits & -uint64_t(t >= -1020));
}

inline void fill_exponentials(const float* x, size_t n, double max, double scale, double* y) {
  const double factor = scale * 0x1.71547652b82fep0;  // log2(e)
  for (size_t i = 0; i < n; i++) y[i] = power_of_2((double(x[i]) - max) * factor);
}

void exponentials(const float* x, size_t n, double max, double scale, double* y) {
  fill_exponentials(x, n, max, scale, y);
}

void block_sums(const float* x, size_t n, double max, double scale, double* sums) {
  for_blocks(x, n, [=](size_t b, const float* block) {
    double e[kSampleBlock];
    fill_exponentials(block, kSampleBlock, max, scale, e);
    for (size_t half = kSampleBlock / 2; half > 0; half /= 2)
      for (size_t i = 0; i < half; i++) e[i] += e[i + half];
    sums[b] = e[0];
  });
}

struct Bits {
  uint32_t bit[32];
  constexpr Bits() : bit() {
    for (int i = 0; i < 32; i++) bit[i] = 1u << i;
  }
};
constexpr Bits kBits;

size_t collect(const float* x, size_t n, const float* maxima, float low, int32_t* ids, float* values) {
  size_t count = 0;
  for_blocks(x, n, [&](size_t b, const float* block) {
    if (maxima[b] < low) return;
    for (int at = 0; at < int(kSampleBlock); at += 32) {
      const int32_t id = int32_t(b * kSampleBlock) + at;
      uint32_t mask = 0;
      for (int i = 0; i < 32; i++) mask |= -uint32_t(block[at + i] >= low) & kBits.bit[i];
      if (mask == 0xffffffff) {
        for (int i = 0; i < 32; i++) ids[count + size_t(i)] = id + i;
        memcpy(values + count, block + at, 32 * sizeof(float));
        count += 32;
        continue;
      }
      for (; mask; mask &= mask - 1) {
        const int i = __builtin_ctz(mask);
        ids[count] = id + i;
        values[count++] = block[at + i];
      }
    }
  });
  return count;
}

}  // namespace
}  // namespace rwkv::cpu
