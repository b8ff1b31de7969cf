// Eight lanes: AVX2, FMA and F16C, and AVX-VNNI where the file is compiled for it. The names are explained in avx512.h;
// the bits are the same.
#pragma once
#include <immintrin.h>

#include "cpu/kernels.h"
#include "cpu/simd/transpose.h"

namespace rwkv::cpu {
namespace {

constexpr int kLanes = 8;
constexpr int kTileVectors = 2;  // the product's accumulators: 2 x 6 of 16 registers
constexpr int kTileTokens = 6;
constexpr int kByteTokens = 6;
constexpr int kByteRegisters = 16;
// Of a block of k in products of many tokens: processors without AVX-VNNI may have 256 KB of L2.
#ifdef __AVXVNNI__
constexpr int kBlockColumns = 1024;
constexpr bool kUnpackHalves = true;
#else
constexpr int kBlockColumns = 512;
constexpr bool kUnpackHalves = false;
#endif
constexpr int kWkvVectors = 2;
constexpr int kStreamNear = 2048, kStreamFar = 4096, kStreamTokens = 1, kStreamNarrowTokens = 1;

using Floats = __m256;
using Ints = __m256i;

inline Floats zero() { return _mm256_setzero_ps(); }
inline Floats all(float a) { return _mm256_set1_ps(a); }
inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Floats a) { _mm256_storeu_ps(p, a); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Floats sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats div(Floats a, Floats b) { return _mm256_div_ps(a, b); }
inline Floats sqrt(Floats a) { return _mm256_sqrt_ps(a); }
inline Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
inline Floats select_less(Floats a, Floats b, Floats x, Floats y) {
  return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
inline Ints select_nan(Floats a, Ints x, Ints y) {
  return _mm256_blendv_epi8(y, x, _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)));
}

inline Ints first(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Floats load_first(const float* p, int count) { return _mm256_maskload_ps(p, first(count)); }
inline void store_first(float* p, Floats a, int count) {
  if (count >= kLanes) return store(p, a);  // masked stores are slow on some machines
  _mm256_maskstore_ps(p, first(count), a);
}
inline Floats keep_first(Floats a, int count) { return _mm256_and_ps(a, _mm256_castsi256_ps(first(count))); }

inline Ints all(int a) { return _mm256_set1_epi32(a); }
inline Ints load_ints(const void* p) { return _mm256_loadu_si256(static_cast<const Ints*>(p)); }
inline void store_ints(void* p, Ints a) { _mm256_storeu_si256(static_cast<Ints*>(p), a); }
inline Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
inline Ints sub(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
inline Ints bit_and(Ints a, Ints b) { return _mm256_and_si256(a, b); }
inline Ints bit_or(Ints a, Ints b) { return _mm256_or_si256(a, b); }
template <int n>
inline Ints shift_left(Ints a) {
  return _mm256_slli_epi32(a, n);
}
template <int n>
inline Ints shift_right(Ints a) {
  return _mm256_srli_epi32(a, n);
}
template <int n>
inline Ints shift_right_signed(Ints a) {
  return _mm256_srai_epi32(a, n);
}
inline Ints max(Ints a, Ints b) { return _mm256_max_epi32(a, b); }
inline Floats to_floats(Ints a) { return _mm256_cvtepi32_ps(a); }
inline int largest(Ints a) {
  __m128i b = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  b = _mm_max_epi32(b, _mm_shuffle_epi32(b, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(b, _mm_shuffle_epi32(b, 0xb1)));
}
inline int total(Ints a) {
  __m128i b = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  b = _mm_add_epi32(b, _mm_shuffle_epi32(b, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(b, _mm_shuffle_epi32(b, 0xb1)));
}
inline void store_bytes(void* p, Ints a) {
  const __m128i lowest = _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m128i low = _mm_shuffle_epi8(_mm256_castsi256_si128(a), lowest);
  const __m128i high = _mm_shuffle_epi8(_mm256_extracti128_si256(a, 1), lowest);
  _mm_storel_epi64(static_cast<__m128i*>(p), _mm_unpacklo_epi32(low, high));
}
inline uint32_t nonzero(Ints a) {
  const __m256i zeros = _mm256_cmpeq_epi32(a, _mm256_setzero_si256());
  return uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(zeros))) ^ 0xff;
}
inline void lanes_of_columns(const std::byte* const columns[4], size_t at, Ints to[4]) {
  const auto column = [&](int i) { return load_ints(columns[i] + at); };
  const Ints a = _mm256_unpacklo_epi8(column(0), column(1)), b = _mm256_unpackhi_epi8(column(0), column(1));
  const Ints c = _mm256_unpacklo_epi8(column(2), column(3)), d = _mm256_unpackhi_epi8(column(2), column(3));
  to[0] = _mm256_unpacklo_epi16(a, c), to[1] = _mm256_unpackhi_epi16(a, c);
  to[2] = _mm256_unpacklo_epi16(b, d), to[3] = _mm256_unpackhi_epi16(b, d);
}
inline Ints bits(Floats a) { return _mm256_castps_si256(a); }
inline Floats floats(Ints a) { return _mm256_castsi256_ps(a); }

inline Floats load_f16(const void* p) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
inline Ints load_u16(const void* p) { return _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))); }

