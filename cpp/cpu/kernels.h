// The CPU's kernels: one table of plain functions per instruction set, plain pointers in. Written once
// (kernels/*.inl over simd/*.h), compiled once per set, chosen when the backend opens.
//
// What makes every result reproducible: ONE OUTPUT IS ONE LANE. A lane belongs to one row of W and sums over k alone,
// in ascending order, whatever the vector width, the tile shape, the blocking, the number of threads and of tokens:
//   f32, f16: acc = fma(x[k], w[k], acc)
//   bf16: per 32 k, acc = acc + (sum of the first 16 + sum of the others); each sum begins with zero, and per pair of k
//     sum = fma(x[2i+1], w[2i+1], sum), then fma(x[2i], w[2i], sum)  (what vdpbf16ps and tdpbf16ps can do)
//   i8, i4: per group of 64 k, acc = fma(float(sum of x[k] w[k]), scale of w * scale of x, acc): the sum is of integers
// Sums along a row (norms, head dot products) use a fixed 16-lane tree on every set. All kernels run with denormals
// flushed (FlushDenormals below), because those two instructions always do.
#pragma once
#include <cstddef>
#include <cstdint>

#include "backend/backend.h"
#include "backend/panels.h"

namespace rwkv::cpu {

// How the activations are stored that are multiplied with weights of a format.
constexpr Format operand_format(Format weights) {
  if (weights == Format::f16) return Format::f32;
  return weights == Format::i4 ? Format::i8 : weights;
}

using panels::kGroup, panels::kPanel, panels::kStep, panels::padded_k, panels::panel_bytes, panels::panels_of;
constexpr int kChain = 32;  // columns of bf16 whose products are summed up apart

// The functions of this header are static so that the objects of the sets export nothing but their tables: a linker
// keeps one copy of an inline function, and it may be the one that this machine cannot run.

// Packed activations (Operand) of T tokens, cut into balanced tiles of at most tile_of(Kernels, format) tokens; tile i
// holds tokens [tile_start(i), tile_start(i + 1)), M of them, and begins at byte row_bytes(K) * tile_start(i):
//   f32   [K][M]
//   bf16  [K/2][M][2], or as tiles want them (pairs_in_tiles) [K/32][M][16][2]: of 32 columns 1, 0, 3, 2 ... 15, 14,
//                         each before the one that is 16 columns behind it; what is past K is zero
//   i8    [K/64]          of each group: [M][64] numbers in [-127, 127], [M] scales as float,
//                         [M] corrections as int32: -128 times the sum of the numbers, for the 128 of the weights
static constexpr size_t row_bytes(Format f, int k) {
  if (f == Format::i8) return size_t(k / kGroup) * (kGroup + 8);
  if (f == Format::bf16) return size_t((k + kChain - 1) / kChain * kChain) * 2;
  return size_t(k) * 4;
}
static inline int tile_count(int tokens, int tile) { return (tokens + tile - 1) / tile; }
static inline int tile_start(int tokens, int tiles, int i) { return int(int64_t(tokens) * i / tiles); }
static inline int tile_at(int tokens, int tiles, int token) {
  int i = int(int64_t(token) * tiles / tokens);
  while (tile_start(tokens, tiles, i + 1) <= token) i++;
  return i;
}

// A matrix as columns (columns.h) and which of them count for one token, in the order in which panels add them; bytes
// of a group in any order.
struct LiveColumns {
  const std::byte* columns;
  int rows;
  const int32_t* live;
  int count;
};

constexpr int kRoom = 288 * 4 * kPanel;  // floats

struct Product {
  const std::byte* w;  // first panel of the matrix; null: y holds the sums
  Format format;
  int k;               // its padded_k
  const std::byte* x;  // packed activations
  int tokens;
  float* y;    // (tokens, 32 * panels): partial sums and result
  size_t ldy;  // floats
  // What happens to finished sums, see LinearJob.
  Act act;
  std::byte* out;  // packed activations of the next product, or null
  Format out_format;
  int out_k;     // its padded_k
  int out_cols;  // its columns: sums past them are dropped
  float* sum;    // added into, or null
  size_t ld_sum;
  const float* gate = nullptr;  // what goes to out or sum is multiplied with, or null
  size_t ld_gate = 0;
  const float* bias = nullptr;  // (out_cols), of what goes to out, or null
  float* room = nullptr;  // kRoom floats for sums of which y is not to keep the results, or null: they stay in a cache
  int y_token = 0, y_panel = 0;  // what y begins with
  float* sums(int token, int panel) const { return y + size_t(token - y_token) * ldy + (panel - y_panel) * kPanel; }
};

constexpr int kMaxHead = 1024;  // largest head size of the recurrence

// One head of RWKV-7 over the tokens of one sequence. All channel pointers are at the head's first channel.
struct Wkv7Head {
  int n;  // head size, 1 to kMaxHead
  int tokens;
  size_t ld;  // floats from token to token
  const float *r, *w, *k, *v, *a, *g;
  const float* v_mix;  // null in the first layer
  float* v_first;      // written when v_mix is null
  const float *w0, *a0, *v0, *k_k, *k_a, *r_k, *ln_weight, *ln_bias;
  float eps;
  const float* src;  // [n keys][padded_n values], values in lanes; may be dst
  float* dst;
  float* y;  // (tokens, n) with stride ldy: (group norm + bonus) * g
  size_t ldy;
};

// One head of RWKV-5 or 6, in the same way.
struct Wkv6Head {
  int n;
  int tokens;
  size_t ld;
  const float *r, *k, *v;
  const float* g;  // null: no gate
  const float* w;  // null: the decay is the same for all tokens
  const float *decay, *bonus, *ln_weight, *ln_bias;
  float eps;
  const float* src;
  float* dst;
  float* y;  // group norm * g
  size_t ldy;
};

// Some channels of RWKV-4 over the tokens of one sequence: numerator, denominator and maximum of the exponents.
struct Wkv4Channels {
  int n;
  int tokens;
  size_t ld;
  const float *r, *k, *v;
  const float *decay, *bonus;
  const float *src_a, *src_b, *src_m;  // each may be its dst
  float *dst_a, *dst_b, *dst_m;
  float* y;  // (tokens, n) with stride ldy: r * numerator / denominator
  size_t ldy;
};
static constexpr int padded_n(int n) { return (n + 15) / 16 * 16; }

constexpr size_t kSampleBlock = 128;  // logits to which sampling gives one maximum and one sum; the last may be fewer
static constexpr size_t sample_blocks(size_t n) { return (n + kSampleBlock - 1) / kSampleBlock; }

struct Kernels {
  const char* name;
  int tile, narrow_tile;  // most tokens in a tile, of float32, and of bf16 and int8
  // The time of a multiplication of float32 and of bf16, of many tokens, in quarters of that of int8.
  int float_work, pair_work;

