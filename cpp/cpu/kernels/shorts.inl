// y = W x of int8 for more tokens than a tile, on sets without dot products of bytes.
//
// Bytes become numbers of 16 bits before anything is multiplied: a block of k of all tokens, then that of each panel in
// turn, which stays in L1 while the tiles pass. What remains in the loops is multiplying and adding.
#pragma once
#include "cpu/kernels/bytes.inl"
#include "cpu/kernels/finish.inl"

namespace rwkv::cpu {
namespace {

constexpr Format kBytes = Format::i8;
constexpr int kSomeTokens = 4 * kTileTokens;  // up to these the blocks of weights are too soon done with

alignas(64) constexpr float kZeros[kTileVectors * kLanes] = {};

// kTileVectors vectors of the rows of a panel's block, from `w` on, times the M tokens of a tile; sums wait in y.
template <int M>
void multiply_shorts(const std::byte* w, const std::byte* scales, const int* x, int kn, bool first, float* y,
                     size_t ldy) {
  constexpr int V = kTileVectors, kWords = kTokenWords<kBytes>;
  for (int k = 0; k < kn; k += kGroup, scales += kPanel * 2, x += kGroupWords<kBytes> * M) {
    const bool begins = first && k == 0;
    const float* before = begins ? kZeros : y;
    const size_t step = begins ? 0 : ldy;
    const auto* scale = reinterpret_cast<const float*>(x + kWords * M);
    const int* correction = x + (kWords + 1) * M;
    Ints dots[M][V];
#pragma GCC unroll 64
    for (int m = 0; m < M; m++)
#pragma GCC unroll 64
      for (int v = 0; v < V; v++) dots[m][v] = all(correction[m]);
    for (int c = 0; c < kWords; c += 8) {
#pragma GCC unroll 64
      for (int i = c; i < c + 8; i++, w += kPanel * 4) {
        Ints b[V];
#pragma GCC unroll 64
        for (int v = 0; v < V; v++) b[v] = load_ints(w + v * kLanes * 4);
#pragma GCC unroll 64
        for (int m = 0; m < M; m++) dot_shorts(dots[m], b, x[m * kWords + i]);
      }
    }
    Floats s[V];
#pragma GCC unroll 64
    for (int v = 0; v < V; v++) s[v] = floats(shift_left<16>(load_u16(scales + v * kLanes * 2)));
#pragma GCC unroll 64
    for (int m = 0; m < M; m++) {
      const Floats a = all(scale[m]);
#pragma GCC unroll 64
      for (int v = 0; v < V; v++) {
        const Floats sum = fma(to_floats(dots[m][v]), mul(s[v], a), load(before + size_t(m) * step + v * kLanes));
        store(y + size_t(m) * ldy + v * kLanes, sum);
      }
    }
  }
}
template <int M = 1>
constexpr auto multiply_shorts_of(int m) {
  if constexpr (M < kTileTokens)
    if (m != M) return multiply_shorts_of<M + 1>(m);
  return &multiply_shorts<M>;
}

class ShortProduct {
 public:
  ShortProduct(const Product& product, int p0, int p1) : p_(product), p0_(p0), p1_(p1) {}

  void run() {
    const int blocks = (tiles_ + kBlockTiles - 1) / kBlockTiles;
    for (int i = 0; i < blocks; i++)
      for (int k = 0; k < p_.k; k += kColumns)
        block(tiles_ * i / blocks, tiles_ * (i + 1) / blocks, k, k + kColumns < p_.k ? k + kColumns : 0,
              k + kColumns < p_.k || i + 1 < blocks);
  }

 private:
  static constexpr int kBlockTiles = 192 / kTileTokens, kColumns = 512;

  int start(int tile) const { return tile_start(p_.tokens, tiles_, tile); }
  const std::byte* weights(int panel, int k) const {
    return p_.w + size_t(panel) * panel_bytes(kBytes, p_.k) + panel_bytes(kBytes, k);
  }

  // The tiles [t0, t1) times all panels. Each fetches the one that comes next, after the last the first at `next_k`.
  void block(int t0, int t1, int k, int next_k, bool more) {
    const int kn = p_.k - k < kColumns ? p_.k - k : kColumns,
              next_kn = p_.k - next_k < kColumns ? p_.k - next_k : kColumns;
    const auto words = [&](int tile) {
      return words_ + (start(tile) - start(t0)) * kGroupWords<kBytes> * (kn / kGroup);
    };
    for (int t = t0; t < t1; t++)
      widen(p_.x + row_bytes(kBytes, p_.k) * size_t(start(t)), start(t + 1) - start(t), k, kn, words(t));
    for (int panel = p0_; panel < p1_; panel++) {
      unpack(weights(panel, k), kn);
      const bool last = panel + 1 == p1_;
      const std::byte* fetch = last ? weights(p0_, next_k) : weights(panel + 1, k);
      int left = last && !more ? 0 : int(panel_bytes(kBytes, last ? next_kn : kn)) / kLine;
      const int lines = (left + t1 - t0 - 1) / (t1 - t0);
      for (int t = t0; t < t1; t++, left -= lines) {
        if (k > 0 && t + 1 < t1) fetch_sums(p_, panel, start(t + 1), start(t + 2));
        prefetch(fetch, left < lines ? left : lines);
        const int m = start(t + 1) - start(t);
        const auto multiply = multiply_shorts_of(m);
        float* y = p_.sums(start(t), panel);
        for (int row = 0; row < kPanel; row += kTileVectors * kLanes)
          multiply(numbers_ + row * 4, scales_ + row * 2, words(t), kn, k == 0, y + row, p_.ldy);
        if (k + kn == p_.k) finish(p_, panel, start(t), m);
      }
    }
  }

  // The columns [k, k + kn) of a tile: of every four of a token the even two, then the odd two.
  static void widen(const std::byte* tile, int m, int k, int kn, int* to) {
    tile += row_bytes(kBytes, k) * size_t(m);
    for (int g = 0; g < kn; g += kGroup, tile += row_bytes(kBytes, kGroup) * size_t(m)) to = widen_group(tile, m, to);
  }

  // A panel's block: its scales, and of every four columns the even two of all rows, then the odd two.
  void unpack(const std::byte* w, int kn) {
    std::byte *scales = scales_, *numbers = numbers_;
    for (int k = 0; k < kn; k += kGroup, scales += kPanel * 2) {
      memcpy(scales, w, kPanel * 2);
      w += kPanel * 2;
      for (int c = 0; c < kGroup; c += 4, numbers += kPanel * 4)
        for (int v = 0; v < kPanel; v += kLanes, w += kLanes * 4, numbers += kLanes * 4) {
          const Ints bytes = load_ints(w);
          store_ints(numbers, even_bytes(bytes));
          store_ints(numbers + kPanel * 4, odd_bytes(bytes));
        }
    }
  }

  const Product& p_;
  const int p0_, p1_, tiles_ = tile_count(p_.tokens, kNarrowTile);
  alignas(64) std::byte numbers_[kColumns * kPanel * 2];
  alignas(64) std::byte scales_[kColumns / kGroup * kPanel * 2];
  alignas(64) int words_[kBlockTiles * kTileTokens * kGroupWords<kBytes> * (kColumns / kGroup)];
};

}  // namespace
}  // namespace rwkv::cpu
