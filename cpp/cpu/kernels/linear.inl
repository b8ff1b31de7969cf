// y = W x for a panel of 32 rows and a tile of tokens at a time, and what follows a finished panel.
//
// Few tokens (one tile): a panel is one sequential stream, read once, all of k. Many tokens: a group of panels, block
// of k after block of k, so that its sums, which wait in y between them, stay near; that changes no bit. The group's
// block stays in L2 while all tiles pass, and a tile's block of activations in L1 for the group, or the other way
// around; what comes next is fetched meanwhile. A block of fp16, and on some sets one of int4, becomes one of fp32 or
// int8 there, once for all tiles.
#pragma once
#include <string.h>

#include "cpu/kernels/bytes.inl"
#include "cpu/kernels/finish.inl"
#include "cpu/kernels/unpack.inl"
#ifdef RWKV_TILES
#include "cpu/kernels/pair_tiles.inl"
#include "cpu/kernels/tiles.inl"
#endif
#ifndef RWKV_DOT_BYTES
#include "cpu/kernels/shorts.inl"
#endif

namespace rwkv::cpu {
namespace {

constexpr int kPlainTiles = 4;   // up to which fp16 is multiplied as it is: so few do not pay for its unpacking
constexpr int kWide = 512 * 12;  // words of room for a tile's block of activations, widened

struct Call {
  void (*multiply)(const std::byte* w, int row, const void* x, int kn, bool first, float* y, size_t ldy, Fetch);
  int rows;   // of a panel that one call takes
  bool once;  // reads its weights once, and all rows of a panel
};
template <Format F, bool Stream, int Tiles, int M = 1>
Call call_for(int m) {
  if constexpr (M < kTileTokens)
    if (m != M) return call_for<F, Stream, Tiles, M + 1>(m);
  if constexpr (F == Format::i8 || F == Format::i4) {
    constexpr int kRows = kByteVectors<M> * kLanes, kMost = kMostTokens<F, Tiles>;
    return {multiply_bytes<F, M, Stream, kMost>, kRows, kRows == kPanel && M <= kMost};
  } else {
    return {kMultiply<F, M, Stream>, kCallVectors<M> * kLanes, kCallVectors<M> * kLanes == kPanel};
  }
}

// The columns [k0, k0 + kn) of a tile as multiply() wants them: as they are, or widened, a block at a time.
template <Format F>
struct Activations {
  static constexpr bool kOther = F == Format::bf16 ? kWiden : kShorts<F>;
  alignas(64) uint32_t wide[kOther ? kWide : 1];
  const std::byte* held = nullptr;

  Activations() {}  // leaves `wide` as it is

  static constexpr int most_columns(int m) {
    if (!kOther) return 1 << 30;
    return F == Format::i8 ? kWide / m / kGroupWords<F> * kGroup : kWide / m / kChain * kChain;
  }
  const void* block(const std::byte* tile, int m, int k0, int kn) {
    const std::byte* x = tile + row_bytes(operand_format(F), k0) * size_t(m);
    if (!kOther) return x;
    if (x == held) return wide;
    held = x;
    if constexpr (kShorts<F>) {
      int* to = reinterpret_cast<int*>(wide);
      for (int k = 0; k < kn; k += kGroup) to = widen_group(x + row_bytes(F, k) * size_t(m), m, to);
    } else {
      widen_pairs(x, kn / 2 * m);
    }
    return wide;
  }

