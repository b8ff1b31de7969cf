// Element types: sizes, names, and the way of every floating type to float32.
#include "core/dtype.h"

#include <cstring>

#include "core/error.h"

namespace rwkv {
namespace {

// Files promise no alignment, so every element is copied out of its bytes; compilers make a plain load of it.
template <class Stored, class Convert>
void convert_all(const void* src, size_t n, float* dst, Convert convert) {
  const auto* bytes = static_cast<const std::byte*>(src);
  for (size_t i = 0; i < n; ++i) {
    Stored value;
    std::memcpy(&value, bytes + i * sizeof(Stored), sizeof(Stored));
    dst[i] = convert(value);
  }
}

}  // namespace

size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::f16:
    case DType::bf16:
    case DType::i16:
      return 2;
    case DType::i8:
    case DType::u8:
    case DType::boolean:
      return 1;
  }
  throw Error(join("expected an element type, found number ", int(dtype)));
}

std::string_view name_of(DType dtype) {
  static constexpr std::string_view names[] = {"f32", "f16", "bf16", "f64", "i64", "i32", "i16", "i8", "u8", "bool"};
  RWKV_CHECK(Error, size_t(dtype) < std::size(names), "expected an element type, found number ", int(dtype));
  return names[size_t(dtype)];
}

float f16_to_f32(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16;
  const uint32_t body = h & 0x7fff;
  // Subnormals go through an integer: as float32 bits they would be flushed on a thread that sets DAZ.
  const uint32_t small = std::bit_cast<uint32_t>(float(body) * 0x1p-24f);
  const uint32_t normal = (body << 13) + (112u << 23);
  const uint32_t special = (body << 13) | 0x7f800000;
  return std::bit_cast<float>(sign | (body < 0x0400 ? small : body < 0x7c00 ? normal : special));
}

uint16_t f32_to_f16(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f), sign = bits >> 16 & 0x8000, body = bits & 0x7fffffff;
  if (body > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (body >= 0x477ff000) return uint16_t(sign | 0x7c00);  // from halfway between the largest and 65536
  // Below the normal range the sum drops what float16 has no bits for, rounding to nearest even.
  if (body < 0x38800000)
    return uint16_t(sign | (std::bit_cast<uint32_t>(std::bit_cast<float>(body) + 0.5f) - 0x3f000000));
  return uint16_t(sign | ((body - (112u << 23) + 0xfff + (body >> 13 & 1)) >> 13));
}

void to_f32(const void* src, DType dtype, size_t n, float* dst) {
  if (n == 0) return;
  switch (dtype) {
    case DType::f32:
      std::memcpy(dst, src, n * sizeof(float));
      return;
    case DType::f16:
      return convert_all<uint16_t>(src, n, dst, f16_to_f32);
    case DType::bf16:
      return convert_all<uint16_t>(src, n, dst, bf16_to_f32);
    case DType::f64:
      return convert_all<double>(src, n, dst, [](double value) { return float(value); });
    default:
      throw Error(join("expected f32, f16, bf16 or f64 values, found ", name_of(dtype)));
  }
}

}  // namespace rwkv
