// What follows a panel's finished sums: activation, gate, and the operand of the next product.
#pragma once
#include "cpu/kernels/pack.inl"

namespace rwkv::cpu {
namespace {

#ifdef RWKV_TILES
constexpr int kNarrowTile = 2 * kTileRows;
#else
constexpr int kNarrowTile = kTileTokens;
#endif
constexpr int tile_tokens(Format f) { return f == Format::f32 ? kTileTokens : kNarrowTile; }

// Of the `m` tokens from `token` on; where there is an operand, they go to its tile that begins at token `first` with
// `width` of them. An operand of int8 is made of two panels at a time, whose numbers share scales: the first waits in
// y.
void finish_tile(const Product& p, int panel, int token, int m, int first, int width) {
  alignas(64) float rows[kNarrowTile][kPanel];
  const bool groups = p.out && p.out_format == Format::i8;
  const int k0 = panel * kPanel;
  alignas(64) float bias[kPanel] = {};
  if (p.bias && k0 < p.out_cols)
    memcpy(bias, p.bias + k0, sizeof(float) * size_t(p.out_cols - k0 < kPanel ? p.out_cols - k0 : kPanel));
  for (int i = 0; i < m; i++) {
    float* y = p.sums(token + i, panel);
    float* sum = p.sum ? p.sum + size_t(token + i) * p.ld_sum + k0 : nullptr;
    float* to = p.out && !groups ? rows[i] : y;
    const float* gate = p.gate ? p.gate + size_t(token + i) * p.ld_gate + k0 : nullptr;
    for (int v = 0; v < kPanel; v += kLanes)
      if (sum) {  // + 0 makes +0 of -0: see columns.h
        const Floats a = add(load(y + v), zero());
        store(sum + v, gate ? fma(load(gate + v), a, load(sum + v)) : add(load(sum + v), a));
      } else {
        const Floats a = activate(p.act, p.out && p.bias ? add(load(y + v), load(bias + v)) : load(y + v));
        store(to + v, p.out && gate ? mul(a, load(gate + v)) : a);
      }
  }
  if (!p.out || k0 >= p.out_cols) return;
  const bool last = p.out_cols <= k0 + kPanel;
  const int end = last ? p.out_cols : k0 + kPanel;
  std::byte* tile = p.out + size_t(first) * row_bytes(p.out_format, p.out_k);
  const int at = token - first;
  if (!groups) return pack_rows(p.out_format, rows[0], kPanel, m, k0, end - k0, last ? p.out_k : end, tile, width, at);
  if (!last && end % kGroup != 0) return;
  const int begin = k0 / kGroup * kGroup;
  pack_rows(p.out_format, p.sums(token, begin / kPanel), p.ldy, m, begin, end - begin, p.out_k, tile, width, at);
}

// Sums lie in as many rows as there are tokens: no hardware sees them coming.
inline void fetch_sums(const Product& p, int panel, int token, int end) {
  for (; token < end; token++) {
    const auto* y = reinterpret_cast<const std::byte*>(p.sums(token, panel));
    for (int i = 0; i < kPanel * 4; i += 64) prefetch_l1(y + i);
  }
}

// One panel's sums of the `m` tokens from `token` on are complete. The tiles of the operand that they go to need not be
// those of the product.
void finish(const Product& p, int panel, int token, int m) {
  if (!p.sum && !p.out && p.act == Act::none) return;
  if (!p.out) return finish_tile(p, panel, token, m, token, m);
  const int tiles = tile_count(p.tokens, tile_tokens(p.out_format)), end = token + m;
  for (int i = tile_at(p.tokens, tiles, token); token < end; i++) {
    const int first = tile_start(p.tokens, tiles, i), next = tile_start(p.tokens, tiles, i + 1);
    const int stop = next < end ? next : end;
    finish_tile(p, panel, token, stop - token, first, next - first);
    token = stop;
  }
}

}  // namespace
}  // namespace rwkv::cpu
