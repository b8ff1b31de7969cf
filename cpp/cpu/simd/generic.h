// Four lanes of plain C++, for any machine. The names are explained in avx512.h. Without a fused multiply-add the
// results differ from the other sets in the last bits.
#pragma once
#include <math.h>
#include <string.h>

#include "cpu/kernels.h"

namespace rwkv::cpu {
namespace {

constexpr int kLanes = 4;
constexpr int kTileVectors = 2;
constexpr int kTileTokens = 4;
constexpr int kByteTokens = 4;
constexpr int kByteRegisters = 16;
constexpr int kBlockColumns = 512;
constexpr int kWkvVectors = 2;
constexpr bool kUnpackHalves = false;
constexpr int kStreamNear = 0, kStreamFar = 0, kStreamTokens = 1, kStreamNarrowTokens = 1;

struct Floats {
  float lane[kLanes];
};
struct Ints {
  int32_t lane[kLanes];
};

template <class V, class F>
inline V each(F f) {
  V r;
  for (int i = 0; i < kLanes; i++) r.lane[i] = f(i);
  return r;
}
template <class To, class From>
inline To as(From a) {
  static_assert(sizeof(To) == sizeof(From));
  To r;
  memcpy(&r, &a, sizeof r);
  return r;
}

inline Floats all(float a) {
  return each<Floats>([=](int) { return a; });
}
inline Floats zero() { return all(0.0f); }
inline Floats load(const float* p) {
  return each<Floats>([=](int i) { return p[i]; });
}
inline void store(float* p, Floats a) { memcpy(p, &a, sizeof a); }
inline Floats fma(Floats a, Floats b, Floats c) {
  return each<Floats>([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
}
inline Floats add(Floats a, Floats b) {
  return each<Floats>([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline Floats sub(Floats a, Floats b) {
  return each<Floats>([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline Floats mul(Floats a, Floats b) {
  return each<Floats>([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline Floats div(Floats a, Floats b) {
  return each<Floats>([&](int i) { return a.lane[i] / b.lane[i]; });
}
inline Floats sqrt(Floats a) {
  return each<Floats>([&](int i) { return ::sqrtf(a.lane[i]); });
}
inline Floats max(Floats a, Floats b) {
  return each<Floats>([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Floats min(Floats a, Floats b) {
  return each<Floats>([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Floats select_less(Floats a, Floats b, Floats x, Floats y) {
  return each<Floats>([&](int i) { return a.lane[i] < b.lane[i] ? x.lane[i] : y.lane[i]; });
}
inline Ints select_nan(Floats a, Ints x, Ints y) {
  return each<Ints>([&](int i) { return a.lane[i] != a.lane[i] ? x.lane[i] : y.lane[i]; });
}

inline Floats load_first(const float* p, int count) {
  return each<Floats>([=](int i) { return i < count ? p[i] : 0.0f; });
}
inline void store_first(float* p, Floats a, int count) {
  for (int i = 0; i < kLanes && i < count; i++) p[i] = a.lane[i];
}
inline Floats keep_first(Floats a, int count) {
  return each<Floats>([&](int i) { return i < count ? a.lane[i] : 0.0f; });
}

// Through unsigned where a sum or a shift may pass the sign bit.
inline Ints all(int a) {
  return each<Ints>([=](int) { return a; });
}
inline Ints load_ints(const void* p) {
  Ints r;
  memcpy(&r, p, sizeof r);
  return r;
}
inline void store_ints(void* p, Ints a) { memcpy(p, &a, sizeof a); }
inline Ints add(Ints a, Ints b) {
  return each<Ints>([&](int i) { return int32_t(uint32_t(a.lane[i]) + uint32_t(b.lane[i])); });
}
inline Ints sub(Ints a, Ints b) {
  return each<Ints>([&](int i) { return int32_t(uint32_t(a.lane[i]) - uint32_t(b.lane[i])); });
}
inline Ints bit_and(Ints a, Ints b) {
  return each<Ints>([&](int i) { return a.lane[i] & b.lane[i]; });
}
inline Ints bit_or(Ints a, Ints b) {
  return each<Ints>([&](int i) { return a.lane[i] | b.lane[i]; });
}
template <int n>
inline Ints shift_left(Ints a) {
  return each<Ints>([&](int i) { return int32_t(uint32_t(a.lane[i]) << n); });
}
template <int n>
inline Ints shift_right(Ints a) {
  return each<Ints>([&](int i) { return int32_t(uint32_t(a.lane[i]) >> n); });
}
template <int n>
inline Ints shift_right_signed(Ints a) {
  return each<Ints>([&](int i) { return a.lane[i] >> n; });
}
inline Ints max(Ints a, Ints b) {
  return each<Ints>([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Floats to_floats(Ints a) {
  return each<Floats>([&](int i) { return float(a.lane[i]); });
}
inline int largest(Ints a) {
  int most = a.lane[0];
  for (int lane : a.lane) most = most < lane ? lane : most;
  return most;
}
inline int total(Ints a) {
  uint32_t sum = 0;
  for (int lane : a.lane) sum += uint32_t(lane);
  return int(sum);
}
inline void store_bytes(void* p, Ints a) {
  for (int i = 0; i < kLanes; i++) static_cast<uint8_t*>(p)[i] = uint8_t(a.lane[i]);
}
inline uint32_t nonzero(Ints a) {
  uint32_t found = 0;
  for (int i = 0; i < kLanes; i++) found |= uint32_t(a.lane[i] != 0) << i;
  return found;
}
inline void lanes_of_columns(const std::byte* const columns[4], size_t at, Ints to[4]) {
  for (size_t v = 0; v < 4; v++)
    for (size_t i = 0; i < 4; i++) {
      std::byte lane[4];
      for (int column = 0; column < 4; column++) lane[column] = columns[column][at + 4 * v + i];
      memcpy(&to[v].lane[i], lane, 4);
    }
}
inline Ints bits(Floats a) { return as<Ints>(a); }
inline Floats floats(Ints a) { return as<Floats>(a); }

inline Ints load_u16(const void* p) {
  uint16_t h[kLanes];
  memcpy(h, p, sizeof h);
  return each<Ints>([&](int i) { return int32_t(h[i]); });
}
inline Floats load_f16(const void* p) {
  const Ints h = load_u16(p);
  return each<Floats>([&](int i) {
    const uint32_t sign = uint32_t(h.lane[i] & 0x8000) << 16, exponent = h.lane[i] >> 10 & 31,
                   fraction = h.lane[i] & 1023;
    if (exponent == 0) {  // fraction * 2^-24 is exact and normal
      const float f = float(fraction) * 0x1p-24f;
      return sign ? -f : f;
    }
    const uint32_t quiet = exponent == 31 && fraction ? 0x400000 : 0;
    return as<float>(sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13 | quiet);
  });
}

#define RWKV_DOT_BYTES
inline Ints dot_bytes(Ints acc, Ints w, Ints x) {
  return each<Ints>([&](int i) {
    int sum = acc.lane[i];
    for (int shift = 0; shift < 32; shift += 8)
      sum += int(uint8_t(w.lane[i] >> shift)) * int(int8_t(x.lane[i] >> shift));
    return sum;
  });
}
inline Ints dot_halves(Ints acc, Ints low, Ints x_low, Ints high, Ints x_high) {
  return dot_bytes(dot_bytes(acc, low, x_low), high, x_high);
}

inline Ints even_odd_shorts(const void* p) {
  const auto* bytes = static_cast<const int8_t*>(p);
  return each<Ints>([&](int i) {
    const int first = i / 2 * 4 + i % 2;
    return int(uint16_t(bytes[first]) | uint32_t(uint16_t(bytes[first + 2])) << 16);
  });
}

inline float sum16(const Floats* s) {
  const Floats a = add(add(s[0], s[2]), add(s[1], s[3]));
  return (a.lane[0] + a.lane[2]) + (a.lane[1] + a.lane[3]);
}

inline void transpose4(const uint32_t* const rows[4], size_t at, uint32_t* to, size_t ld) {
  for (size_t i = 0; i < 4; i++)
    for (size_t j = 0; j < 4; j++) memcpy(to + i * ld + j, rows[j] + at + i, 4);
}
inline void store_past(float* p, Floats a) { store(p, a); }
inline void prefetch_l1(const std::byte*) {}
inline void prefetch_l2(const std::byte*) {}

}  // namespace
}  // namespace rwkv::cpu
