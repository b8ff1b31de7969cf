#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace rwkv {

static_assert(std::endian::native == std::endian::little, "files are read as little-endian memory");

enum class DType : uint8_t { f32, f16, bf16, f64, i64, i32, i16, i8, u8, boolean };

size_t size_of(DType dtype);            // bytes per element
std::string_view name_of(DType dtype);  // "f32", ...
inline bool is_float(DType dtype) { return dtype <= DType::f64; }

inline float bf16_to_f32(uint16_t h) { return std::bit_cast<float>(uint32_t(h) << 16); }

// Round to nearest even. NaN stays NaN (the rounding add would carry some of them into infinity).
inline uint16_t f32_to_bf16(float f) {
  const uint32_t b = std::bit_cast<uint32_t>(f);
  if ((b & 0x7fffffff) > 0x7f800000) return uint16_t(b >> 16 | 0x40);
  return uint16_t((b + 0x7fff + (b >> 16 & 1)) >> 16);
}

float f16_to_f32(uint16_t h);
uint16_t f32_to_f16(float f);  // to nearest even; too large becomes infinity, NaN stays NaN

// n elements of a floating dtype to float32.
void to_f32(const void* src, DType dtype, size_t n, float* dst);

}  // namespace rwkv