  // y = W x for panels [p0, p1), then the epilogue. The only kernel that reads weights. With an `out` of int8, panels
  // are finished two by two: p0 is even, and so is p1 unless the rows end.
  void (*product)(const Product&, int p0, int p1);
  // The same bits from the live columns alone, for one token and a `sum`; p0 is even, and so is p1 unless the rows end.
  void (*column_product)(const Product&, const LiveColumns&, int p0, int p1);
  // The columns of one token's k packed activations that are not zero; -1 where there are more than `most`. `live` has
  // room for k.
  int (*live_columns)(Format, const std::byte* x, int k, int most, int32_t* live);
  // Rows of activations into tile position(s): x is (m, kn) with stride ld, columns [k0, k0 + kn) of a tile of M =
  // `width` tokens (at most tile_of the table), rows landing at positions [at, at + m). k0 is a multiple of
  // kChain, for int8 of kGroup, and so is kn unless the operand ends. `tile` is the tile's first byte. If k0 + kn is
  // the operand's last column, `k_end` > k0 + kn asks for zeros up to k_end (the padding).
  void (*pack_rows)(Format, const float* x, size_t ld, int m, int k0, int kn, int k_end, std::byte* tile, int width,
                    int at);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, int n, float eps, float* y);
  // xn + (previous - xn) * mu, or * (mu + dynamic) where that is not null
  void (*lerp)(const float* xn, const float* previous, const float* mu, const float* dynamic, int n, float* y);
  // y_j = sum over i of x_i (a_ij + b_ij), all n long, i ascending
  void (*small_product)(const float* x, const float* a, const float* b, int n, float* y);
  void (*widen)(const void* src, DType dtype, int n, float* y);  // f32, f16, bf16 to float32
  void (*wkv4)(const Wkv4Channels&);
  void (*wkv6)(const Wkv6Head&);
  void (*wkv7)(const Wkv7Head&);
  bool (*all_finite)(const float* x, size_t n);

  // Sampling. These give the same bits on every set, generic too.
  void (*block_maxima)(const float* x, size_t n, float* maxima);  // of a block with NaN or +inf: one of those
  // y[i] = e^((x[i] - max) * scale) to 1e-12, 0 below e^-707; x[i] may be up to 64 above max where scale is 1.
  void (*exponentials)(const float* x, size_t n, double max, double scale, double* y);
  void (*block_sums)(const float* x, size_t n, double max, double scale, double* sums);  // of those exponentials
  // Every x[i] >= low, a finite number, with its index, in order; returns how many. ids and values have room for n.
  size_t (*collect)(const float* x, size_t n, const float* maxima, float low, int32_t* ids, float* values);
};

static inline int tile_of(const Kernels& k, Format f) { return f == Format::f32 ? k.tile : k.narrow_tile; }
// How bf16 lies in a tile of `width` tokens.
static inline bool pairs_in_tiles(const Kernels& k, int width) { return width > k.tile; }

// On x86 only, but the first.
extern const Kernels kGeneric, kAvx2, kAvxVnni, kAvx512, kAvx512Vnni, kAvx512Amx, kAvx512Bf16;

// The best table this machine can run; RWKV_ISA=generic|avx2|avxvnni|avx512|avx512vnni|avx512amx|avx512bf16 chooses
// another (DeviceError when the name is unknown or the machine cannot run it).
const Kernels& choose_kernels();

// Sets flush-to-zero and denormals-are-zero for the calling thread, or clears them, and restores what was there.
class FlushDenormals {
 public:
  explicit FlushDenormals(bool flush = true);
  ~FlushDenormals();
  FlushDenormals(const FlushDenormals&) = delete;

 private:
  unsigned saved_;
};
void spin_pause();  // one polite turn of a spin loop

}  // namespace rwkv::cpu
