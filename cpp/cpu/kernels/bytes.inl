// The innermost loops of a product of int8 or int4: integer sums of a group in registers, then one float32 FMA for
// each.
//
// Sets without dot products of bytes multiply as numbers of 16 bits, which is exact: weights are split on the way, even
// and odd bytes; activations come so, see Activations in linear.inl, and shorts.inl for many tokens. int4 needs no such
// thing: its sums of four products fit into 16 bits.
#pragma once
#include "cpu/kernels/multiply.inl"

namespace rwkv::cpu {
namespace {

#ifdef RWKV_DOT_BYTES
constexpr int kParts8 = 1;  // words that four activations take
#else
constexpr int kParts8 = 2;
#endif
template <Format F>
constexpr bool kShorts = F == Format::i8 && kParts8 == 2;
template <Format F>
constexpr int kPartsOf = F == Format::i8 ? kParts8 : 1;
template <Format F>
constexpr int kTokenWords = kGroup / 4 * kPartsOf<F>;  // of a token's group: its numbers
template <Format F>
constexpr int kGroupWords = kTokenWords<F> + 2;  // and scale and correction

template <int M>
constexpr int kByteVectors = kPanel / kLanes * M <= kByteRegisters / 2 ? kPanel / kLanes : 2;

// Four columns of weights, a word of them to a lane, times those of M tokens.
template <int V, int M, bool Stream>
inline void add_bytes(Ints (&dots)[M][V], const std::byte* w, const int* x) {
  Ints b[V];
#ifdef RWKV_DOT_BYTES
#pragma GCC unroll 64
  for (int v = 0; v < V; v++) {
    if (Stream) fetch_stream<V, 4>(w + v * kLanes * 4, v);
    b[v] = load_ints(w + v * kLanes * 4);
  }
#pragma GCC unroll 64
  for (int m = 0; m < M; m++) {
    const Ints a = all(x[m * kTokenWords<Format::i8>]);
#pragma GCC unroll 64
    for (int v = 0; v < V; v++) dots[m][v] = dot_bytes(dots[m][v], b[v], a);
  }
#else
#pragma GCC unroll 64
  for (int half = 0; half < 2; half++) {
#pragma GCC unroll 64
    for (int v = 0; v < V; v++) {
      if (Stream && half == 0) fetch_stream<V, 4>(w + v * kLanes * 4, v);
      const Ints bytes = load_ints(w + v * kLanes * 4);
      b[v] = half ? odd_bytes(bytes) : even_bytes(bytes);
    }
#pragma GCC unroll 64
    for (int m = 0; m < M; m++) {
      const int& a = x[m * kTokenWords<Format::i8> + half];
      if constexpr (V == 2) {
        dot_shorts(dots[m], b, a);
      } else {
#pragma GCC unroll 64
        for (int v = 0; v < V; v++) dots[m][v] = dot_shorts(dots[m][v], b[v], all(a));
      }
    }
  }
#endif
}

// A group of m tokens with numbers of 16 bits: of every four columns of a token the even two, then the odd two.
// Returns where the next group goes.
inline int* widen_group(const std::byte* x, int m, int* to) {
  for (int i = 0; i < m * kGroup; i += 2 * kLanes, to += kLanes) store_ints(to, even_odd_shorts(x + i));
  memcpy(to, x + m * kGroup, size_t(m) * 8);  // scales and corrections
  return to + 2 * m;
}

inline Ints low_halves(Ints bytes) { return bit_and(bytes, all(0x0f0f0f0f)); }
inline Ints high_halves(Ints bytes) { return bit_and(shift_right<4>(bytes), all(0x0f0f0f0f)); }

// The same for eight columns of int4.
template <int V, int M, bool Stream>
inline void add_halves(Ints (&dots)[M][V], const std::byte* w, const int* x) {
#pragma GCC unroll 64
  for (int v = 0; v < V; v++) {
    if (Stream) fetch_stream<V, 4>(w + v * kLanes * 4, v);
    const Ints bytes = load_ints(w + v * kLanes * 4), low = low_halves(bytes), high = high_halves(bytes);
#pragma GCC unroll 64
    for (int m = 0; m < M; m++) {
      const int* a = x + m * kTokenWords<Format::i4>;
      dots[m][v] = dot_halves(dots[m][v], low, all(a[0]), high, all(a[1]));
    }
  }
}

// Tokens [At, At + M) of a tile of Width.
template <Format F, int M, int At, int Width, bool Stream>
void multiply_group_rows(const std::byte* w, int row, const int* x, int kn, bool first, float* y, size_t ldy,
                         Fetch fetch) {
  constexpr int V = kByteVectors<M>;
  constexpr bool kHeld = 2 * M * V + V + 2 < kByteRegisters;  // the float sums too; otherwise they wait in y
  constexpr int kColumns = F == Format::i8 ? 4 : 8;           // of a word of weights
  Floats sums[kHeld ? M : 1][kHeld ? V : 1];
  if constexpr (kHeld) load_sums(sums, y, ldy, first);
  for (int k = 0; k < kn; k += kGroup) {
    if (Stream)
      fetch_line(w);
    else
      prefetch(fetch.at, fetch.lines);
    const std::byte* scales = w + row * 2;
    w += kPanel * 2 + row * 4;
    Ints dots[M][V];
    const auto* scale = reinterpret_cast<const float*>(x + kTokenWords<F> * Width + At);
    const int* correction = x + (kTokenWords<F> + 1) * Width + At;
#pragma GCC unroll 64
    for (int m = 0; m < M; m++)
#pragma GCC unroll 64
      for (int v = 0; v < V; v++) dots[m][v] = all(F == Format::i8 ? correction[m] : correction[m] >> 4);
    const int* numbers = x + kTokenWords<F> * At;
    for (int q = 0; q < 4; q++) {
#pragma GCC unroll 64
      for (int c = 0; c < kGroup / 4; c += kColumns, w += kPanel * 4, numbers += kColumns / 4 * kPartsOf<F>) {
        if constexpr (F == Format::i8)
          add_bytes<V, M, Stream>(dots, w, numbers);
        else
          add_halves<V, M, Stream>(dots, w, numbers);
      }
    }
    x += kGroupWords<F> * Width;
    w -= row * 4;
    Floats s[V];
#pragma GCC unroll 64
    for (int v = 0; v < V; v++) s[v] = floats(shift_left<16>(load_u16(scales + v * kLanes * 2)));
#pragma GCC unroll 64
    for (int m = 0; m < M; m++) {
      const Floats a = all(scale[m]);
#pragma GCC unroll 64
      for (int v = 0; v < V; v++) {
        const Floats dot = to_floats(dots[m][v]), factor = mul(s[v], a);
        if constexpr (kHeld) {
          sums[m][v] = fma(dot, factor, sums[m][v]);
        } else {
          float* sum = y + size_t(m) * ldy + v * kLanes;
          store(sum, fma(dot, factor, first && k == 0 ? zero() : load(sum)));
        }
      }
    }
  }
  if constexpr (kHeld) store_sums(sums, y, ldy);
}

// The most tokens of a tile that read weights together. Sums of more than six wait in memory, which is worth it where
// weights come from memory, too, for one tile or two.
template <Format F, int Tiles>
constexpr int kMostTokens = F == Format::i4 || kParts8 == 2 ? kByteTokens
                            : Tiles == 1                    ? 12
                            : Tiles == 2                    ? 10
                                                            : 8;

// A tile of more in two parts: their second reading of the weights finds them in the cache.
template <Format F, int M, bool Stream, int Most>
void multiply_bytes(const std::byte* w, int row, const void* activations, int kn, bool first, float* y, size_t ldy,
                    Fetch fetch) {
  const auto* x = static_cast<const int*>(activations);
  if constexpr (M <= Most) {
    multiply_group_rows<F, M, 0, M, Stream>(w, row, x, kn, first, y, ldy, fetch);
  } else {
    constexpr int kHalf = M / 2;
    multiply_group_rows<F, kHalf, 0, M, Stream>(w, row, x, kn, first, y, ldy, fetch);
    multiply_group_rows<F, M - kHalf, kHalf, M, false>(w, row, x, kn, first, y + kHalf * ldy, ldy, {fetch.at, 0});
  }
}

}  // namespace
}  // namespace rwkv::cpu
