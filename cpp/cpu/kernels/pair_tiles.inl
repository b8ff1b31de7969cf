// y = W x of bf16 for many tokens, on tiles: one product of tiles adds what 32 columns give, for 16 tokens and 16 rows.
//
// Sums stay in tiles for a block of k. What tiles want as pairs, columns 16 apart, lies far from each other in a panel,
// whose pairs are neighbours as dot products of vectors want them: so a group of panels is turned around first, a block
// of k at a time, once for all tokens of a block.
#pragma once
#include <string.h>

#include "cpu/kernels/finish.inl"
#include "cpu/kernels/multiply.inl"

namespace rwkv::cpu {
namespace {

class PairProduct {
 public:
  PairProduct(const Product& product, int p0, int p1) : p_(product), p0_(p0), p1_(p1) {
    if (hidden_) p_.y = p_.room, p_.ldy = kPanels * kPanel;
  }

  void run() {
    const int blocks = (tiles_ + kTiles - 1) / kTiles;
    for (int i = 0; i < blocks; i++)
      for (int panel = p0_; panel < p1_; panel += kPanels) {
        if (hidden_) p_.y_token = start(tiles_ * i / blocks), p_.y_panel = panel;
        for (int k = 0; k < p_.k; k += kColumns)
          block(tiles_ * i / blocks, tiles_ * (i + 1) / blocks, k, panel, i + 1 < blocks);
      }
    shapes_.release();
  }

 private:
  static constexpr int kPanels = 4, kTiles = 9, kColumns = 256;
  static constexpr int kChains = kColumns / kChain, kChainWords = kChain / 2 * kPanel;
  static_assert(kTiles * kNarrowTile * kPanels * kPanel <= kRoom);
  static constexpr long kRow = kLine;  // of a tile

  int start(int tile) const { return tile_start(p_.tokens, tiles_, tile); }
  const std::byte* weights(int panel, int k) const {
    return p_.w + size_t(panel) * panel_bytes(Format::bf16, p_.k) + panel_bytes(Format::bf16, k);
  }

  // The tiles of tokens [t0, t1) times a group of panels, which fetches its like in the group that comes next.
  void block(int t0, int t1, int k, int panel, bool more) {
    const int kn = p_.k - k < kColumns ? p_.k - k : kColumns, chains = (kn + kChain - 1) / kChain;
    const int count = p1_ - panel < kPanels ? p1_ - panel : kPanels;
    int next_panel = panel, next_k = k + kn;
    if (next_k == p_.k) next_panel += kPanels, next_k = 0;
    if (next_panel >= p1_ && more) next_panel = p0_;
    Fetch fetch[kPanels];
    const int lines = (kChain + t1 - t0 - 1) / (t1 - t0);
    for (int i = 0; i < count; i++) {
      turn(weights(panel + i, k), kn, turned_[i]);
      fetch[i] = {weights(next_panel + i, next_k), next_panel + i < p1_ ? lines : 0};
    }
    for (int t = t0; t < t1; t++) {
      const int token = start(t), m = start(t + 1) - token;
      if (m != shapes_.tokens()) shapes_.change(m);
      const std::byte* x =
          p_.x + row_bytes(Format::bf16, p_.k) * size_t(token) + row_bytes(Format::bf16, k) * size_t(m);
      for (int i = 0; i < count; i++) {
        if (fetch[i].at >= weights(next_panel + i, next_k) + panel_bytes(Format::bf16, kn)) fetch[i].lines = 0;
        multiply(turned_[i], x, m, chains, k == 0, p_.sums(token, panel + i), fetch[i]);
        if (k + kn == p_.k) finish(p_, panel + i, token, m);
      }
    }
  }

  // kn columns of a panel as tiles: of each 32 for both halves of the rows [16][16][2], as in operands.
  static void turn(const std::byte* w, int kn, uint32_t* to) {
    int k = 0;
    for (; k + kChain <= kn; k += kChain, w += kChainWords * 4, to += kChainWords) turn_chain(w, to);
    if (k == kn) return;
    alignas(64) std::byte last[kChainWords * 4] = {};
    memcpy(last, w, panel_bytes(Format::bf16, kn - k));
    turn_chain(last, to);
  }
  static void turn_chain(const std::byte* w, uint32_t* to) {
    constexpr int kPair = kPanel * 4, kHalf = kChain / 4 * kPair;  // bytes
    for (int pair = 0; pair < kChain / 4; pair++, w += kPair, to += 2 * kLanes)
      for (int v = 0; v < 2; v++) {
        const Ints low = load_ints(w + v * kLine), high = load_ints(w + kHalf + v * kLine);
        uint32_t* rows = to + v * kTileRows * kLanes;
        store_ints(rows, join_halves(shift_right<16>(low), high));
        store_ints(rows + kLanes, join_halves(low, shift_left<16>(high)));
      }
  }

  void multiply(const uint32_t* w, const std::byte* x, int m, int chains, bool first, float* y, Fetch& fetch) const {
    constexpr int kWords = kTileRows * kLanes;
    const bool high = m > kTileRows;
    const long ld = long(p_.ldy) * 4;
    float* y_high = y + kTileRows * p_.ldy;
    if (first) {
      clear_tile<0>(), clear_tile<1>();
      if (high) clear_tile<2>(), clear_tile<3>();
    } else {
      load_tile<0>(y, ld), load_tile<1>(y + kLanes, ld);
      if (high) load_tile<2>(y_high, ld), load_tile<3>(y_high + kLanes, ld);
    }
    for (int i = 0; i < chains; i++, w += kChainWords, x += size_t(m) * kRow) {
      prefetch(fetch.at, fetch.lines);
      load_tile<6>(w, kRow);
      load_tile<7>(w + kWords, kRow);
      load_tile<4>(x, kRow);
      multiply_pair_tiles<0, 4, 6>();
      multiply_pair_tiles<1, 4, 7>();
      if (!high) continue;
      load_tile<5>(x + kTileRows * kRow, kRow);
      multiply_pair_tiles<2, 5, 6>();
      multiply_pair_tiles<3, 5, 7>();
    }
    store_tile<0>(y, ld), store_tile<1>(y + kLanes, ld);
    if (high) store_tile<2>(y_high, ld), store_tile<3>(y_high + kLanes, ld);
  }

  Product p_;
  const int p0_, p1_, tiles_ = tile_count(p_.tokens, kNarrowTile);
  const bool hidden_ = p_.room && (p_.out || p_.sum);  // are the sums
  TileShapes shapes_;
  alignas(64) uint32_t turned_[kPanels][kChains * kChainWords];
};

}  // namespace
}  // namespace rwkv::cpu
