// Sixteen lanes: AVX-512 F, BW, DQ, VL, and VNNI and BF16 where the file is compiled for them. Every simd/*.h offers
// the same names with the same meaning; avx2.h and avx512.h agree in every bit.
#pragma once
// g++ 12 warns about its own header, where a value is undefined on purpose.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "cpu/kernels.h"
#include "cpu/simd/transpose.h"

namespace rwkv::cpu {
namespace {

constexpr int kLanes = 16;
constexpr int kTileVectors = 2;  // the product's accumulators: 2 x 12 of 32 registers
constexpr int kTileTokens = 12;
constexpr int kByteTokens = 6;  // of int8, whose sums need two registers each
constexpr int kByteRegisters = 32;
constexpr int kBlockColumns = 1024;  // of a block of k in products of many tokens
constexpr int kWkvVectors = 4;       // values of the recurrence per sweep
// Bytes fetched ahead of a stream of weights, to L1 and to L2; 0: no such hint. And from how many tokens on, of float32
// and bf16 and of the others. Intel reads 18 GB/s instead of 14 with the first (one thread), and both cores together
// what a plain reader does with both; AMD (Zen 5), which runs the set with BF16, reads best without, as long as it has
// little to compute.
#ifdef __AVX512BF16__
constexpr int kStreamNear = 0, kStreamFar = 8192, kStreamTokens = 8, kStreamNarrowTokens = 2;
#else
constexpr int kStreamNear = 2048, kStreamFar = 4096, kStreamTokens = 1, kStreamNarrowTokens = 1;
#endif
// Whether int4 becomes int8 once for all tiles of many tokens. AMD takes halves of bytes apart beside its dot products,
// at no cost.
#if defined(__AVX512VNNI__) && !defined(__AVX512BF16__)
constexpr bool kUnpackHalves = true;
#else
constexpr bool kUnpackHalves = false;
#endif

using Floats = __m512;
using Ints = __m512i;

inline Floats zero() { return _mm512_setzero_ps(); }
inline Floats all(float a) { return _mm512_set1_ps(a); }
inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Floats a) { _mm512_storeu_ps(p, a); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
inline Floats sqrt(Floats a) { return _mm512_sqrt_ps(a); }
// b where either is NaN: put the constant first and NaN goes through.
inline Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
// a < b ? x : y, y where a or b is NaN
inline Floats select_less(Floats a, Floats b, Floats x, Floats y) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
// a is NaN ? x : y
inline Ints select_nan(Floats a, Ints x, Ints y) {
  return _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), y, x);
}

// The first `count` lanes (any int; all of them from kLanes on), the others zero or untouched.
inline __mmask16 first(int count) { return __mmask16(count >= 16 ? 0xffff : count <= 0 ? 0 : (1 << count) - 1); }
inline Floats load_first(const float* p, int count) { return _mm512_maskz_loadu_ps(first(count), p); }
inline void store_first(float* p, Floats a, int count) { _mm512_mask_storeu_ps(p, first(count), a); }
inline Floats keep_first(Floats a, int count) { return _mm512_maskz_mov_ps(first(count), a); }

inline Ints all(int a) { return _mm512_set1_epi32(a); }
inline Ints load_ints(const void* p) { return _mm512_loadu_si512(p); }
inline void store_ints(void* p, Ints a) { _mm512_storeu_si512(p, a); }
inline Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints sub(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
inline Ints bit_and(Ints a, Ints b) { return _mm512_and_si512(a, b); }
inline Ints bit_or(Ints a, Ints b) { return _mm512_or_si512(a, b); }
template <int n>
inline Ints shift_left(Ints a) {
  return _mm512_slli_epi32(a, n);
}
template <int n>
inline Ints shift_right(Ints a) {
  return _mm512_srli_epi32(a, n);
}
template <int n>
inline Ints shift_right_signed(Ints a) {
  return _mm512_srai_epi32(a, n);
}
inline Ints max(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
inline Floats to_floats(Ints a) { return _mm512_cvtepi32_ps(a); }
inline int largest(Ints a) { return _mm512_reduce_max_epi32(a); }
inline int total(Ints a) { return _mm512_reduce_add_epi32(a); }
// The lowest byte of every lane.
inline void store_bytes(void* p, Ints a) { _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a)); }
// Sixteen bits, one for each lane that is not zero.
inline uint32_t nonzero(Ints a) { return _mm512_test_epi32_mask(a, a); }
// Four columns of 4 kLanes bytes: lane 4 j + i of to[v] is the four bytes at 16 j + 4 v + i.
inline void lanes_of_columns(const std::byte* const columns[4], size_t at, Ints to[4]) {
  const auto column = [&](int i) { return load_ints(columns[i] + at); };
  const Ints a = _mm512_unpacklo_epi8(column(0), column(1)), b = _mm512_unpackhi_epi8(column(0), column(1));
  const Ints c = _mm512_unpacklo_epi8(column(2), column(3)), d = _mm512_unpackhi_epi8(column(2), column(3));
  to[0] = _mm512_unpacklo_epi16(a, c), to[1] = _mm512_unpackhi_epi16(a, c);
  to[2] = _mm512_unpacklo_epi16(b, d), to[3] = _mm512_unpackhi_epi16(b, d);
}
inline Ints bits(Floats a) { return _mm512_castps_si512(a); }
inline Floats floats(Ints a) { return _mm512_castsi512_ps(a); }