  // bf16 to float32: the odd columns of all pairs, then the even ones.
  void widen_pairs(const std::byte* x, int pairs) {
    int i = 0;
    for (; i + kLanes <= pairs; i += kLanes) {
      const Ints pair = load_ints(x + size_t(i) * 4);
      store_ints(wide + i, bit_and(pair, all(int(0xffff0000))));
      store_ints(wide + pairs + i, shift_left<16>(pair));
    }
    for (; i < pairs; i++) {
      uint32_t pair;
      memcpy(&pair, x + size_t(i) * 4, 4);
      wide[i] = pair & 0xffff0000;
      wide[pairs + i] = pair << 16;
    }
  }
};

// One product, panels [p0, p1).
template <Format F, Format kMany = unpacked_format(F)>
struct Run {
  const Product& p;
  const int p0, p1, tiles = tile_count(p.tokens, tile_tokens(operand_format(F)));
  Activations<F> activations = {};
  Activations<kMany> activations_of_many = {};

  // A panel of bytes stays in L1 while the tiles pass, so its blocks are shorter, and of fewer tokens.
  static constexpr bool kPanelsFirst = operand_format(kMany) == Format::i8 && kParts8 == 1;
  static constexpr bool kOther = Activations<kMany>::kOther;  // activations that are widened for each group
  static constexpr int kBlock = kOther || (kMany != F && !kPanelsFirst) ? 512
                                : kPanelsFirst || kMany == Format::f32  ? 3 * kBlockColumns / 4
                                                                        : kBlockColumns;
  static_assert(kBlock % kGroup == 0 && kBlock <= Activations<kMany>::most_columns(kTileTokens));
  static constexpr int kBlockTiles = (kPanelsFirst ? 144 : 288) / kTileTokens;
  static constexpr int kPanels = kOther ? 8 : kPanelsFirst ? 4 : 2;  // even
  Unpacked<F, kMany, kPanels, kBlock> unpacked = {};
  static constexpr int kLines = int(panel_bytes(F, kFetchColumns<F>)) / kLine;

  int start(int tile) const { return tile_start(p.tokens, tiles, tile); }
  Call many_call(int m) const { return tiles == 2 ? call_for<kMany, false, 2>(m) : call_for<kMany, false, 3>(m); }
  const std::byte* weights(int panel, int k) const {
    return p.w + size_t(panel) * panel_bytes(F, p.k) + panel_bytes(F, k);
  }
  const std::byte* packed(int tile) const { return p.x + size_t(start(tile)) * row_bytes(operand_format(F), p.k); }
  float* sums(int panel, int tile) const { return p.y + size_t(start(tile)) * p.ldy + panel * kPanel; }

  void few_tokens() {
    constexpr bool kHints = kStreamNear || kStreamFar;
    constexpr int kFrom = F == Format::f32 || F == Format::bf16 ? kStreamTokens : kStreamNarrowTokens;
    const int m = p.tokens;
    const Call others = call_for<F, false, 1>(m), call = m < kFrom ? others : call_for<F, kHints, 1>(m);
    int most = call.once ? p.k : 256;
    if (most > Activations<F>::most_columns(m)) most = Activations<F>::most_columns(m);
    for (int panel = p0; panel < p1; panel++) {
      for (int k = 0; k < p.k; k += most) {
        const int kn = p.k - k < most ? p.k - k : most;
        const std::byte* w = weights(panel, k);
        const void* x = activations.block(packed(0), m, k, kn);
        for (int row = 0; row < kPanel; row += call.rows)  // the first call of a block brings the whole of it
          (row > 0 ? others : call).multiply(w, row, x, kn, k == 0, sums(panel, 0) + row, p.ldy, {w, 0});
      }
      finish(p, panel, 0, m);
    }
  }

  void many_tokens() {
    const int blocks = (tiles + kBlockTiles - 1) / kBlockTiles, cuts = (p.k + kBlock - 1) / kBlock;
    const int columns = ((p.k + cuts - 1) / cuts + kGroup - 1) / kGroup * kGroup;  // of all blocks but the last
    for (int i = 0; i < blocks; i++)
      for (int panel = p0; panel < p1; panel += kPanels)
        for (int k = 0; k < p.k; k += columns)
          group(tiles * i / blocks, tiles * (i + 1) / blocks, panel, k, columns, i + 1 < blocks);
  }

