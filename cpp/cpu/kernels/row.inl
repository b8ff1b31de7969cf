// What happens along one row: layer norm, the lerp of the token shift, a product with a small matrix of its own,
// widening, the search for NaN and infinity.
#pragma once
#include <string.h>

namespace rwkv::cpu {
namespace {

// A sum along a row: lane i of sixteen adds the elements i, i + 16, ... in order and sum16 joins the lanes, on every
// set.
constexpr int kParts = 16 / kLanes;
struct RowSum {
  Floats part[kParts];
  RowSum() {
    for (Floats& p : part) p = zero();
  }
  float total() const { return sum16(part); }
};
// f(sum of this lane, index of its first element) for rows of n padded to whole sixteens
template <class F>
inline float sum_row(int n, F f) {
  RowSum sum;
  for (int i = 0; i < n; i += 16)
    for (int j = 0; j < kParts; j++) sum.part[j] = f(sum.part[j], i + j * kLanes);
  return sum.total();
}

// The next vector of a row with so many elements left. Masks are slow, and rows whose length is a multiple of sixteen
// (Whole) need none.
template <bool Whole>
inline Floats load_some(const float* p, int left) {
  return Whole ? load(p) : load_first(p, left);
}
template <bool Whole>
inline void store_some(float* p, Floats a, int left) {
  Whole ? store(p, a) : store_first(p, a, left);
}

struct Moments {
  Floats mean, scale;  // scale: 1 / sqrt(variance + eps)
};
template <bool Whole = false>
inline Moments moments(const float* x, int n, float eps) {
  const float count = float(n);
  const Floats mean = all(sum_row(n, [=](Floats s, int i) { return add(s, load_some<Whole>(x + i, n - i)); }) / count);
  const float squares = sum_row(n, [=](Floats s, int i) {
    const Floats d = sub(load_some<Whole>(x + i, n - i), mean), kept = Whole ? d : keep_first(d, n - i);
    return fma(kept, kept, s);
  });
  return {mean, div(all(1.0f), sqrt(all(squares / count + eps)))};
}

void layer_norm(const float* x, const float* weight, const float* bias, int n, float eps, float* y) {
  const Moments m = moments(x, n, eps);
  for (int i = 0; i < n; i += kLanes) {
    const Floats d = mul(sub(load_first(x + i, n - i), m.mean), m.scale);
    store_first(y + i, fma(d, load_first(weight + i, n - i), load_first(bias + i, n - i)), n - i);
  }
}

void lerp(const float* xn, const float* previous, const float* mu, const float* dynamic, int n, float* y) {
  for (int i = 0; i < n; i += kLanes) {
    const Floats a = load_first(xn + i, n - i);
    Floats m = load_first(mu + i, n - i);
    if (dynamic) m = add(m, load_first(dynamic + i, n - i));
    store_first(y + i, fma(sub(load_first(previous + i, n - i), a), m, a), n - i);
  }
}

void small_product(const float* x, const float* a, const float* b, int n, float* y) {
  for (int j = 0; j < n; j += kLanes) {
    Floats sum = zero();
    for (int i = 0; i < n; i++) {
      const size_t at = size_t(i) * size_t(n) + size_t(j);
      sum = fma(all(x[i]), add(load_first(a + at, n - j), load_first(b + at, n - j)), sum);
    }
    store_first(y + j, sum, n - j);
  }
}

inline Floats load_bf16(const void* p) { return floats(shift_left<16>(load_u16(p))); }

void widen(const void* src, DType dtype, int n, float* y) {
  const auto* s = static_cast<const char*>(src);
  if (dtype == DType::f32) {
    memcpy(y, s, size_t(n) * sizeof(float));
    return;
  }
  if (dtype == DType::f64) {  // rare: no need for vectors
    for (int i = 0; i < n; i++) {
      double d;
      memcpy(&d, s + size_t(i) * sizeof d, sizeof d);
      y[i] = float(d);
    }
    return;
  }
  const auto convert = [dtype](const void* p) { return dtype == DType::f16 ? load_f16(p) : load_bf16(p); };
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, convert(s + size_t(i) * 2));
  if (i < n) {
    char rest[kLanes * 2] = {};
    memcpy(rest, s + size_t(i) * 2, size_t(n - i) * 2);
    store_first(y + i, convert(rest), n - i);
  }
}

bool all_finite(const float* x, size_t n) {
  Ints seen = all(0);  // x - x is zero, or NaN if x is not finite
  size_t i = 0;
  const auto look = [&seen](Floats a) { seen = bit_or(seen, bits(sub(a, a))); };
  for (; i + kLanes <= n; i += kLanes) look(load(x + i));
  look(load_first(x + i, int(n - i)));
  int32_t lane[kLanes];
  store_ints(lane, seen);
  for (int32_t v : lane)
    if (v != 0) return false;
  return true;
}

}  // namespace
}  // namespace rwkv::cpu
