// y = W x for a panel of 32 rows and a tile of tokens at a time, and what follows a finished panel.
//
// Few tokens (one tile): a panel is one sequential stream, read once, all of k. Many tokens: blocks of k and of tokens.
// A tile's block of activations stays in L1 for a group of panels, whose blocks stay in L2 while all tiles of the token
// block pass; what the next group needs is fetched meanwhile. Sums wait in y between blocks of k, which changes no bit.
#pragma once
#include <string.h>

#include "cpu/kernels/math.inl"

namespace rwkv::cpu {
namespace {

constexpr int kBlockTokens = 72;    // of a many-token product
constexpr int kBlockColumns = 256;  // float32; twice as many bf16
constexpr int kWide = 512 * 12;     // room for a tile's block of activations, widened to float32
constexpr int kLine = 64;

// What a call of multiply() fetches while it computes: `lines` cache lines per step of kStep columns. A stream's own
// next lines go to L1, the next block to L2: hints to L1 hold the few buffers that its misses need.
struct Fetch {
  const std::byte* at;
  int lines;
};

template <bool Stream>
inline void prefetch(Fetch& fetch) {
  for (int i = 0; i < fetch.lines; i++, fetch.at += kLine) Stream ? prefetch_l1(fetch.at) : prefetch_l2(fetch.at);
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

// kCallVectors<M> vectors of rows of a panel times the M tokens of a tile, `kn` columns. bf16 finds its activations
// widened, first the odd column of every pair (kn / 2 rows of M), then the even one.
template <Format F, int M, bool Stream>
void multiply(const std::byte* w, const void* activations, int kn, bool first, float* y, size_t ldy, Fetch fetch) {
  constexpr int V = kCallVectors<M>;
  Floats acc[M][V];
  load_sums(acc, y, ldy, first);
  const auto* x = static_cast<const float*>(activations);
  const float* even = x + kn / 2 * M;
  for (int k = 0; k < kn; k += kStep) {
    prefetch<Stream>(fetch);
    if constexpr (F == Format::f32) {
#pragma GCC unroll 64
      for (int u = 0; u < kStep; u++, w += kPanel * 4, x += M) {
        Floats b[V];
#pragma GCC unroll 64
        for (int v = 0; v < V; v++) b[v] = load(reinterpret_cast<const float*>(w) + v * kLanes);
        add_products(acc, x, b);
      }
    } else {
#pragma GCC unroll 64
      for (int u = 0; u < kStep / 2; u++, w += kPanel * 4, x += M, even += M) {
        Floats b[V];  // one half after the other: both at once would not fit AVX2's registers
#pragma GCC unroll 64
        for (int v = 0; v < V; v++) b[v] = floats(bit_and(load_ints(w + v * kLanes * 4), all(int(0xffff0000))));
        add_products(acc, x, b);
#pragma GCC unroll 64
        for (int v = 0; v < V; v++) b[v] = floats(shift_left<16>(load_ints(w + v * kLanes * 4)));
        add_products(acc, even, b);
      }
    }
  }
  store_sums(acc, y, ldy);
}

#ifdef RWKV_DOT_PAIRS
constexpr bool kWiden = false;
template <int M, bool Stream>
void multiply_pairs(const std::byte* w, const void* activations, int kn, bool first, float* y, size_t ldy,
                    Fetch fetch) {
  constexpr int V = kCallVectors<M>;
  Floats acc[M][V];
  load_sums(acc, y, ldy, first);
  const auto* x = static_cast<const int*>(activations);
  for (int k = 0; k < kn; k += kStep) {
    prefetch<Stream>(fetch);
#pragma GCC unroll 64
    for (int u = 0; u < kStep / 2; u++, w += kPanel * 4, x += M) {
      Ints b[V];
#pragma GCC unroll 64
      for (int v = 0; v < V; v++) b[v] = load_ints(w + v * kLanes * 4);
#pragma GCC unroll 64
      for (int m = 0; m < M; m++) {
        const Ints a = all(x[m]);
#pragma GCC unroll 64
        for (int v = 0; v < V; v++) acc[m][v] = dot_pairs(acc[m][v], b[v], a);
      }
    }
  }
  store_sums(acc, y, ldy);
}
template <Format F, int M, bool Stream>
constexpr auto kMultiply = F == Format::f32 ? &multiply<Format::f32, M, Stream> : &multiply_pairs<M, Stream>;
#else
constexpr bool kWiden = true;
template <Format F, int M, bool Stream>
constexpr auto kMultiply = &multiply<F, M, Stream>;
#endif

struct Call {
  void (*multiply)(const std::byte* w, const void* x, int kn, bool first, float* y, size_t ldy, Fetch);
  int rows;  // of a panel that one call takes
};
template <Format F, bool Stream, int M = 1>
Call call_for(int m) {
  if constexpr (M < kTileTokens)
    if (m != M) return call_for<F, Stream, M + 1>(m);
  return {kMultiply<F, M, Stream>, kCallVectors<M> * kLanes};
}

// The columns [k0, k0 + kn) of a tile as multiply() wants them.
template <Format F>
struct Activations {
  alignas(64) float wide[F == Format::bf16 && kWiden ? kWide : 1];
  const std::byte* held = nullptr;

  Activations() {}  // leaves `wide` as it is

  static constexpr int most_columns(int m) { return F == Format::bf16 && kWiden ? kWide / m / kStep * kStep : 1 << 30; }
  const void* block(const std::byte* tile, int m, int k0, int kn) {
    const std::byte* x = tile + size_t(k0) * size_t(m) * size_of(F);
    if (F == Format::f32 || !kWiden) return x;
    if (x == held) return wide;
    held = x;
    const int pairs = kn / 2 * m;
    int i = 0;
    for (; i + kLanes <= pairs; i += kLanes) {
      const Ints pair = load_ints(x + size_t(i) * 4);
      store(wide + i, floats(bit_and(pair, all(int(0xffff0000)))));
      store(wide + pairs + i, floats(shift_left<16>(pair)));
    }
    for (; i < pairs; i++) {
      uint32_t pair, half;
      memcpy(&pair, x + size_t(i) * 4, 4);
      half = pair & 0xffff0000;
      memcpy(wide + i, &half, 4);
      half = pair << 16;
      memcpy(wide + pairs + i, &half, 4);
    }
    return wide;
  }
};

// Rows of activations to their places in a tile: k outside in sixteens, so that the places stay in L1. A word is one
// float32 column or two bf16 columns.
template <Format F>
void pack_tile(const float* x, size_t ld, int m, int k0, int kn, int k_end, std::byte* tile, int width, int at) {
  constexpr int kPer = F == Format::f32 ? 1 : 2;  // columns of a word
  const auto step = size_t(width);
  auto* out = reinterpret_cast<uint32_t*>(tile) + at;
  alignas(64) uint32_t words[kTileTokens][16];
  for (int k = 0; k < kn; k += 16) {
    const int count = kn - k < 16 ? kn - k : 16, n = (count + kPer - 1) / kPer;
    const uint32_t* rows[kTileTokens];
    for (int i = 0; i < m; i++) {
      const float* from = x + size_t(i) * ld + k;
      rows[i] = words[i];
      if (F == Format::f32) {
        if (count == 16)
          rows[i] = reinterpret_cast<const uint32_t*>(from);
        else
          memcpy(words[i], from, size_t(count) * 4);
      } else {
        alignas(64) uint32_t b[16];
        for (int j = 0; j < 16; j += kLanes) store_ints(b + j, to_bf16(load_first(from + j, count - j)));
        for (int j = 0; j < n; j++) words[i][j] = b[2 * j] | b[2 * j + 1] << 16;
      }
    }
    uint32_t* to = out + size_t((k0 + k) / kPer) * step;
    int i = 0;
    for (; i + 4 <= m && n % 4 == 0; i += 4)
      for (int j = 0; j < n; j += 4) transpose4(rows + i, size_t(j), to + size_t(j) * step + i, step);
    for (; i < m; i++)
      for (int j = 0; j < n; j++) memcpy(to + size_t(j) * step + i, rows[i] + j, 4);
  }
  for (int k = (k0 + kn + kPer - 1) / kPer; k < k_end / kPer; k++)
    for (int i = 0; i < m; i++) out[size_t(k) * step + i] = 0;
}

void pack_rows(Format format, const float* x, size_t ld, int m, int k0, int kn, int k_end, std::byte* tile, int width,
               int at) {
  (format == Format::f32 ? pack_tile<Format::f32> : pack_tile<Format::bf16>)(x, ld, m, k0, kn, k_end, tile, width, at);
}

// One panel's sums of the `m` tokens of the tile that begins at `token` are complete.
void finish(const Product& p, int panel, int token, int m) {
  if (!p.sum && !p.out && p.act == Act::none) return;
  alignas(64) float rows[kTileTokens][kPanel];
  const int k0 = panel * kPanel;
  for (int i = 0; i < m; i++) {
    float* y = p.y + size_t(token + i) * p.ldy + k0;
    float* sum = p.sum ? p.sum + size_t(token + i) * p.ld_sum + k0 : nullptr;
    const float* gate = p.gate ? p.gate + size_t(token + i) * p.ld_gate + k0 : nullptr;
    for (int v = 0; v < kPanel; v += kLanes)
      if (sum)
        store(sum + v, gate ? fma(load(gate + v), load(y + v), load(sum + v)) : add(load(sum + v), load(y + v)));
      else
        store((p.out ? rows[i] : y) + v, activate(p.act, load(y + v)));
  }
  if (!p.out || k0 >= p.out_cols) return;
  const bool last = p.out_cols <= k0 + kPanel;
  const int kn = last ? p.out_cols - k0 : kPanel;
  std::byte* tile = p.out + size_t(token) * size_t(p.out_k) * size_of(p.out_format);
  pack_rows(p.out_format, rows[0], kPanel, m, k0, kn, last ? p.out_k : k0 + kn, tile, m, 0);
}

// One product, panels [p0, p1).
template <Format F>
struct Run {
  const Product& p;
  const int p0, p1, tiles = tile_count(p.tokens, kTileTokens);
  Activations<F> activations = {};

  static constexpr int kBlock = F == Format::f32 ? kBlockColumns : 2 * kBlockColumns;
  static constexpr int kGroup = F == Format::bf16 && kWiden ? 8 : 4;
  static_assert(kBlock * kTileTokens <= kWide);
  static constexpr int kLines = kPanel * size_of(F) * kStep / kLine;  // cache lines of a panel per step

  int start(int tile) const { return tile_start(p.tokens, tiles, tile); }
  const std::byte* weights(int panel, int k) const {
    return p.w + (size_t(panel) * size_t(p.k) + size_t(k)) * size_t(kPanel * size_of(F));
  }
  const std::byte* packed(int tile) const { return p.x + size_t(start(tile)) * size_t(p.k) * size_of(F); }
  float* sums(int panel, int tile) const { return p.y + size_t(start(tile)) * p.ldy + panel * kPanel; }

  void few_tokens() {
    const int m = p.tokens;
    const Call call = call_for<F, true>(m);
    int most = call.rows == kPanel ? p.k : kBlockColumns;
    if (most > Activations<F>::most_columns(m)) most = Activations<F>::most_columns(m);
    for (int panel = p0; panel < p1; panel++) {
      for (int k = 0; k < p.k; k += most) {
        const int kn = p.k - k < most ? p.k - k : most;
        const std::byte* w = weights(panel, k);
        const void* x = activations.block(packed(0), m, k, kn);
        for (int row = 0; row < kPanel; row += call.rows) {  // the first call of a block brings the whole of it
          const int lines = kStreamAhead == 0 || row > 0 ? 0 : kLines;
          call.multiply(w + row * 4, x, kn, k == 0, sums(panel, 0) + row, p.ldy, {w + kStreamAhead, lines});
        }
      }
      finish(p, panel, 0, m);
    }
  }

  void many_tokens() {
    constexpr int kTiles = kBlockTokens / kTileTokens;
    const int blocks = (tiles + kTiles - 1) / kTiles;
    for (int i = 0; i < blocks; i++)
      for (int k = 0; k < p.k; k += kBlock)
        for (int panel = p0; panel < p1; panel += kGroup)
          group(tiles * i / blocks, tiles * (i + 1) / blocks, k, panel, i + 1 < blocks);
  }

  // The sums of a tile lie in as many rows as it has tokens: no hardware sees them coming.
  void fetch_sums(int panel, int tile) const {
    for (int i = start(tile); i < start(tile + 1); i++) {
      const auto* y = reinterpret_cast<const std::byte*>(p.y + size_t(i) * p.ldy + panel * kPanel);
      for (int j = 0; j < kPanel * 4; j += kLine) prefetch_l1(y + j);
    }
  }

  // The tiles [t0, t1) times a group of panels; each panel fetches its like in the group that comes next.
  void group(int t0, int t1, int k, int panel, bool more) {
    const int kn = p.k - k < kBlock ? p.k - k : kBlock, count = p1 - panel < kGroup ? p1 - panel : kGroup;
    const int calls = (t1 - t0) * (kPanel / call_for<F, false>(start(t0 + 1) - start(t0)).rows);
    const int lines = (kLines + calls - 1) / calls;
    int next_panel = panel + kGroup, next_k = k;
    if (next_panel >= p1) next_panel = p0, next_k += kn;
    if (next_k == p.k) next_panel = more ? p0 : p1, next_k = 0;
    Fetch fetch[kGroup];
    for (int i = 0; i < count; i++) fetch[i] = {weights(next_panel + i, next_k), next_panel + i < p1 ? lines : 0};

    for (int t = t0; t < t1; t++) {
      const int m = start(t + 1) - start(t);
      const Call call = call_for<F, false>(m);
      const void* x = activations.block(packed(t), m, k, kn);
      for (int i = 0; i < count; i++) {
        if (k > 0 && t + 1 < t1) fetch_sums(panel + i, t + 1);
        for (int row = 0; row < kPanel; row += call.rows) {
          if (fetch[i].at >= weights(next_panel + i, next_k + kn)) fetch[i].lines = 0;
          call.multiply(weights(panel + i, k) + row * 4, x, kn, k == 0, sums(panel + i, t) + row, p.ldy, fetch[i]);
          fetch[i].at += fetch[i].lines * (kn / kStep) * kLine;
        }
        if (k + kn == p.k) finish(p, panel + i, start(t), m);
      }
    }
  }
};

template <Format F>
void run(const Product& p, int p0, int p1) {
  Run<F> run{p, p0, p1};
  if (run.tiles == 1)
    run.few_tokens();
  else
    run.many_tokens();
}
void product(const Product& p, int p0, int p1) {
  if (p.tokens == 0) return;
  (p.format == Format::f32 ? run<Format::f32> : run<Format::bf16>)(p, p0, p1);
}

}  // namespace
}  // namespace rwkv::cpu
