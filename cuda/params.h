// What kernels are given: one plain struct for each, of which both sides see the same bytes. Pointers are of the
// device. `ld` is a stride in elements; an operand is named with its format and its tokens rounded up to 8.
// There is nothing between or behind the members: params are compared byte by byte. Hence some wide numbers.
#pragma once
#include "cuda/layout.h"

namespace rwkv::cuda {

constexpr int kMostJobs = 8;

// A step's batch as it was uploaded.
struct StepPointers {
  const int32_t* token;     // (T)
  const int32_t* sequence;  // (T)
  const int32_t* start;     // (S + 1)
  const uint64_t* src;      // (S) addresses of slots
  const uint64_t* dst;      // (S)
  int32_t tokens, sequences;
};

struct OperandPointer {
  void* data;  // null: none
  int32_t rows8;
  Stored format;
};

// ---- rows ----
struct NormPointers {
  const float *weight, *bias;
  float eps;
  int32_t reserved = 0;
};

struct EmbedParams {
  const void* table;
  Stored dtype;  // f32, f16 or bf16
  int32_t ld;
  int64_t cols;
  NormPointers norm;
  float* x;  // with statistics; null: none
  int64_t ld_x;
  OperandPointer out;
  const int32_t* token;
};

struct NormParams {
  const float* x;
  int32_t ld, cols;
  NormPointers norm;
  const int32_t* rows;  // of x, one for each block
  float* y;             // null: none
  int64_t ld_y;
  OperandPointer out;
};

struct MixJobParams {
  const float* mu;
  const float* dynamic;  // null: none
  int64_t ld_dynamic;
  OperandPointer out;
};
struct MixParams {
  const float* x;
  int32_t ld, cols;
  NormPointers norm;
  uint64_t shift;  // byte of the state's part in a slot
  int32_t write;   // the last rows to dst
  int32_t count;
  StepPointers step;
  MixJobParams job[kMostJobs];
};

struct DeepEmbedParams {
  const void* table;  // (V, D D)
  Stored dtype;
  int32_t d;
  const float *base, *z;  // (T, D D), (T, D)
  int32_t ld_base, ld_z;
  OperandPointer y;  // (T, D)
  const int32_t* token;
};

struct FiniteParams {
  const float* x;
  int32_t ld, cols;
  int32_t* flag;  // bit `bit` is set if a number is not finite
  int32_t bit, reserved = 0;
};

struct WriteRowsParams {  // dense rows to rows with statistics
  const float* from;
  float* x;
  int32_t ld, cols;
};

struct CopyRowsParams {
  const float* from;
  float* to;
  int32_t ld_from, ld_to, cols, reserved = 0;
};

struct KeepRowsParams {  // the last rows of sequences to their dst slots
  const float* from;
  int32_t ld, cols;
  const int32_t* rows;  // of the batch, one for each of `from`
  uint64_t offset;      // in a slot
  StepPointers step;
};

// ---- weights ----
struct PackParams {
  const void* from;  // dense rows
  Stored dtype;      // f32, f16 or bf16
  int32_t row;       // the first of them in the matrix, a multiple of 16
  int32_t count;
  int32_t rows;  // of the matrix
  int64_t cols;
  void* to;  // the whole matrix
};

// ---- products ----
struct LinearJobParams {
  const void* w;
  const void* x;
  float* y;
  float* sum;
  const float* gate;
  const float* bias;  // of what goes to out
  OperandPointer out;
  int32_t n, k;  // padded
  int32_t rows;  // of the matrix
  int32_t tokens;
  int32_t rows8;  // of x
  int32_t ld_y, ld_sum, ld_gate;
  int32_t first;  // its first block
  Activation act;
  uint8_t skip;     // by columns: zeros may be skipped if all numbers are finite
  uint16_t stored;  // enum Stored, of w: kernels of int8 and int4 by rows also take f16 and bf16
};
static_assert(sizeof(LinearJobParams) == 104);
struct LinearParams {
  int32_t count, blocks;
  LinearJobParams job[kMostJobs];
};

// Weights by blocks and operands, of 16 bits, to plain rows. A line is 64 bytes of a row, and `lines` of neighbouring
// rows lie together: those of a block, or all.
struct PlainParams {
  const void* from;
  void* to;
  int32_t rows, lines, chunks;  // chunks: lines of a row
  int32_t reserved = 0;
};

// What follows sums that lie in rows of job.n.
struct FinishRowsParams {
  const float* from;
  LinearJobParams job;
};

// Products whose operands are the lerps of a mix, made on the way: `x` and `rows8` of the jobs mean nothing.
struct MixedParams {
  MixParams mix;             // every row is a sequence, whose src and dst are not the same
  int32_t which[kMostJobs];  // lerp of the mix for each product
  LinearParams linear;
};

// ---- recurrences ----
struct Wkv4Params {
  const float *r, *k, *v;
  int32_t ld, cols;
  const float *decay, *bonus;
  uint64_t a, b, m;  // bytes of the state's parts in a slot
  OperandPointer y;
  StepPointers step;
};

struct Wkv6Params {
  const float *r, *k, *v;
  const float *g, *w;  // null: none
  int32_t ld, heads, n, reserved = 0;
  const float *decay, *bonus;
  NormPointers out;
  uint64_t state;
  OperandPointer y;
  StepPointers step;
};

struct Wkv7Params {
  const float *r, *w, *k, *v, *a, *g;
  const float* v_mix;  // null in the first layer
  float* v_first;      // written there, read in the others
  int32_t ld, heads, n, reserved = 0;
  const float *w0, *a0, *v0, *k_k, *k_a, *r_k;
  NormPointers out;
  uint64_t state;
  OperandPointer y;
  StepPointers step;
  const int32_t* sequences = nullptr;  // of the blocks, as numbers of the step's; null: all in their order
};

// The same for heads of 64 and sequences of one row each, with the products in front: of RWKV-7 those that give w, a, g
// and, but in the first layer, v_mix, of RWKV-6 the one that gives w. Those pointers mean nothing here, but that v_mix
// is null.
constexpr int kLowGate = 2;  // the job of g
template <class P, int Jobs>
struct WkvDecodeParams {
  P wkv;
  int32_t group, reserved = 0;  // sequences of a block
  LinearJobParams job[Jobs];    // their y means nothing
};
using Wkv6DecodeParams = WkvDecodeParams<Wkv6Params, 1>;
using Wkv7DecodeParams = WkvDecodeParams<Wkv7Params, 4>;

// RWKV-7's in chunks of 64 rows, for heads of 64. The host cuts each of the sequences that it is for from its first row
// on, the last chunk is shorter; chunks of a sequence follow each other.
constexpr int kWkvChunk = 64;
constexpr float kWkvUnit = 16.0f;  // of values in halves, which so hold states up to a million
struct Wkv7Chunk {
  int32_t row, count;  // of the step's rows, all of one sequence
};
struct Wkv7Run {
  int32_t sequence, first, chunks;  // the first chunk of it, and how many
};
// What is known of a head's chunk before the state S in front of it is. With [row][value], S [key][value]:
//   results = Q S + Y, S of the next chunk = diag(decay) S + E S + N
// Halves lie as fragments of 16 rows and 16 columns, floats as sums of 16 rows and 8 columns (m16n8k16 of PTX), each
// lane's 16 bytes together. Values are divided by kWkvUnit; Q S + Y is a result divided by
// the row's `scale`.
struct alignas(16) Wkv7Piece {
  uint32_t q[16][32][4];       // [row][key]: block 4 (row / 16) + key / 16
  uint32_t e[16][32][4];       // [key of the next S][key]
  uint32_t v[16][32][4];       // [value][row], the values themselves, times the size of their key
  float n[32][32][4];          // [value][key]: block 8 (value / 16) + key / 8; S as halves takes its place, see carried
  float y[32][32][4];          // [value][row]
  float decay[64];             // of a key
  float bonus[64], scale[64];  // of a row: of v, and of what Q S + Y gives
};
struct Wkv7ChunkParams {
  Wkv7Params wkv;
  const Wkv7Chunk* chunk;
  const Wkv7Run* run;
  Wkv7Piece* piece;  // [chunk][head]
};
// How many chunks sequences of kChunkFrom rows and more may have, of so many rows in all.
constexpr int kChunkFrom = 65;  // so that calls of up to 64 rows have one arithmetic
RWKV_BOTH constexpr int most_chunks(int rows) { return 2 * rows / (kWkvChunk + 1); }

// ---- sampling ----
constexpr int kSampleSpan = 128;                                   // logits that have a sum of their own
RWKV_BOTH constexpr size_t sample_scratch_bytes(int vocabulary) {  // of a job
  return size_t(round_up((vocabulary + kSampleSpan - 1) / kSampleSpan * 8, 64));
}

struct TokenNumber {
  int32_t token;
  float number;
};
// As SampleJob, whose values the host has checked.
struct SampleJobParams {
  const float* logits;
  const TokenNumber* bias;
  TokenNumber* top;  // the most likely tokens with their logprobs
  float* biased;     // room for a row, if there are biases
  double scale;      // 1 / temperature, or 0: the most likely token
  double uniform;    // in [0, 1), from seed and counter
  float top_p, min_p;
  int32_t top_k, biases, tops, given;
};
enum class SampleCode : int32_t { drawn, not_finite, all_infinite, not_finite_biased, all_banned };
struct SampleResult {
  int32_t token;
  float logprob;
  SampleCode code;
  int32_t where;  // the first logit that is not finite
};
struct SampleParams {
  const SampleJobParams* jobs;  // on the device, one for each block
  SampleResult* results;
  void* scratch;
  int32_t vocabulary, reserved = 0;
};

}  // namespace rwkv::cuda
