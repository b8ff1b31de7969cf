// Numbers of 16 bits in software, rounded to nearest even.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

namespace cusim {

inline float half_to_float(uint16_t h) {
  // The exponent moved to its place is 112 too small, for denormals too.
  const float small = std::bit_cast<float>(uint32_t(h & 0x7fff) << 13) * 0x1p112f;
  const uint32_t sign = uint32_t(h & 0x8000) << 16;
  const bool finite = (h & 0x7c00) != 0x7c00;
  return std::bit_cast<float>(sign |
                              (finite ? std::bit_cast<uint32_t>(small) : 0x7f800000u | uint32_t(h & 1023) << 13));
}

inline uint16_t float_to_half(float v) {
  const uint32_t b = std::bit_cast<uint32_t>(v), magnitude = b & 0x7fffffff;
  const auto sign = uint16_t(b >> 16 & 0x8000);
  if (magnitude > 0x7f800000) return 0x7fff;  // as the GPU's conversion
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);
  if (magnitude < 0x38800000)  // denormal: a multiple of 2^-24
    return uint16_t(sign | uint16_t(std::nearbyint(std::bit_cast<float>(magnitude) * 0x1p24f)));
  return uint16_t(sign | (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

inline float bf16_to_float(uint16_t h) { return std::bit_cast<float>(uint32_t(h) << 16); }

}  // namespace cusim