// 2 kLanes signed bytes as numbers of 16 bits, of every four the even two before the odd two.
inline Ints even_odd_shorts(const void* p) {
  const __m128i order = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
  return _mm256_cvtepi8_epi16(_mm_shuffle_epi8(_mm_loadu_si128(static_cast<const __m128i*>(p)), order));
}

inline float sum16(const Floats* s) {
  const __m256 a = _mm256_add_ps(s[0], s[1]);
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

// Past the caches, where p is aligned to a whole vector; ordered by the next locked instruction, as the pool's barriers
// are.
inline void store_past(float* p, Floats a) { _mm256_stream_ps(p, a); }
// Assembly, because g++ 12 drops calls of functions that do nothing but _mm_prefetch.
inline void prefetch_l1(const std::byte* p) { __asm__ volatile("prefetcht0 %0" : : "m"(*p)); }
inline void prefetch_l2(const std::byte* p) { __asm__ volatile("prefetcht1 %0" : : "m"(*p)); }

#ifdef __AVXVNNI__
#define RWKV_DOT_BYTES
inline Ints dot_bytes(Ints acc, Ints w, Ints x) {
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(w), "x"(x));
  return acc;
}
#else
inline Ints even_bytes(Ints a) { return bit_and(a, all(0x00ff00ff)); }
inline Ints odd_bytes(Ints a) { return _mm256_srli_epi16(a, 8); }
inline Ints dot_shorts(Ints acc, Ints w, Ints x) {
  Ints products;
  __asm__("vpmaddwd %2, %1, %0" : "=x"(products) : "x"(w), "x"(x));
  __asm__("vpaddd %1, %0, %0" : "+x"(acc) : "x"(products));
  return acc;
}
// The same of two vectors and a lane, in one piece, as g++ would spill sums for values it has early.
inline void dot_shorts(Ints (&acc)[2], const Ints (&w)[2], const int& x) {
  Ints a, b;
  __asm__(
      "vpbroadcastd %[x], %[a]\n\t"
      "vpmaddwd %[a], %[w1], %[b]\n\t"
      "vpmaddwd %[a], %[w0], %[a]\n\t"
      "vpaddd %[b], %[acc1], %[acc1]\n\t"
      "vpaddd %[a], %[acc0], %[acc0]"
      : [acc0] "+x"(acc[0]), [acc1] "+x"(acc[1]), [a] "=&x"(a), [b] "=&x"(b)
      : [w0] "x"(w[0]), [w1] "x"(w[1]), [x] "m"(x));
}
#endif
inline Ints dot_halves(Ints acc, Ints low, Ints x_low, Ints high, Ints x_high) {
#ifdef RWKV_DOT_BYTES
  return dot_bytes(dot_bytes(acc, low, x_low), high, x_high);
#else
  const Ints pairs = _mm256_add_epi16(_mm256_maddubs_epi16(low, x_low), _mm256_maddubs_epi16(high, x_high));
  const Ints sums = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  __asm__("vpaddd %1, %0, %0" : "+x"(acc) : "x"(sums));
  return acc;
#endif
}

}  // namespace
}  // namespace rwkv::cpu
