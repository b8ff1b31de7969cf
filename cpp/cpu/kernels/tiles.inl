// y = W x of int8, and of int4 unpacked to it, for many tokens, on tiles: one product of tiles is the exact sum of a
// group, for 16 tokens and 16 rows.
//
// What takes the time is not the multiplying but what follows, one multiplication and one FMA for every sum. So both
// are done at once: while the tiles multiply one unit (a panel, a tile of tokens, kUnitGroups groups), whose sums go
// to a scratch, the vectors scale and add the sums of the unit before, in pieces that alternate.
//
// Sums of tiles begin with the bits of the float 1.5 * 2^23 and so are floats themselves, that much too large: what is
// added to them as `offset` takes it off again, and the 128 too much in every weight, exactly.
#pragma once
#include "cpu/kernels/finish.inl"
#include "cpu/kernels/unpack.inl"

namespace rwkv::cpu {
namespace {

constexpr int kFewTokens = kTileTokens;  // that dot products of vectors are faster with
constexpr int kUnitGroups = 2;           // 1 and 4 are slower
constexpr int kBlockGroups = 8;          // of k
constexpr int kBlockPanels = 4;          // even
constexpr int kBlockTiles = 8;
static_assert(kBlockTiles * kNarrowTile * kBlockPanels * kPanel <= kRoom);
constexpr int kChunk = 8;  // tokens whose sums are held in registers
constexpr float kShift = 0x1.8p23f;

template <Format F>
class TileProduct {
 public:
  TileProduct(const Product& product, int p0, int p1) : p_(product), p0_(p0), p1_(p1) {
    if (hidden_) p_.y = p_.room, p_.ldy = kBlockPanels * kPanel;
  }

  void run() {
    const int blocks = (tiles_ + kBlockTiles - 1) / kBlockTiles, step = kBlockGroups * kGroup;
    for (int i = 0; i < blocks; i++)
      for (int panel = p0_; panel < p1_; panel += kBlockPanels) {
        if (hidden_) y_token_ = start(tiles_ * i / blocks), y_panel_ = panel;
        for (int k = 0; k < p_.k; k += step)
          block(tiles_ * i / blocks, tiles_ * (i + 1) / blocks, k, panel, i + 1 < blocks);
      }
    flush();
    shapes_.release();
  }

 private:
  struct Unit {
    const std::byte *w, *x;  // first groups
    int groups;
    int panel, token, tokens;
    int y_token, y_panel;
    bool first, last;     // of k
    const float* scales;  // of tokens, see prepare()
  };

  int start(int tile) const { return tile_start(p_.tokens, tiles_, tile); }
  const std::byte* weights(int panel, int k) const {
    return p_.w + size_t(panel) * panel_bytes(F, p_.k) + panel_bytes(F, k);
  }

  // The tiles of tokens [t0, t1) times a group of panels, which fetches its like in the group that comes next.
  void block(int t0, int t1, int k, int panel, bool more) {
    constexpr int kStepBytes = kUnitGroups * kGroup;
    const int most = kBlockGroups * kGroup, kn = p_.k - k < most ? p_.k - k : most;
    const int count = p1_ - panel < kBlockPanels ? p1_ - panel : kBlockPanels;
    int next_panel = panel, next_k = k + kn;
    if (next_k == p_.k) next_panel += kBlockPanels, next_k = 0;
    if (next_panel >= p1_ && more) next_panel = p0_;
    const std::byte* fetch[kBlockPanels];
    for (int i = 0; i < count; i++) fetch[i] = next_panel + i < p1_ ? weights(next_panel + i, next_k) : nullptr;
    const int lines = (int(panel_bytes(F, kGroup)) / kLine + t1 - t0 - 1) / (t1 - t0);
    const std::byte* from[kBlockPanels];
    for (int i = 0; i < count; i++) from[i] = unpacked_.block(weights(panel + i, k), i, kn);

    for (int t = t0; t < t1; t++) {
      const int token = start(t), m = start(t + 1) - token;
      const std::byte* x = p_.x + row_bytes(Format::i8, p_.k) * size_t(token) + row_bytes(Format::i8, k) * size_t(m);
      const float* scales = prepare(x, m, kn / kGroup);
      for (int i = 0; i < count; i++)
        for (int at = 0; at < kn; at += kStepBytes) {
          const int groups = (kn - at < kStepBytes ? kn - at : kStepBytes) / kGroup;
          if (fetch[i]) {
            fetch_.at = fetch[i], fetch_.lines = lines;
            const auto left = (weights(next_panel + i, next_k) + panel_bytes(F, kn) - fetch[i]) / kLine;
            if (left < lines * groups) fetch_.lines = int(left) / groups;
            fetch[i] += fetch_.lines * groups * kLine;
          } else {
            fetch_.lines = 0;
          }
          take({from[i] + panel_bytes(Format::i8, at), x + row_bytes(Format::i8, at) * size_t(m), groups, panel + i,
                token, m, y_token_, y_panel_, k + at == 0, k + at + groups * kGroup == p_.k,
                scales + at / kGroup * 2 * kNarrowTile});
        }
    }
  }

