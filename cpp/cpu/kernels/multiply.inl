// The innermost loops of a product: some rows of a panel times the tokens of a tile, sums in registers.
#pragma once
#include "cpu/kernels/math.inl"

namespace rwkv::cpu {
namespace {

constexpr int kLine = 64;

// What a call of multiply() fetches to L2 while it computes: `lines` cache lines per kFetchColumns.
struct Fetch {
  const std::byte* at;
  int lines;
};

template <Format F>
constexpr int kFetchColumns = F == Format::i8 || F == Format::i4 ? kGroup : kStep;

inline void prefetch(const std::byte*& at, int lines) {
  for (int i = 0; i < lines; i++, at += kLine) prefetch_l2(at);
}

// A stream is fetched to L2 first and then to L1, whose few buffers a hint holds until its line has come; one of each
// comes before the loads of each line.
inline void fetch_line(const std::byte* w) {
  if (kStreamNear) prefetch_l1(w + kStreamNear);
  if (kStreamFar) prefetch_l2(w + kStreamFar);
}
// `w` is where vector v of V is loaded, of a panel's words of Width bytes.
template <int V, int Width>
inline void fetch_stream(const std::byte* w, int v) {
  constexpr int kVector = kLanes * Width, kVectors = kPanel / kLanes;
  if (V < kVectors) {  // the first brings what calls for other rows will load
    for (int i = 0; v == 0 && i < kPanel * Width; i += kLine) fetch_line(w + i);
  } else if (v * kVector % kLine == 0) {
    fetch_line(w);
  }
}

template <int M>
constexpr int kCallVectors = kPanel / kLanes * M <= kTileVectors * kTileTokens ? kPanel / kLanes : kTileVectors;

template <int V, int M>
inline void load_sums(Floats (&acc)[M][V], const float* y, size_t ldy, bool first) {
#pragma GCC unroll 64
  for (int m = 0; m < M; m++)
#pragma GCC unroll 64
    for (int v = 0; v < V; v++) acc[m][v] = first ? zero() : load(y + size_t(m) * ldy + v * kLanes);
}
template <int V, int M>
inline void store_sums(const Floats (&acc)[M][V], float* y, size_t ldy) {
#pragma GCC unroll 64
  for (int m = 0; m < M; m++)
#pragma GCC unroll 64
    for (int v = 0; v < V; v++) store(y + size_t(m) * ldy + v * kLanes, acc[m][v]);
}
template <int V, int M>
inline void add_products(Floats (&acc)[M][V], const float* x, const Floats (&w)[V]) {
#pragma GCC unroll 64
  for (int m = 0; m < M; m++) {
    const Floats a = all(x[m]);
#pragma GCC unroll 64
    for (int v = 0; v < V; v++) acc[m][v] = fma(a, w[v], acc[m][v]);
  }
}

// The rows of a panel from `row` on, kCallVectors<M> vectors of them, times the M tokens of a tile, `kn` columns; w is
// the panel's block of them, y the sums of its row `row`.
template <Format F, int M, bool Stream>
void multiply(const std::byte* w, int row, const void* activations, int kn, bool first, float* y, size_t ldy,
              Fetch fetch) {
  constexpr int V = kCallVectors<M>, kWidth = F == Format::f16 ? 2 : 4;  // bytes of a number
  Floats acc[M][V];
  w += row * kWidth;
  load_sums(acc, y, ldy, first);
  const auto* x = static_cast<const float*>(activations);
  for (int k = 0; k < kn; k += kStep) {
    if (!Stream) prefetch(fetch.at, fetch.lines);
#pragma GCC unroll 64
    for (int u = 0; u < kStep; u++, w += kPanel * kWidth, x += M) {
      Floats b[V];
#pragma GCC unroll 64
      for (int v = 0; v < V; v++) {
        const std::byte* at = w + v * kLanes * kWidth;
        if (Stream) fetch_stream<V, kWidth>(at, v);
        b[v] = F == Format::f16 ? load_f16(at) : load(reinterpret_cast<const float*>(at));
      }
      add_products(acc, x, b);
    }
  }
  store_sums(acc, y, ldy);
}

// What pairs of columns of bf16 add to sums.
#ifdef RWKV_DOT_PAIRS
constexpr bool kWiden = false;
template <int M, bool Stream>
struct Pairs {
  const int* x;
  Pairs(const void* activations, int) : x(static_cast<const int*>(activations)) {}
  template <int V>
  void add(Floats (&acc)[M][V], const std::byte* w) {
    Ints b[V];
#pragma GCC unroll 64
    for (int v = 0; v < V; v++) {
      if (Stream) fetch_stream<V, 4>(w + v * kLanes * 4, v);
      b[v] = load_ints(w + v * kLanes * 4);
    }
#pragma GCC unroll 64
    for (int m = 0; m < M; m++) {
      const Ints a = all(x[m]);
#pragma GCC unroll 64
      for (int v = 0; v < V; v++) acc[m][v] = dot_pairs(acc[m][v], b[v], a);
    }
    x += M;
  }
};
#else
constexpr bool kWiden = true;
// The activations are widened, first the odd column of every pair (kn / 2 rows of M), then the even one.
template <int M, bool Stream>
struct Pairs {
  const float *odd, *even;
  Pairs(const void* activations, int kn) : odd(static_cast<const float*>(activations)), even(odd + kn / 2 * M) {}
  template <int V>
  void add(Floats (&acc)[M][V], const std::byte* w) {
    Floats b[V];  // one half after the other: both at once would not fit AVX2's registers
#pragma GCC unroll 64
    for (int v = 0; v < V; v++) {
      if (Stream) fetch_stream<V, 4>(w + v * kLanes * 4, v);
      b[v] = floats(bit_and(load_ints(w + v * kLanes * 4), all(int(0xffff0000))));
    }
    add_products(acc, odd, b);
#pragma GCC unroll 64
    for (int v = 0; v < V; v++) b[v] = floats(shift_left<16>(load_ints(w + v * kLanes * 4)));
    add_products(acc, even, b);
    odd += M, even += M;
  }
};
#endif

// The same of bf16: both halves of kChain columns begin with zero, and their sums are added to y.
template <int M, bool Stream>
void multiply_pairs(const std::byte* w, int row, const void* activations, int kn, bool first, float* y, size_t ldy,
                    Fetch fetch) {
  constexpr int V = kCallVectors<M>, kHalf = kChain / 2;
  w += row * 4;
  Pairs<M, Stream> pairs(activations, kn);
  Floats acc[M][V];
  const auto each = [&](const auto& work) {
#pragma GCC unroll 64
    for (int m = 0; m < M; m++)
#pragma GCC unroll 64
      for (int v = 0; v < V; v++) work(m, v);
  };
  const auto add_half = [&](int columns) __attribute__((always_inline)) {
    each([&](int m, int v) { acc[m][v] = zero(); });
    for (int i = 0; i < columns; i += kStep) {
      if (!Stream) prefetch(fetch.at, fetch.lines);
#pragma GCC unroll 64
      for (int u = 0; u < kStep / 2; u++, w += kPanel * 4) pairs.add(acc, w);
    }
  };
  const auto add_chain = [&](int first_half, int second_half, bool begins) __attribute__((always_inline)) {
    alignas(64) float low[M][V][kLanes];
    add_half(first_half);
    // Tiles go on with zeros where the columns end, which leaves no -0.
    if (first_half < kHalf) each([&](int m, int v) { acc[m][v] = add(acc[m][v], zero()); });
    each([&](int m, int v) { store(low[m][v], acc[m][v]); });
    add_half(second_half);
    if (second_half < kHalf) each([&](int m, int v) { acc[m][v] = add(acc[m][v], zero()); });
    each([&](int m, int v) {
      float* sum = y + size_t(m) * ldy + v * kLanes;
      store(sum, add(begins ? zero() : load(sum), add(load(low[m][v]), acc[m][v])));
    });
  };
  int k = 0;
  for (; k + kChain <= kn; k += kChain) add_chain(kHalf, kHalf, first && k == 0);
  if (k == kn) return;
  const int left = kn - k, first_half = left < kHalf ? left : kHalf;
  add_chain(first_half, left - first_half, first && k == 0);
}

template <Format F, int M, bool Stream>
constexpr auto kMultiply = &multiply<F, M, Stream>;
template <int M, bool Stream>
constexpr auto kMultiply<Format::bf16, M, Stream> = &multiply_pairs<M, Stream>;

}  // namespace
}  // namespace rwkv::cpu
