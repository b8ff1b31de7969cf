// What has to be asked of an x86 processor itself: which sets it has, its floating point mode, a pause. On other
// machines the same names that do nothing.
#pragma once

#ifdef __x86_64__
#define RWKV_X86 1
#include <cpuid.h>
#include <immintrin.h>
#else
#define RWKV_X86 0
#endif

namespace rwkv::cpu::x86 {

struct Features {
  bool avx2 = false, avxvnni = false, avx512 = false, avx512vnni = false,
       avx512bf16 = false;  // as compiled, and saved by the system
  bool avx512amx = false;   // which also has to be asked for it
  bool intel = false;
};

#if RWKV_X86

inline Features features() {
  unsigned a, b, c, d, top;
  Features f;
  if (!__get_cpuid(0, &top, &b, &c, &d) || top < 7) return f;
  f.intel = b == signature_INTEL_ebx && c == signature_INTEL_ecx && d == signature_INTEL_edx;

  __cpuid(1, a, b, c, d);
  constexpr unsigned saved_by_system = 1u << 27, needed = bit_FMA | bit_AVX | bit_F16C | saved_by_system;
  if ((c & needed) != needed) return f;
  unsigned saved, high;  // which registers the system saves: 2 and 4 xmm, ymm; 0xe0 masks and zmm
  __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));

  unsigned b7, d7, most;
  __cpuid_count(7, 0, most, b7, c, d7);
  const auto has = [](unsigned word, unsigned wanted) { return (word & wanted) == wanted; };
  f.avx2 = has(saved, 6) && has(b7, bit_AVX2 | bit_BMI2);
  f.avx512 = f.avx2 && has(saved, 0xe6) && has(b7, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL);
  f.avx512vnni = f.avx512 && has(c, bit_AVX512VNNI);
  constexpr unsigned tiles_saved = 3u << 17, tiles = 1u << 22 | 1u << 24 | 1u << 25;  // AMX-BF16, -TILE and -INT8
  f.avx512amx = f.avx512vnni && has(saved, tiles_saved) && has(d7, tiles);
  if (most >= 1) {
    __cpuid_count(7, 1, a, b, c, d);
    f.avxvnni = f.avx2 && has(a, 1u << 4);  // bit_AVXVNNI, which some headers have wrong
    f.avx512bf16 = f.avx512vnni && has(a, bit_AVX512BF16);
  }
  return f;
}

inline unsigned float_mode() { return _mm_getcsr(); }
inline void set_float_mode(unsigned mode) { _mm_setcsr(mode); }
constexpr unsigned kFlushDenormals = 0x9fc0;  // flush to zero, denormals are zero, to nearest even, no traps
constexpr unsigned kKeepDenormals = 0x1f80;   // the same without the first two
inline void pause() { _mm_pause(); }

#else

inline Features features() { return {}; }
inline unsigned float_mode() { return 0; }
inline void set_float_mode(unsigned) {}
constexpr unsigned kFlushDenormals = 0, kKeepDenormals = 0;
inline void pause() {}

#endif

}  // namespace rwkv::cpu::x86