  // Scales and offsets of the tokens of a tile, [groups][2][kNarrowTile].
  const float* prepare(const std::byte* x, int m, int groups) {
    scales_at_ ^= 1;
    for (int g = 0; g < groups; g++, x += row_bytes(Format::i8, kGroup) * size_t(m)) {
      float* to = scales_[scales_at_][g][0];
      const std::byte* scales = x + kGroup * m;
      memcpy(to, scales, size_t(m) * 4);
      for (int i = 0; i < m; i++) {
        int correction;
        memcpy(&correction, scales + (m + i) * 4, 4);
        to[kNarrowTile + i] = float(correction) - kShift;
      }
    }
    return scales_[scales_at_][0][0];
  }

  // Multiplies the unit, and scales and adds the one before.
  void take(const Unit& unit) {
    if (unit.tokens != shapes_.tokens()) {
      store_high();
      shapes_.change(unit.tokens);
    }
    const int chunks = before_.groups > 0 ? (before_.tokens + kChunk - 1) / kChunk : 0;
    for (int g = 0; g < unit.groups; g++) {
      prefetch(fetch_.at, fetch_.lines);
      Step step{*this, unit.w + panel_bytes(Format::i8, kGroup) * size_t(g) + kPanel * 2,
                unit.x + row_bytes(Format::i8, kGroup) * size_t(g * unit.tokens), dots_[unit_at_][g][0],
                unit.tokens > kTileRows};
      for (int c = chunks * g / unit.groups; c < chunks * (g + 1) / unit.groups; c++) add(c * kChunk, step);
      while (step.piece < Step::kPieces) step.next();
    }
    retire();
    before_ = unit;
    p_.y_token = unit.y_token, p_.y_panel = unit.y_panel;
    unit_at_ ^= 1;
    for (int g = 0; g < unit.groups; g++)
      for (int v = 0; v < 2; v++)
        store(weight_scales_[g][v],
              floats(shift_left<16>(load_u16(unit.w + panel_bytes(Format::i8, kGroup) * size_t(g) + v * kLanes * 2))));
  }

  // One group of a unit, cut into pieces with time for other instructions in between. What the tiles of the tokens from
  // 16 on hold is stored by the next step, as no later instruction than this would wait for it.
  struct Step {
    TileProduct& all;
    const std::byte *w, *x;
    float* dots;
    bool high;
    int piece = 0;
    static constexpr int kPieces = 5;

