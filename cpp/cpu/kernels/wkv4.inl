// RWKV-4's recurrence: every channel is a weighted mean of its values, for itself. Numerator a and denominator b are
// kept divided by e^m, m the greatest exponent so far, so that no exponential exceeds one.
#pragma once
#include "cpu/kernels/math.inl"

namespace rwkv::cpu {
namespace {

void wkv4(const Wkv4Channels& p) {
  for (int i = 0; i < p.n; i += kLanes) {
    const int count = p.n - i;
    const Floats bonus = load_first(p.bonus + i, count), decay = load_first(p.decay + i, count);
    Floats a = load_first(p.src_a + i, count), b = load_first(p.src_b + i, count), m = load_first(p.src_m + i, count);
    for (int t = 0; t < p.tokens; t++) {
      const auto token = [=](const float* x) { return load_first(x + size_t(t) * p.ld + i, count); };
      const Floats k = token(p.k), v = token(p.v);
      // This token counts with its bonus in the result and without it in the state.
      const Floats now = add(k, bonus), top = max(m, now);
      const Floats past = exp(sub(m, top)), weight = exp(sub(now, top));
      const Floats mean = div(fma(weight, v, mul(past, a)), fma(past, b, weight));
      store_first(p.y + size_t(t) * p.ldy + i, mul(token(p.r), mean), count);

      const Floats later = add(m, decay), next = max(later, k);
      const Floats kept = exp(sub(later, next)), added = exp(sub(k, next));
      a = fma(added, v, mul(kept, a));
      b = fma(kept, b, added);
      m = next;
    }
    store_first(p.dst_a + i, a, count);
    store_first(p.dst_b + i, b, count);
    store_first(p.dst_m + i, m, count);
  }
}

}  // namespace
}  // namespace rwkv::cpu
