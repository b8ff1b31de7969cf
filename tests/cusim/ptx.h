// What ptx.py's functions consist of: registers, numbers and memory as PTX ISA 9.0 has them. What threads do together,
// and halves, are gpu.h's.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "cuda/kernels/gpu.h"
#include "cusim/counts.h"

namespace cusim::ptx {

template <class To, class From>
To bits_as(From v) {
  return std::bit_cast<To>(v);
}
// A register read as a type: its low bits, or the same bits as another kind of number.
template <class To, class From>
To as(From v) {
  if constexpr (std::is_integral_v<To> == std::is_integral_v<From>) {
    static_assert(std::is_integral_v<To> || sizeof(To) == sizeof(From));
    return To(v);
  } else {
    return std::bit_cast<To>(v);
  }
}
// A result of a type in a register, extended with its sign if it has one.
template <class Register, class V>
void put(Register& to, V v) {
  if constexpr (std::is_integral_v<Register> == std::is_integral_v<V>)
    to = Register(v);
  else
    to = std::bit_cast<Register>(v);
}
// What a register begins with, which no kernel should rely on: all bits, which is NaN.
template <class Register>
constexpr Register kUnset = Register(-1);
template <>
inline constexpr float kUnset<float> = std::bit_cast<float>(~uint32_t(0));
template <>
inline constexpr double kUnset<double> = std::bit_cast<double>(~uint64_t(0));

// ---- numbers ----
template <class T>
T reciprocal(T v) {
  return 1 / v;
}
template <class T>
T product_lo(T a, T b) {
  return T(uint64_t(a) * uint64_t(b));
}
template <class T>
auto product_wide(T a, T b) {
  using Signed = std::conditional_t<sizeof(T) == 2, int32_t, int64_t>;
  using Wide = std::conditional_t<std::is_signed_v<T>, Signed, std::make_unsigned_t<Signed>>;
  return Wide(a) * Wide(b);
}
template <class T>
T product_hi(T a, T b) {
  using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  return T(Wide(a) * Wide(b) >> sizeof(T) * 8);
}
// What PTX leaves open, something.
template <class T>
T divide(T a, T b) {
  if (b == 0) return T(-1);
  if (std::is_signed_v<T> && b == T(-1)) return T(0 - std::make_unsigned_t<T>(a));
  return T(a / b);
}
template <class T>
bool ordered(T a, T b) {
  return !std::isnan(a) && !std::isnan(b);
}
// Of a number and NaN the number, and -0 is less than 0.
template <class T>
T least(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    if (!ordered(a, b)) return std::isnan(a) ? b : a;
    if (a == b) return std::signbit(a) ? a : b;
  }
  return a < b ? a : b;
}
template <class T>
T most(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    if (!ordered(a, b)) return std::isnan(a) ? b : a;
    if (a == b) return std::signbit(a) ? b : a;
  }
  return a > b ? a : b;
}
// Shifts by more than there are bits leave none but signs.
template <class T>
T shift_left(T v, uint32_t by) {
  return by < sizeof(T) * 8 ? T(v << by) : T(0);
}
template <class T>
T shift_right(T v, uint32_t by) {
  if (by < sizeof(T) * 8) return T(v >> by);
  return std::is_signed_v<T> && v < 0 ? T(-1) : T(0);
}
// The low bits of a in those of b, from a place on.
template <class T>
T insert(T a, T b, uint32_t at, uint32_t length) {
  at &= 255, length &= 255;
  const T ones = length >= sizeof(T) * 8 ? T(~T(0)) : T((T(1) << length) - 1);
  const T mask = shift_left(ones, at);
  return T((shift_left(a, at) & mask) | (b & ~mask));
}
// As permute of gpu.h, and with bit 3 of a nibble its byte's sign eight times.
inline uint32_t permute_signed(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t chosen = rwkv::cuda::permute(a, b, selector);
  for (int i = 0; i < 4; i++)
    if (selector >> 4 * i & 8) {
      const uint32_t sign = chosen >> (8 * i + 7) & 1;
      chosen = (chosen & ~(0xffu << 8 * i)) | (sign ? 0xffu << 8 * i : 0);
    }
  return chosen;
}
// Towards zero, and at least and at most what there is; NaN becomes 0 only where both have up to 32 bits.
template <class To, class From>
To truncate(From v) {
  using Limits = std::numeric_limits<To>;
  if (std::isnan(v)) return sizeof(To) == 8 || sizeof(From) == 8 ? To(uint64_t(1) << (sizeof(To) * 8 - 1)) : To(0);
  if (v <= From(Limits::min())) return Limits::min();
  if (v >= From(Limits::max())) return Limits::max();
  return To(v);
}

// ---- memory ----
inline uint64_t address(const void* p) { return reinterpret_cast<uint64_t>(p); }
template <class T>
T load(uint64_t at, int i) {
  T v;
  std::memcpy(&v, reinterpret_cast<const T*>(at) + i, sizeof v);
  return v;
}
template <class T>
void store(uint64_t at, int i, T v) {
  std::memcpy(reinterpret_cast<T*>(at) + i, &v, sizeof v);
}

// Whether memory of the device, or of the block, is there.
bool known(uint64_t at, uint64_t bytes);
// Neither reads nor writes, says what a kernel may not do: touch what is not there, or anything that the kernel in
// front may still be at work on.
inline uint64_t global(uint64_t at, uint64_t bytes, bool waited, Place place) {
  if (!waited) fail("memory is read or written before the kernel in front is waited for", place);
  if (bytes != 0 && at % bytes != 0) fail("an address is not a multiple of what is read or written there", place);
  if (bytes != 0 && !known(at, bytes)) fail("memory that is not there is read or written", place);
  if (counting) count_access(at - address(now.shared) < now.shared_bytes, at, bytes, place);
  return at;
}
inline uint64_t shared(uint32_t at, uint32_t bytes, Place place) {
  if (at % bytes != 0) fail("an address is not a multiple of what is read or written there", place);
  if (uint64_t(at) + bytes > now.shared_bytes) fail("shared memory that is not there is read or written", place);
  if (counting) count_access(true, at, bytes, place);
  return address(now.shared) + at;
}
inline void copy_or_zero(uint64_t to, uint64_t from, uint32_t bytes, Place place) {
  if (bytes != 0 && bytes != 16) fail("a copy of neither 16 bytes nor none", place);
  copy_async(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes != 0, place);
}

// ---- threads ----
inline void all_lanes(uint32_t mask, uint32_t limits, Place place) {
  if (mask != ~0u || limits != 31) fail("an operation of some lanes of a warp", place);
}
inline void ended(bool waited, const Instructions& done, Place place) {
  if (!waited) fail("a thread ends without waiting for the kernel in front", place);
  if (counting) count_thread(done);
}

}  // namespace cusim::ptx