    void next() {
      static constexpr long kRow = kPanel * 4;
      switch (piece++) {
        case 0:
          load_tile<4>(x, kGroup);
          load_tile<6>(w, kRow);
          load_tile<7>(w + 64, kRow);
          load_tile<0>(all.begin_, 0);
          load_tile<1>(all.begin_, 0);
          multiply_tiles<0, 4, 6>();
          multiply_tiles<1, 4, 7>();
          return;
        case 1:
          if (all.high_) store_tile<2>(all.high_, kRow);
          return;
        case 2:
          if (all.high_) store_tile<3>(all.high_ + kLanes, kRow);
          all.high_ = nullptr;
          if (!high) return;
          load_tile<5>(x + kTileRows * kGroup, kGroup);
          load_tile<2>(all.begin_, 0);
          load_tile<3>(all.begin_, 0);
          multiply_tiles<2, 5, 6>();
          multiply_tiles<3, 5, 7>();
          all.high_ = dots + kTileRows * kPanel;
          return;
        case 3:
          return store_tile<0>(dots, kRow);
        case 4:
          return store_tile<1>(dots + kLanes, kRow);
      }
    }
  };
  void store_high() {
    if (!high_) return;
    store_tile<2>(high_, kPanel * 4);
    store_tile<3>(high_ + kLanes, kPanel * 4);
    high_ = nullptr;
  }

  // The tokens [t, t + kChunk) of the unit before; those that there are not come from and go to a spare row.
  template <class Pieces>
  void add(int t, Pieces&& step) {
    float* y[kChunk];
    Floats sums[kChunk][2];
    y[0] = p_.sums(before_.token + t, before_.panel);
#pragma GCC unroll 8
    for (int i = 1; i < kChunk; i++) y[i] = y[i - 1] + p_.ldy;
    for (int i = before_.tokens - t; i < kChunk; i++) y[i] = spare_;
    if (before_.first) {
#pragma GCC unroll 8
      for (int i = 0; i < kChunk; i++) sums[i][0] = sums[i][1] = zero();
    } else {
#pragma GCC unroll 8
      for (int i = 0; i < kChunk; i++) sums[i][0] = load(y[i]), sums[i][1] = load(y[i] + kLanes);
    }
    for (int g = 0; g < before_.groups; g++) {
      if (step.piece < Step::kPieces - 1) step.next();
      const Floats w[2] = {load(weight_scales_[g][0]), load(weight_scales_[g][1])};
      const float* dots = dots_[unit_at_ ^ 1][g][t];
      const float* scales = before_.scales + g * 2 * kNarrowTile + t;
#pragma GCC unroll 8
      for (int i = 0; i < kChunk; i++) add_scaled(sums[i], dots + i * kPanel, scales[kNarrowTile + i], scales[i], w);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kChunk; i++) store(y[i], sums[i][0]), store(y[i] + kLanes, sums[i][1]);
  }

  void retire() {
    if (before_.groups > 0 && before_.last) finish(p_, before_.panel, before_.token, before_.tokens);
    before_.groups = 0;
  }
  void flush() {
    struct {
      int piece = Step::kPieces;
      void next() {}
    } nothing;
    store_high();
    for (int t = 0; t < before_.tokens; t += kChunk) add(t, nothing);
    retire();
  }

  Product p_;  // its y is that of `before_`
  const int p0_, p1_, tiles_ = tile_count(p_.tokens, kNarrowTile);
  const bool hidden_ = p_.room && (p_.out || p_.sum);  // are the sums
  int y_token_ = 0, y_panel_ = 0;
  Unpacked<F, unpacked_format(F), kBlockPanels, kBlockGroups * kGroup> unpacked_;
  TileShapes shapes_;
  Fetch fetch_ = {nullptr, 0};
  Unit before_ = {};  // groups: 0 if there is none
  int unit_at_ = 0, scales_at_ = 0;
  float* high_ = nullptr;  // where tiles 2 and 3 are to be stored
  alignas(64) float begin_[kLanes] = {kShift, kShift, kShift, kShift, kShift, kShift, kShift, kShift,
                                      kShift, kShift, kShift, kShift, kShift, kShift, kShift, kShift};
  alignas(64) float dots_[2][kUnitGroups][kNarrowTile][kPanel];
  alignas(64) float scales_[2][kBlockGroups][2][kNarrowTile];
  alignas(64) float weight_scales_[kUnitGroups][2][kLanes];
  alignas(64) float spare_[kPanel] = {};
};

}  // namespace
}  // namespace rwkv::cpu