  // The tiles [t0, t1) times a group of panels; each panel fetches its like in what comes next.
  void group(int t0, int t1, int panel, int k, int columns, bool more) {
    const int kn = p.k - k < columns ? p.k - k : columns, count = p1 - panel < kPanels ? p1 - panel : kPanels;
    const int calls = (t1 - t0) * (kPanel / many_call(start(t0 + 1) - start(t0)).rows);
    const int lines = (kLines + calls - 1) / calls;
    const bool last = k + kn == p.k;
    const int next_k = last ? 0 : k + kn;
    int next_panel = last ? panel + kPanels : panel;
    if (next_panel >= p1) next_panel = more ? p0 : p1;
    Fetch fetch[kPanels];
    for (int i = 0; i < count; i++) fetch[i] = {weights(next_panel + i, next_k), next_panel + i < p1 ? lines : 0};

    const std::byte* w[kPanels];
    for (int i = 0; i < count; i++) w[i] = unpacked.block(weights(panel + i, k), i, kn);
    const auto multiply = [&](int t, int i) {
      const int m = start(t + 1) - start(t);
      const Call call = many_call(m);
      const void* x = activations_of_many.block(packed(t), m, k, kn);
      if (k > 0 && t + 1 < t1) fetch_sums(p, panel + i, start(t + 1), start(t + 2));
      for (int row = 0; row < kPanel; row += call.rows) {
        if (fetch[i].at >= weights(next_panel + i, next_k + kn)) fetch[i].lines = 0;
        call.multiply(w[i], row, x, kn, k == 0, sums(panel + i, t) + row, p.ldy, fetch[i]);
        fetch[i].at += fetch[i].lines * (kn / kFetchColumns<F>)*kLine;
      }
    };
    if (kPanelsFirst)
      for (int i = 0; i < count; i++)
        for (int t = t0; t < t1; t++) multiply(t, i);
    for (int t = t0; t < t1; t++)
      for (int i = 0; i < count; i++) {
        if (!kPanelsFirst) multiply(t, i);
        if (last) finish(p, panel + i, start(t), start(t + 1) - start(t));
      }
  }
};

template <Format F>
void run(const Product& p, int p0, int p1) {
  Run<F> run{p, p0, p1};
  if (run.tiles == 1) return run.few_tokens();
  if constexpr (F == Format::f16)
    if (run.tiles <= kPlainTiles) return Run<F, F>{p, p0, p1}.many_tokens();
  run.many_tokens();
}
void run_pairs(const Product& p, int p0, int p1) {
#ifdef RWKV_TILES
  if (p.tokens > kFewTokens) return PairProduct(p, p0, p1).run();
#endif
  run<Format::bf16>(p, p0, p1);
}
template <Format F>
void run_bytes(const Product& p, int p0, int p1) {
#ifdef RWKV_TILES
  if (p.tokens > kFewTokens) return TileProduct<F>(p, p0, p1).run();
#endif
#ifndef RWKV_DOT_BYTES
  if (F == Format::i8 && p.tokens > kSomeTokens) return ShortProduct(p, p0, p1).run();
#endif
  run<F>(p, p0, p1);
}
void product(const Product& p, int p0, int p1) {
  if (p.tokens == 0) return;
  if (!p.w) {  // the sums are in y
    for (int panel = p0; panel < p1; panel++) finish(p, panel, 0, p.tokens);
    return;
  }
  switch (p.format) {
    case Format::f32:
      return run<Format::f32>(p, p0, p1);
    case Format::f16:
      return run<Format::f16>(p, p0, p1);
    case Format::bf16:
      return run_pairs(p, p0, p1);
    case Format::i8:
      return run_bytes<Format::i8>(p, p0, p1);
    case Format::i4:
      return run_bytes<Format::i4>(p, p0, p1);
  }
}

}  // namespace
}  // namespace rwkv::cpu
