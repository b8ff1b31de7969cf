// The list of all kernels: number, source, params, shared memory, threads of a block. Whoever launches takes the sizes
// from here, and the tables of the library and of the simulator are made from the same lines.
#pragma once
#include "cuda/params.h"

namespace rwkv::cuda {

constexpr int kWarps = 8;  // of all blocks that multiply: they share k
constexpr int kMostHead = 1024;
constexpr int kTile = 128;  // outputs and tokens of a block of a product of many tokens

// ---- shared memory of a block ----
struct NoShared {};
struct SumShared {
  float part[32];
};
// What the warps have of 8 tokens and 16 M outputs, in the places of fragments.
template <int M>
struct FinishShared {
  float part[kWarps][M * 128];
};
// Mean and deviation of a row.
struct Moments {
  float count, mean, squares;  // squares: sum of (x - mean)^2
};
// Blocks of columns on their way to each warp, of so many bytes, and then the sums.
template <int Bytes>
union alignas(16) SparseShared {
  unsigned char stage[kWarps][6 * 1024 / Bytes][Bytes];
  FinishShared<1> of_16;
  FinishShared<2> of_32;
};
static_assert(sizeof(SparseShared<1024>) <= 48 * 1024 && sizeof(SparseShared<2048>) <= 48 * 1024);
// A token whose operand a block makes: the row of its shift, and the norm of its own.
struct MixedToken {
  const float* before;
  float mean, scale;
};
// A warp's operand of 8 tokens and as many columns as its lanes make at once; the sums when all have been multiplied.
constexpr int kMixedColumns = 128;
struct alignas(16) MixedShared {
  MixedToken token[8];
  union {
    uint16_t operand[kWarps][8 * kMixedColumns];
    FinishShared<1> sums;
  };
};
struct WkvShared {
  float r[kMostHead], w[kMostHead], k[kMostHead], v[kMostHead], b[kMostHead], kk[kMostHead], y[kMostHead];
  float part[32];
};
// Of one token of a head of 64; a multiple of 16 bytes, four keys at a time are read.
struct alignas(16) Wkv6Vectors {
  float r[64], w[64], k[64], v[64], g[64];
  float share;  // of v in the token's own result
};
struct alignas(16) Wkv7Vectors {
  float r[64], w[64], k[64], b[64], kk[64], v[64], g[64];
  float bonus;
};
template <class Vectors>
struct WkvHeadShared {
  Vectors token[3];
  float y[2][64];
};
using Wkv6HeadShared = WkvHeadShared<Wkv6Vectors>;
using Wkv7HeadShared = WkvHeadShared<Wkv7Vectors>;

// Of up to 8 tokens of a head.
template <class Vectors, int Jobs>
struct WkvDecodeShared {
  Vectors token[8];
  float y[8][64];
  float low[Jobs][8][64 + 4];  // of each token what the jobs give; lanes that write together meet no bank twice
};
using Wkv6DecodeShared = WkvDecodeShared<Wkv6Vectors, 1>;
using Wkv7DecodeShared = WkvDecodeShared<Wkv7Vectors, 4>;

// Of a head's chunk. r, a, k and b are rows of 64 halves, at the places of wkv7_place; what they are moved to is read
// before the products of rows with rows take the same memory.
struct alignas(16) Wkv7ChunkShared {
  uint16_t r[64 * 64], a[64 * 64], k[64 * 64], b[64 * 64];
  union {
    uint16_t moved[10][16 * 64];
    uint32_t product[40][32][4];
  };
  float diagonal[4][16][16];
  float decay[8][64];  // of eight rows
  float norm[64], r_size[64], k_size[64];
};

// One step of a tile: the k of a row of 64 bytes of the operand, of all its outputs and tokens.
template <Stored F>
struct TileStage {
  static constexpr int kStep = operand_elements(operand_of(F));
  static constexpr int kNumbers = kTile * kStep * bits_of(F) / 8;
  unsigned char x[kTile * kChunk], w[kNumbers];
  uint16_t scales[quantised(F) ? kTile : 8];
};
// Less than 50 KB: a device of compute capability 7.5 has 64 for a block, one of 8.6 100 for two.
template <Stored F>
union alignas(16) TileShared {
  static constexpr int kStages = quantised(F) ? 4 : 3;
  TileStage<F> stage[kStages];
  float sums[kTile / 2][kTile + 4];  // afterwards, of half of the tokens
};
static_assert(sizeof(TileStage<Stored::f16>) % 16 == 0 && sizeof(TileStage<Stored::i8>) % 16 == 0);
static_assert(sizeof(TileShared<Stored::f16>) <= 50 * 1024 && sizeof(TileShared<Stored::i8>) <= 50 * 1024);

constexpr int kSampleList = 4096;  // likely tokens, if they are not more
struct SampleShared {
  double part[32], sum[kSampleSpan];
  float value[32], list[kSampleList];
  int32_t id[32];
};

// clang-format off
#define RWKV_ROW_KERNELS(X) \
  X(embed, (embed), EmbedParams, SumShared, 256) \
  X(norm, (norm), NormParams, NoShared, 256) \
  X(mix, (mix), MixParams, NoShared, 256) \
  X(deep_embed, (deep_embed), DeepEmbedParams, NoShared, 256) \
  X(finite, (finite), FiniteParams, NoShared, 256) \
  X(write_rows, (write_rows), WriteRowsParams, NoShared, 256) \
  X(keep_rows, (keep_rows), KeepRowsParams, NoShared, 256) \
  X(copy_rows, (copy_rows), CopyRowsParams, NoShared, 256) \
  X(plain, (plain), PlainParams, NoShared, 256) \
  X(finish_rows, (finish_rows), FinishRowsParams, NoShared, 256) \
  X(pack_rows_f32, (pack<Stored::f32, Order::rows>), PackParams, NoShared, 256) \
  X(pack_rows_f16, (pack<Stored::f16, Order::rows>), PackParams, NoShared, 256) \
  X(pack_rows_bf16, (pack<Stored::bf16, Order::rows>), PackParams, NoShared, 256) \
  X(pack_rows_i8, (pack<Stored::i8, Order::rows>), PackParams, NoShared, 256) \
  X(pack_rows_i4, (pack<Stored::i4, Order::rows>), PackParams, NoShared, 256) \
  X(pack_columns_f32, (pack<Stored::f32, Order::columns>), PackParams, NoShared, 256) \
  X(pack_columns_f16, (pack<Stored::f16, Order::columns>), PackParams, NoShared, 256) \
  X(pack_columns_bf16, (pack<Stored::bf16, Order::columns>), PackParams, NoShared, 256) \
  X(pack_columns_i8, (pack<Stored::i8, Order::columns>), PackParams, NoShared, 256) \
  X(pack_columns_i4, (pack<Stored::i4, Order::columns>), PackParams, NoShared, 256)

// small_FORMAT_TILES: for up to 8 TILES tokens; a block has 16 outputs times the template's last number. Those of i8 and
// i4, here and below, also take jobs of f16 and bf16.
#define RWKV_SMALL_KERNELS(X) \
  X(small_f32_1, (small<Stored::f32, 1, 1>), LinearParams, FinishShared<1>, 256) \
  X(small_f32_2, (small<Stored::f32, 2, 1>), LinearParams, FinishShared<1>, 256) \
  X(small_f32_8, (small<Stored::f32, 8, 1>), LinearParams, FinishShared<1>, 256) \
  X(small_f16_1, (small<Stored::f16, 1, 1>), LinearParams, FinishShared<1>, 256) \
  X(small_f16_2, (small<Stored::f16, 2, 1>), LinearParams, FinishShared<1>, 256) \
  X(small_f16_4, (small<Stored::f16, 4, 2>), LinearParams, FinishShared<2>, 256) \
  X(small_f16_8, (small<Stored::f16, 8, 4>), LinearParams, FinishShared<4>, 256) \
  X(small_bf16_1, (small<Stored::bf16, 1, 1>), LinearParams, FinishShared<1>, 256) \
  X(small_bf16_2, (small<Stored::bf16, 2, 1>), LinearParams, FinishShared<1>, 256) \
  X(small_bf16_4, (small<Stored::bf16, 4, 2>), LinearParams, FinishShared<2>, 256) \
  X(small_bf16_8, (small<Stored::bf16, 8, 4>), LinearParams, FinishShared<4>, 256) \
  X(small_i8_1, (small<Stored::i8, 1, 1>), LinearParams, FinishShared<1>, 256) \
  X(small_i8_2, (small<Stored::i8, 2, 1>), LinearParams, FinishShared<1>, 256) \
  X(small_i8_4, (small<Stored::i8, 4, 2>), LinearParams, FinishShared<2>, 256) \
  X(small_i8_8, (small<Stored::i8, 8, 2>), LinearParams, FinishShared<2>, 256) \
  X(small_i4_1, (small<Stored::i4, 1, 1>), LinearParams, FinishShared<1>, 256) \
  X(small_i4_2, (small<Stored::i4, 2, 1>), LinearParams, FinishShared<1>, 256) \
  X(small_i4_4, (small<Stored::i4, 4, 2>), LinearParams, FinishShared<2>, 256) \
  X(small_i4_8, (small<Stored::i4, 8, 2>), LinearParams, FinishShared<2>, 256)

// mixed_FORMAT: for up to 8 tokens.
#define RWKV_MIXED_KERNELS(X) \
  X(mixed_f16, (mixed<Stored::f16>), MixedParams, MixedShared, 256) \
  X(mixed_bf16, (mixed<Stored::bf16>), MixedParams, MixedShared, 256) \
  X(mixed_i8, (mixed<Stored::i8>), MixedParams, MixedShared, 256) \
  X(mixed_i4, (mixed<Stored::i4>), MixedParams, MixedShared, 256)

// sparse_FORMAT_TILES: the tokens of so many tiles at once; a block has as many outputs as the middle number says.
#define RWKV_SPARSE_KERNELS(X) \
  X(sparse_f32_1, (sparse<Stored::f32, 16, 1>), LinearParams, FinishShared<1>, 256) \
  X(sparse_f32_2, (sparse<Stored::f32, 16, 2>), LinearParams, FinishShared<1>, 256) \
  X(sparse_f16_1, (sparse<Stored::f16, 16, 1>), LinearParams, SparseShared<1024>, 256) \
  X(sparse_f16_4, (sparse<Stored::f16, 32, 4>), LinearParams, SparseShared<2048>, 256) \
  X(sparse_bf16_1, (sparse<Stored::bf16, 16, 1>), LinearParams, SparseShared<1024>, 256) \
  X(sparse_bf16_4, (sparse<Stored::bf16, 32, 4>), LinearParams, SparseShared<2048>, 256) \
  X(sparse_i8_1, (sparse<Stored::i8, 16, 1>), LinearParams, SparseShared<1024>, 256) \
  X(sparse_i8_4, (sparse<Stored::i8, 32, 4>), LinearParams, SparseShared<2048>, 256) \
  X(sparse_i4_1, (sparse<Stored::i4, 32, 1>), LinearParams, SparseShared<1024>, 256) \
  X(sparse_i4_4, (sparse<Stored::i4, 32, 4>), LinearParams, SparseShared<1024>, 256)

// tile_ORDER_FORMAT: for any number of tokens.
#define RWKV_TILE_KERNELS(X) \
  X(tile_rows_f32, (tile<Stored::f32, Order::rows>), LinearParams, TileShared<Stored::f32>, 256) \
  X(tile_rows_f16, (tile<Stored::f16, Order::rows>), LinearParams, TileShared<Stored::f16>, 256) \
  X(tile_rows_bf16, (tile<Stored::bf16, Order::rows>), LinearParams, TileShared<Stored::bf16>, 256) \
  X(tile_rows_i8, (tile<Stored::i8, Order::rows>), LinearParams, TileShared<Stored::i8>, 256) \
  X(tile_rows_i4, (tile<Stored::i4, Order::rows>), LinearParams, TileShared<Stored::i4>, 256) \
  X(tile_columns_f32, (tile<Stored::f32, Order::columns>), LinearParams, TileShared<Stored::f32>, 256) \
  X(tile_columns_f16, (tile<Stored::f16, Order::columns>), LinearParams, TileShared<Stored::f16>, 256) \
  X(tile_columns_bf16, (tile<Stored::bf16, Order::columns>), LinearParams, TileShared<Stored::bf16>, 256) \
  X(tile_columns_i8, (tile<Stored::i8, Order::columns>), LinearParams, TileShared<Stored::i8>, 256) \
  X(tile_columns_i4, (tile<Stored::i4, Order::columns>), LinearParams, TileShared<Stored::i4>, 256)

// NAME_state16: the matrices of states are halves.
#define RWKV_WKV_KERNELS(X) \
  X(wkv4, (wkv4), Wkv4Params, NoShared, 128) \
  X(wkv6, (wkv6<float>), Wkv6Params, WkvShared, 256) \
  X(wkv6_state16, (wkv6<uint16_t>), Wkv6Params, WkvShared, 256) \
  X(wkv6_64, (wkv6_64<float>), Wkv6Params, Wkv6HeadShared, 256) \
  X(wkv6_64_state16, (wkv6_64<uint16_t>), Wkv6Params, Wkv6HeadShared, 256) \
  X(wkv6_decode_f32, (wkv6_decode<Stored::f32, float>), Wkv6DecodeParams, Wkv6DecodeShared, 256) \
  X(wkv6_decode_f16, (wkv6_decode<Stored::f16, float>), Wkv6DecodeParams, Wkv6DecodeShared, 256) \
  X(wkv6_decode_bf16, (wkv6_decode<Stored::bf16, float>), Wkv6DecodeParams, Wkv6DecodeShared, 256) \
  X(wkv6_decode_f32_state16, (wkv6_decode<Stored::f32, uint16_t>), Wkv6DecodeParams, Wkv6DecodeShared, 256) \
  X(wkv6_decode_f16_state16, (wkv6_decode<Stored::f16, uint16_t>), Wkv6DecodeParams, Wkv6DecodeShared, 256) \
  X(wkv6_decode_bf16_state16, (wkv6_decode<Stored::bf16, uint16_t>), Wkv6DecodeParams, Wkv6DecodeShared, 256) \
  X(wkv7, (wkv7<float>), Wkv7Params, WkvShared, 256) \
  X(wkv7_state16, (wkv7<uint16_t>), Wkv7Params, WkvShared, 256) \
  X(wkv7_64, (wkv7_64<float>), Wkv7Params, Wkv7HeadShared, 256) \
  X(wkv7_64_state16, (wkv7_64<uint16_t>), Wkv7Params, Wkv7HeadShared, 256) \
  X(wkv7_decode_f32, (wkv7_decode<Stored::f32, float>), Wkv7DecodeParams, Wkv7DecodeShared, 256) \
  X(wkv7_decode_f16, (wkv7_decode<Stored::f16, float>), Wkv7DecodeParams, Wkv7DecodeShared, 256) \
  X(wkv7_decode_bf16, (wkv7_decode<Stored::bf16, float>), Wkv7DecodeParams, Wkv7DecodeShared, 256) \
  X(wkv7_decode_f32_state16, (wkv7_decode<Stored::f32, uint16_t>), Wkv7DecodeParams, Wkv7DecodeShared, 256) \
  X(wkv7_decode_f16_state16, (wkv7_decode<Stored::f16, uint16_t>), Wkv7DecodeParams, Wkv7DecodeShared, 256) \
  X(wkv7_decode_bf16_state16, (wkv7_decode<Stored::bf16, uint16_t>), Wkv7DecodeParams, Wkv7DecodeShared, 256)

// One after the other, of (heads, chunks), (heads, runs, 2) and (heads, chunks) blocks.
#define RWKV_CHUNK_KERNELS(X) \
  X(wkv7_chunk, (wkv7_chunk), Wkv7ChunkParams, Wkv7ChunkShared, 256) \
  X(wkv7_carry, (wkv7_carry<float>), Wkv7ChunkParams, NoShared, 64) \
  X(wkv7_carry_state16, (wkv7_carry<uint16_t>), Wkv7ChunkParams, NoShared, 64) \
  X(wkv7_chunk_out, (wkv7_chunk_out), Wkv7ChunkParams, NoShared, 128)

#define RWKV_SAMPLE_KERNELS(X) \
  X(sample, (sample), SampleParams, SampleShared, 1024)

#define RWKV_KERNELS(X) \
  RWKV_ROW_KERNELS(X) \
  RWKV_SMALL_KERNELS(X) \
  RWKV_MIXED_KERNELS(X) \
  RWKV_SPARSE_KERNELS(X) \
  RWKV_TILE_KERNELS(X) \
  RWKV_WKV_KERNELS(X) \
  RWKV_CHUNK_KERNELS(X) \
  RWKV_SAMPLE_KERNELS(X)
// clang-format on

enum class Kernel : uint32_t {
#define RWKV_NUMBER(name, ...) name,
  RWKV_KERNELS(RWKV_NUMBER)
#undef RWKV_NUMBER
      count
};

struct KernelInfo {
  const char* name;
  uint32_t params, shared, threads;
};
constexpr KernelInfo kKernels[] = {
#define RWKV_INFO(name, source, params, shared, threads) \
  {#name, sizeof(params), __is_empty(shared) ? 0 : sizeof(shared), threads},
    RWKV_KERNELS(RWKV_INFO)
#undef RWKV_INFO
};

// ---- choices ----
constexpr int kRowColumns = 512, kFiniteColumns = 4096;  // of a block of norm and mix, and of finite
constexpr Kernel pack_kernel(Stored f, Order order) {
  return Kernel(uint32_t(order == Order::rows ? Kernel::pack_rows_f32 : Kernel::pack_columns_f32) + uint32_t(f));
}
// A product's kernel and how many outputs a block of it has.
struct ProductKernel {
  Kernel kernel;
  int outputs;
};
constexpr int kMostTokens = 64;  // of the products below
constexpr int tiles_of(int tokens) { return tokens <= 8 ? 1 : tokens <= 16 ? 2 : tokens <= 32 ? 4 : 8; }
constexpr ProductKernel small_product(Stored f, int tiles) {
  const auto nth = uint32_t(tiles == 1 ? 0 : tiles == 2 ? 1 : tiles == 4 && f != Stored::f32 ? 2 : 3);
  if (f == Stored::f32) return {Kernel(uint32_t(Kernel::small_f32_1) + (nth < 2 ? nth : 2)), kBlockRows};
  const int blocks = tiles <= 2 ? 1 : tiles == 4 || quantised(f) ? 2 : 4;
  return {Kernel(uint32_t(Kernel::small_f16_1) + 4 * (uint32_t(f) - uint32_t(Stored::f16)) + nth), kBlockRows * blocks};
}
constexpr int kMostMixed = 8;  // tokens of those that make their operand, of 16 bits
constexpr ProductKernel mixed_product(Stored f) {
  return {Kernel(uint32_t(Kernel::mixed_f16) + uint32_t(f) - uint32_t(Stored::f16)), kBlockRows};
}
constexpr ProductKernel sparse_product(Stored f, int tiles) {
  const bool many = tiles > 1;
  const int outputs = (many && f != Stored::f32) || f == Stored::i4 ? 32 : 16;
  return {Kernel(uint32_t(Kernel::sparse_f32_1) + 2 * uint32_t(f) + many), outputs};
}
// RWKV-6's and 7's recurrences with the products in front of them, of sequences of one row; `first` is the first of
// six. A block has some sequences of a head, up to as many as one tile of a product, and enough blocks are left for two
// on each processor, if there are so many.
constexpr int kMostGroup = 8;
constexpr Kernel decode_kernel(Kernel first, Stored low_rank, bool state16) {
  return Kernel(uint32_t(first) + (state16 ? 3 : 0) + uint32_t(low_rank));
}
constexpr int decode_group(int sequences, int heads, int processors) {
  const int group = (sequences * heads + 2 * processors - 1) / (2 * processors);
  return group < 1 ? 1 : group > kMostGroup ? kMostGroup : group;
}
// Of more tokens; any number of them is right. The grid is (tiles of the most tokens that a job has, tiles of outputs
// of all jobs), a job's first block the first of its tiles of outputs.
constexpr int tiles(int outputs_or_tokens) { return round_up(outputs_or_tokens, kTile) / kTile; }
constexpr Kernel tile_product(Stored f, Order order) {
  return Kernel(uint32_t(order == Order::rows ? Kernel::tile_rows_f32 : Kernel::tile_columns_f32) + uint32_t(f));
}

// How a library starts them, by number. Of CUDA only the function counts; the simulator also needs to know its type.
struct Entry {
  const void* function;
  void (*call)(const void* function, const void* params);
};
void add_rows(Entry* table);
void add_small(Entry* table);
void add_sparse(Entry* table);
void add_tile(Entry* table);
void add_wkv(Entry* table);
void add_chunk(Entry* table);
void add_sample(Entry* table);

}  // namespace rwkv::cuda