// kLanes values of 16 bits
inline Floats load_f16(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
inline Ints load_u16(const void* p) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}

// 2 kLanes signed bytes as numbers of 16 bits, of every four the even two before the odd two.
inline Ints even_odd_shorts(const void* p) {
  const __m256i order = _mm256_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15,  //
                                         0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
  return _mm512_cvtepi8_epi16(_mm256_shuffle_epi8(_mm256_loadu_si256(static_cast<const __m256i*>(p)), order));
}

// Sixteen lanes to one number: lane i with i + 8, then i + 4, i + 2, i + 1.
inline float sum16(const Floats* s) {
  const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(*s), _mm512_extractf32x8_ps(*s, 1));
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

// Past the caches, where p is aligned to a whole vector; ordered by the next locked instruction, as the pool's barriers
// are.
inline void store_past(float* p, Floats a) { _mm512_stream_ps(p, a); }
// Assembly, because g++ 12 drops calls of functions that do nothing but _mm_prefetch.
inline void prefetch_l1(const std::byte* p) { __asm__ volatile("prefetcht0 %0" : : "m"(*p)); }
inline void prefetch_l2(const std::byte* p) { __asm__ volatile("prefetcht1 %0" : : "m"(*p)); }

#ifdef __AVX512BF16__
#define RWKV_DOT_PAIRS  // dot_pairs exists: acc + w.odd * x.odd, then + w.even * x.even, pairs of bf16 in 32 bits
inline Floats dot_pairs(Floats acc, Ints w, Ints x) {
  return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
}
#endif

// Assembly, because g++ 12 copies or spills the accumulators of the intrinsics.
#ifdef __AVX512VNNI__
#define RWKV_DOT_BYTES  // dot_bytes exists: acc + the products of four unsigned and four signed bytes
inline Ints dot_bytes(Ints acc, Ints w, Ints x) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
  return acc;
}
#else
inline Ints even_bytes(Ints a) { return bit_and(a, all(0x00ff00ff)); }  // of each lane, as two numbers of 16 bits
inline Ints odd_bytes(Ints a) { return _mm512_srli_epi16(a, 8); }
inline Ints dot_shorts(Ints acc, Ints w, Ints x) {  // acc + the products of two
  Ints products;
  __asm__("vpmaddwd %2, %1, %0" : "=v"(products) : "v"(w), "v"(x));
  __asm__("vpaddd %1, %0, %0" : "+v"(acc) : "v"(products));
  return acc;
}
inline void dot_shorts(Ints (&acc)[2], const Ints (&w)[2], const int& x) {
  const Ints a = all(x);
  for (int v = 0; v < 2; v++) acc[v] = dot_shorts(acc[v], w[v], a);
}
#endif
// acc + the products of four bytes in [0, 15] and four in [-127, 127], twice
inline Ints dot_halves(Ints acc, Ints low, Ints x_low, Ints high, Ints x_high) {
#ifdef RWKV_DOT_BYTES
  return dot_bytes(dot_bytes(acc, low, x_low), high, x_high);
#else
  const Ints pairs = _mm512_add_epi16(_mm512_maddubs_epi16(low, x_low), _mm512_maddubs_epi16(high, x_high));
  const Ints sums = _mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
  __asm__("vpaddd %1, %0, %0" : "+v"(acc) : "v"(sums));
  return acc;
#endif
}

}  // namespace
}  // namespace rwkv::cpu
