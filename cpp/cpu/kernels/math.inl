// exp, sigmoid, tanh and the activations: polynomials of our own, so that every set and every machine agrees. All are
// within 2.2 units in the last place, saturate where float32 does, and give NaN for NaN.
#pragma once

namespace rwkv::cpu {
namespace {

inline Floats exp(Floats x) {
  // x = n ln 2 + r, n kept in the low bits of a large float; ln 2 in two parts, n times the first is exact.
  x = max(all(-104.0f), min(all(89.0f), x));
  const Floats shift = all(0x1.8p23f);
  const Floats t = fma(x, all(0x1.715476p0f), shift);
  const Floats n = sub(t, shift);
  Floats r = fma(n, all(-0x1.62e4p-1f), x);
  r = fma(n, all(-0x1.7f7d1cp-20f), r);
  // e^r = 1 + r + r^2 q(r), minimax on |r| <= ln 2 / 2, 0.05 units
  Floats q = all(0x1.6a2434p-10f);
  q = fma(q, r, all(0x1.1239e2p-7f));
  q = fma(q, r, all(0x1.5558f2p-5f));
  q = fma(q, r, all(0x1.555492p-3f));
  q = fma(q, r, all(0x1.fffffcp-2f));
  const Floats p = add(fma(mul(r, r), q, r), all(1.0f));
  // times 2^n in two factors, each of which is a float32 for every n
  const Ints e = sub(bits(t), bits(shift));
  const Ints half = shift_right_signed<1>(e);
  const Ints bias = all(127);
  const Floats low = floats(shift_left<23>(add(half, bias)));
  const Floats high = floats(shift_left<23>(add(sub(e, half), bias)));
  return mul(mul(p, low), high);
}

inline Floats sigmoid(Floats x) {
  const Floats one = all(1.0f);
  return div(one, add(one, exp(sub(zero(), x))));
}

inline Floats tanh(Floats x) {
  const Ints sign_bit = all(int(0x80000000));
  const Ints sign = bit_and(bits(x), sign_bit);
  const Floats a = floats(bit_and(bits(x), all(0x7fffffff)));
  // x + x^3 q(x^2), minimax below 0.625, 0.07 units; 1 - 2 / (e^2x + 1) above
  const Floats z = mul(a, a);
  Floats q = all(-0x1.75e1ccp-8f);
  q = fma(q, z, all(0x1.52269ap-6f));
  q = fma(q, z, all(-0x1.b83c5ap-5f));
  q = fma(q, z, all(0x1.110726p-3f));
  q = fma(q, z, all(-0x1.555532p-2f));
  const Floats small = fma(mul(a, z), q, a);
  const Floats large = sub(all(1.0f), div(all(2.0f), add(exp(add(a, a)), all(1.0f))));
  return floats(bit_or(bits(select_less(a, all(0.625f), small, large)), sign));
}

inline Floats activate(Act act, Floats x) {
  switch (act) {
    case Act::none:
      return x;
    case Act::tanh:
      return tanh(x);
    case Act::sigmoid:
      return sigmoid(x);
    case Act::silu:
      return mul(x, sigmoid(x));
    case Act::relu2:
      break;
  }
  const Floats positive = max(zero(), x);
  return mul(positive, positive);
}

// bf16 in the low half of each lane: round to nearest even, NaN kept.
inline Ints to_bf16(Floats x) {
  const Ints b = bits(x), upper = shift_right<16>(b);
  const Ints rounded = shift_right<16>(add(add(b, all(0x7fff)), bit_and(upper, all(1))));
  return select_nan(x, bit_or(upper, all(0x40)), rounded);
}

}  // namespace
}  // namespace rwkv::cpu
