// Compiled with the SHA extensions switched on; nothing here but the question runs on a processor without them.
#include "core/simd/sha256_x86.h"

#include <cpuid.h>
#include <immintrin.h>

namespace rwkv {

bool sha256_x86_available() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_SSSE3) || !(c & bit_SSE4_1)) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA);
}

void sha256_x86_compress(uint32_t* h, const uint32_t* rounds, const std::byte* blocks, size_t count) {
  const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  const auto load = [](const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); };
  const auto store = [](void* p, __m128i v) { _mm_storeu_si128(static_cast<__m128i*>(p), v); };

  // The instructions want the words a..h as {f, e, b, a} and {h, g, d, c}, lowest lane first.
  const __m128i badc = _mm_shuffle_epi32(load(h), 0xb1);
  const __m128i hgfe = _mm_shuffle_epi32(load(h + 4), 0x1b);
  __m128i abef = _mm_alignr_epi8(badc, hgfe, 8);
  __m128i cdgh = _mm_blend_epi16(hgfe, badc, 0xf0);

  for (; count > 0; --count, blocks += 64) {
    const __m128i abef_before = abef;
    const __m128i cdgh_before = cdgh;
    __m128i w[4];
    for (int i = 0; i < 4; ++i) w[i] = _mm_shuffle_epi8(load(blocks + 16 * i), swap);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {  // four rounds, then the four message words used sixteen rounds later
      const __m128i wk = _mm_add_epi32(w[i % 4], load(rounds + 4 * i));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, wk);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(wk, 0x0e));
      if (i < 12) {
        const __m128i last = w[(i + 3) % 4];
        const __m128i sum =
            _mm_add_epi32(_mm_sha256msg1_epu32(w[i % 4], w[(i + 1) % 4]), _mm_alignr_epi8(last, w[(i + 2) % 4], 4));
        w[i % 4] = _mm_sha256msg2_epu32(sum, last);
      }
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }

  const __m128i feba = _mm_shuffle_epi32(abef, 0x1b);
  const __m128i dchg = _mm_shuffle_epi32(cdgh, 0xb1);
  store(h, _mm_blend_epi16(feba, dchg, 0xf0));
  store(h + 4, _mm_alignr_epi8(dchg, feba, 8));
}

}  // namespace rwkv
