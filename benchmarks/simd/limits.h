// The machine's own limits: loops that only read, and loops that only multiply and add. Several readers, because which
// one is fastest differs from machine to machine: the limit is the best of them.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu/simd/x86.h"

namespace limits {

struct Reader {
  const char* name;
  uint64_t (*read)(const std::byte*, size_t);  // multiples of 256 bytes
};

// `rounds` times twelve chains of fused multiply-adds (generic: of multiplications and additions in turn), or of dot
// products.
struct Peak {
  const char* name;  // as the kernels' tables
  void (*run)(long rounds);
  double operations;  // per round
  void (*run_bytes)(long rounds) =
      nullptr;  // the same for dot products of int8, in the instructions that the set has for them
  double byte_operations = 0;
};

#if RWKV_X86

#define RWKV_READ(name, isa, type, lanes, zero, load, mix, hint) \
  __attribute__((target(isa))) inline uint64_t name(const std::byte* p, size_t n) { \
    type sum[4] = {zero, zero, zero, zero}; \
    for (size_t i = 0; i < n; i += 256) { \
      for (int j = 0; j < 256; j += lanes) { \
        if (j % 64 == 0) { \
          hint; \
        } \
        sum[j / lanes % 4] = mix(sum[j / lanes % 4], load(reinterpret_cast<const type*>(p + i + j))); \
      } \
    } \
    alignas(64) uint64_t out[8] = {}; \
    *reinterpret_cast<type*>(out) = mix(mix(sum[0], sum[1]), mix(sum[2], sum[3])); \
    return out[0] ^ out[1] ^ out[2] ^ out[3] ^ out[4] ^ out[5] ^ out[6] ^ out[7]; \
  }
// Before the loads of each line; assembly, as the kernels' own.
#define RWKV_AHEAD_L1 asm volatile("prefetcht0 %0" : : "m"(p[i + j + 2048]))
#define RWKV_AHEAD_L2 asm volatile("prefetcht1 %0" : : "m"(p[i + j + 4096]))

#define RWKV_READ_AVX2(name, hint) \
  RWKV_READ(name, "avx2", __m256i, 32, _mm256_setzero_si256(), _mm256_load_si256, _mm256_xor_si256, hint)
#define RWKV_READ_AVX512(name, hint) \
  RWKV_READ(name, "avx512f", __m512i, 64, _mm512_setzero_si512(), _mm512_load_si512, _mm512_xor_si512, hint)
RWKV_READ(read_sse2, "sse2", __m128i, 16, _mm_setzero_si128(), _mm_load_si128, _mm_xor_si128, )
RWKV_READ_AVX2(read_avx2, )
RWKV_READ_AVX2(read_avx2_l1, RWKV_AHEAD_L1)
RWKV_READ_AVX2(read_avx2_both, RWKV_AHEAD_L1; RWKV_AHEAD_L2)
RWKV_READ_AVX512(read_avx512, )
RWKV_READ_AVX512(read_avx512_l1, RWKV_AHEAD_L1)
RWKV_READ_AVX512(read_avx512_both, RWKV_AHEAD_L1; RWKV_AHEAD_L2)

#define RWKV_TWELVE(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11)
#define RWKV_PEAK(name, isa, type, value, code) \
  __attribute__((target(isa))) inline void name(long rounds) { \
    type a0 = value, a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0, a8 = a0, a9 = a0, a10 = a0, \
         a11 = a0; \
    type x = a0; \
    for (long i = 0; i < rounds; i++) { \
      RWKV_TWELVE(code) \
    } \
  }
// Assembly, because a compiler would see that nothing comes of it.
#define RWKV_FMA(i) asm volatile("vfmadd213ps %1,%1,%0" : "+v"(a##i) : "v"(x));
#define RWKV_FMA_YMM(i) asm volatile("vfmadd213ps %1,%1,%0" : "+x"(a##i) : "x"(x));
#define RWKV_MUL_ADD(i) asm volatile("mulps %1,%0\n addps %1,%0" : "+x"(a##i) : "x"(x));
RWKV_PEAK(peak_sse2, "sse2", __m128, _mm_set1_ps(0.5f), RWKV_MUL_ADD)
RWKV_PEAK(peak_avx2, "avx2,fma", __m256, _mm256_set1_ps(0.5f), RWKV_FMA_YMM)
RWKV_PEAK(peak_avx512, "avx512f", __m512, _mm512_set1_ps(0.5f), RWKV_FMA)

// Dot products that accumulate in lanes of 32 bits: pairs of bf16, and fours of int8 in one instruction or in three.
#define RWKV_BF16(i) asm volatile("vdpbf16ps %1,%1,%0" : "+v"(a##i) : "v"(x));
#define RWKV_VNNI(i) asm volatile("vpdpbusd %1,%1,%0" : "+v"(a##i) : "v"(x));
#define RWKV_AVX_VNNI(i) asm volatile("%{vex%} vpdpbusd %1,%1,%0" : "+x"(a##i) : "x"(x));
#define RWKV_INT8(type, i) \
  { \
    type products; \
    asm volatile("vpmaddubsw %2,%2,%1\n vpmaddwd %2,%1,%1\n vpaddd %1,%0,%0" : "+v"(a##i), "=&v"(products) : "v"(x)); \
  }
#define RWKV_INT8_YMM(i) RWKV_INT8(__m256i, i)
#define RWKV_INT8_ZMM(i) RWKV_INT8(__m512i, i)
RWKV_PEAK(dot_bf16, "avx512f", __m512i, _mm512_set1_epi32(0), RWKV_BF16)
RWKV_PEAK(dot_int8_avx2, "avx2", __m256i, _mm256_set1_epi32(1), RWKV_INT8_YMM)
RWKV_PEAK(dot_int8_avx512, "avx512f,avx512bw", __m512i, _mm512_set1_epi32(1), RWKV_INT8_ZMM)
RWKV_PEAK(dot_int8_avxvnni, "avx2,avxvnni", __m256i, _mm256_set1_epi32(1), RWKV_AVX_VNNI)
RWKV_PEAK(dot_int8_vnni, "avx512f,avx512vnni", __m512i, _mm512_set1_epi32(1), RWKV_VNNI)
#define RWKV_DOT_SHORTS(i) asm volatile("vpmaddwd %1,%1,%0\n vpaddd %1,%0,%0" : "+v"(a##i) : "v"(x));
#define RWKV_DOT_SHORTS_YMM(i) asm volatile("vpmaddwd %1,%1,%0\n vpaddd %1,%0,%0" : "+x"(a##i) : "x"(x));
RWKV_PEAK(peak_shorts_avx2, "avx2", __m256i, _mm256_set1_epi32(1), RWKV_DOT_SHORTS_YMM)
RWKV_PEAK(peak_shorts_avx512, "avx512bw", __m512i, _mm512_set1_epi32(1), RWKV_DOT_SHORTS)

// Four products of tiles with sums of their own, of 16 x 64 and 64 x 16 bytes.
__attribute__((target("amx-tile,amx-int8"))) inline void tiles_int8(long rounds) {
  alignas(64) struct {
    uint8_t palette = 1, reserved[15] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } shapes;
  asm volatile("ldtilecfg %0" : : "m"(shapes));
  for (long i = 0; i < rounds; i++)
    asm volatile(
        "tdpbsud %tmm6,%tmm4,%tmm0\n tdpbsud %tmm7,%tmm4,%tmm1\n"
        "tdpbsud %tmm6,%tmm5,%tmm2\n tdpbsud %tmm7,%tmm5,%tmm3");
  asm volatile("tilerelease");
}

inline const Reader kReaders[] = {{"sse2", read_sse2},
                                  {"avx2", read_avx2},
                                  {"avx2, L1 hint", read_avx2_l1},
                                  {"avx2, L1 and L2 hints", read_avx2_both},
                                  {"avx512", read_avx512},
                                  {"avx512, L1 hint", read_avx512_l1},
                                  {"avx512, L1 and L2 hints", read_avx512_both}};
inline const Peak kPeaks[] = {{"generic", peak_sse2, 12 * 8, peak_sse2, 12 * 8},
                              {"avx2", peak_avx2, 12 * 16, peak_shorts_avx2, 12 * 32},
                              {"avxvnni", peak_avx2, 12 * 16, dot_int8_avxvnni, 12 * 64},
                              {"avx512", peak_avx512, 12 * 32, peak_shorts_avx512, 12 * 64},
                              {"avx512vnni", peak_avx512, 12 * 32, dot_int8_vnni, 12 * 128},
                              {"avx512amx", peak_avx512, 12 * 32, tiles_int8, 4 * 2 * 16 * 16 * 64},
                              {"avx512bf16", peak_avx512, 12 * 32, dot_int8_vnni, 12 * 128}};
inline const Peak kBf16Dots[] = {{"avx512bf16", dot_bf16, 12 * 64}};
inline const Peak kInt8Dots[] = {{"avx2", dot_int8_avx2, 12 * 64},
                                 {"avxvnni", dot_int8_avxvnni, 12 * 64},
                                 {"avx512", dot_int8_avx512, 12 * 128},
                                 {"avx512vnni", dot_int8_vnni, 12 * 128}};

#else

inline uint64_t read_words(const std::byte* p, size_t n) {
  uint64_t sum = 0;
  for (size_t i = 0; i < n / 8; i++) sum ^= reinterpret_cast<const uint64_t*>(p)[i];
  return sum;
}
inline void peak_plain(long rounds) {
  float a[48];
  for (float& v : a) v = 0.5f;
  for (long i = 0; i < rounds; i++) {
    for (float& v : a) v = v * 0.5f + 0.5f;
    asm volatile("" : : "r"(a) : "memory");
  }
}
inline const Reader kReaders[] = {{"words", read_words}};
inline const Peak kPeaks[] = {{"generic", peak_plain, 48 * 2, peak_plain, 48 * 2}};
inline const Peak kBf16Dots[] = {{"generic", peak_plain, 48 * 2}};
inline const Peak kInt8Dots[] = {{"generic", peak_plain, 48 * 2}};

#endif

}  // namespace limits
