// Four rows of four words turned, for the sets of x86. Included by their headers, so that each set has its own copy.
#pragma once
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace rwkv::cpu {
namespace {

inline void transpose4(const uint32_t* const rows[4], size_t at, uint32_t* to, size_t ld) {
  const auto row = [&](int i) { return _mm_loadu_ps(reinterpret_cast<const float*>(rows[i] + at)); };
  const auto put = [&](size_t i, __m128 words) { _mm_storeu_ps(reinterpret_cast<float*>(to + i * ld), words); };
  const __m128 a = _mm_unpacklo_ps(row(0), row(1)), b = _mm_unpackhi_ps(row(0), row(1));
  const __m128 c = _mm_unpacklo_ps(row(2), row(3)), d = _mm_unpackhi_ps(row(2), row(3));
  put(0, _mm_movelh_ps(a, c));
  put(1, _mm_movehl_ps(c, a));
  put(2, _mm_movelh_ps(b, d));
  put(3, _mm_movehl_ps(d, b));
}

}  // namespace
}  // namespace rwkv::cpu
