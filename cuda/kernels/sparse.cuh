// Products with up to 64 tokens, W by columns: those whose inputs are zeros for all tokens are not loaded, if all
// numbers of W are finite. The arithmetic is that of small.cuh, whose order of k, lanes and warps this has, so the bits
// are the same as well, with and without skipping: what is not loaded is some number, and zeros times it change no sum.
//
// What a warp will load it knows before it multiplies: it looks through its share of the inputs once and asks for the
// live ones' weights, so that no step waits for an input to know what to load, and for the device's memory.
//
// Weights come by copies of 16 bytes, some outputs at one k, to shared memory, and from there turned around as
// fragments. A block has few outputs, as the matrix has few rows and every processor wants some; but with many tokens
// each block reads all of their inputs. More tokens than 8 NT go in turns.
#pragma once
#include <type_traits>

#include "cuda/kernels/small.cuh"

namespace rwkv::cuda {

template <Stored F>
RWKV_DEVICE const unsigned char* columns_from(const LinearJobParams& q, int k, int output) {
  return static_cast<const unsigned char*>(q.w) + weight_at(F, Order::columns, q.n, q.k, output, k);
}

// Of the inputs of a window, which any of some tokens has. A lane looks at four times 16 bytes of each token: the
// `lane % 4`-th ones of rows of 64 bytes lane / 4, lane / 4 + 8, ... of the window; each gives a byte, whose bit i is
// for the i-th number there.
constexpr int kWindowRows = 32;
template <Stored O>
RWKV_DEVICE uint32_t live_numbers(const LinearJobParams& q, int row, int token, int count) {
  const uint32_t magnitude = O == Stored::f32 ? 0x7fffffffu : 0x7fff7fffu;
  uint4 any = {0, 0, 0, 0};
  const auto* from = static_cast<const unsigned char*>(q.x) + (size_t(row) * size_t(q.rows8) + size_t(token)) * kChunk +
                     lane() % 4 * 16;
#pragma unroll 8
  for (int t = 0; t < count; t++) {
    const uint4 x = *reinterpret_cast<const uint4*>(from + t * kChunk);
    any = {any.x | x.x, any.y | x.y, any.z | x.z, any.w | x.w};
  }
  uint32_t live = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const uint32_t v = word(any, i) & magnitude;
    if constexpr (O == Stored::f32)
      live |= uint32_t(v != 0) << i;
    else
      live |= uint32_t((v & 0xffff) != 0) << 2 * i | uint32_t((v >> 16) != 0) << (2 * i + 1);
  }
  return live;
}
// For the window from row `first` to `end`. What a block of outputs multiplies its live inputs with is on its way to L2
// afterwards.
template <Stored F>
RWKV_DEVICE uint32_t find_live(const LinearJobParams& q, int output, int first, int end, int token, int count,
                               bool skip) {
  constexpr Stored kOperand = operand_of(F);
  constexpr int kRow = operand_elements(kOperand), kNumbers = kRow / 4;
  const int line = q.n * bits_of(F) / 8;
  uint32_t live = 0;
#pragma unroll 1
  for (int i = 0; first + 8 * i < end; i++) {
    const int row = first + 8 * i + lane() / 4;
    uint32_t own = row >= end ? 0 : (1u << kNumbers) - 1;
    if (skip && row < end) own = live_numbers<kOperand>(q, row, token, count);
    const unsigned char* w = columns_from<F>(q, row * kRow + lane() % 4 * kNumbers, output);
#pragma unroll
    for (int j = 0; j < kNumbers; j++)
      if ((own >> j & 1) != 0) prefetch(w + j * line);
    live |= own << 8 * i;
  }
  return live;
}
// The byte of the `chunk`-th 16 bytes of a row of the window, which may be others in each lane; all lanes come here. Of
// rows behind the window any.
RWKV_DEVICE uint32_t live_of(uint32_t live, int row, int chunk) {
  return shuffle(live, row % 8 * 4 + chunk) >> row / 8 % 4 * 8 & 0xff;
}

// A block of k of N outputs in shared memory. As lanes hold k, t has kLane of them, k = t kLane + 2 pair + odd; its
// `chunk`-th 16 bytes are unit ((pair kChunks + chunk) 4 + t) 2 + odd. So the eight k of a matrix of fragments lie side
// by side, and each copy of a warp takes all that a block has at its k: whole sectors, but of int8's 16 outputs and
// int4's 32 half of one.
template <Stored F, int N>
struct ColumnStage {
  static constexpr int kLane = block_k(F) / 4, kChunks = N * bits_of(F) / 128, kCopies = block_k(F) * kChunks / 32;
  static constexpr int kBytes = block_k(F) * kChunks * 16, kRows = quantised(F) ? 2 : 1;  // kRows: of the operand
  static constexpr int kStages = int(sizeof(SparseShared<kBytes>::stage)) / kWarps / kBytes;
};
// What of a block a lane copies: units lane, lane + 32, ...
template <Stored F, int N>
struct ColumnLane {
  using S = ColumnStage<F, N>;
  static constexpr int kPairs = 4 / S::kChunks;  // of a copy
  int odd, t, chunk, pair;
  RWKV_DEVICE ColumnLane()
      : odd(lane() % 2), t(lane() / 2 % 4), chunk(lane() / 8 % S::kChunks), pair(lane() / 8 / S::kChunks) {}
  RWKV_DEVICE const unsigned char* from(const LinearJobParams& q, int output, int block) const {
    const int k = block * block_k(F) + t * S::kLane + 2 * pair + odd;
    return columns_from<F>(q, k, output + chunk * (128 / bits_of(F)));
  }
  // The bits of its own k, of a window's block that begins at `row`.
  RWKV_DEVICE uint32_t live(uint32_t window, int row) const {
    const uint32_t all =
        quantised(F) ? live_of(window, row + t / 2, t % 2 * 2) | live_of(window, row + t / 2, t % 2 * 2 + 1) << 8
                     : live_of(window, row, t);
    return all >> (2 * pair + odd);
  }
  RWKV_DEVICE void copy(const unsigned char* from, int line, uint32_t live, unsigned char* to) const {
#pragma unroll
    for (int i = 0; i < S::kCopies; i++)
      copy_async(to + (32 * i + lane()) * 16, from + size_t(2 * kPairs * i) * line, (live >> 2 * kPairs * i & 1) != 0);
  }
};

// Fragments of 16 outputs from `m` on for product i, out of a lane's words of matrices. Those of int8 and int4 have
// pairs and fours of neighbouring outputs.
template <Stored F, int N>
RWKV_DEVICE void column_fragments(const unsigned char* stage, int i, uint32_t (&a)[N / 16][4]) {
  using S = ColumnStage<F, N>;
  const int matrix = lane() / 8, own = lane() % 8;
  if constexpr (!quantised(F)) {
#pragma unroll
    for (int m = 0; m < N / 16; m++)
      load_tiles<true>(a[m], stage + (((2 * i + matrix / 2) * S::kChunks + 2 * m + matrix % 2) * 8 + own) * 16);
  } else {
#pragma unroll
    for (int c = 0; c < S::kChunks; c++) {
      uint32_t v[4];  // of this product and of the next one, which reads them again
      load_tiles<true>(v, stage + (((i / 2 * 4 + matrix) * S::kChunks + c) * 8 + own) * 16);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const uint32_t w = v[i % 2 * 2 + h];
        if constexpr (F == Stored::i8) {  // bytes n + 128 become halves 1024 + 128 + n
          a[c][2 * h] = subtract_halves(permute(w, 0x64646464u, 0x4240), 0x64806480u);
          a[c][2 * h + 1] = subtract_halves(permute(w, 0x64646464u, 0x4341), 0x64806480u);
        } else {
#pragma unroll
          for (int n = 0; n < 4; n++)
            a[2 * c + n / 2][2 * h + n % 2] = subtract_halves((w >> 4 * n & 0x000f000fu) | 0x64006400u, 0x64086408u);
        }
      }
    }
  }
}

// What a lane multiplies a block with that does not come by copies.
template <Stored F, int N, int NT>
struct ColumnInputs {
  uint4 x[NT][ColumnStage<F, N>::kRows] = {};
  uint32_t scales[N / 16] = {};
};
// `there`: of each tile, whether it has a lane's token.
template <Stored F, int N, int NT>
RWKV_DEVICE void load_inputs(const unsigned char* x, const unsigned char* scales, uint32_t there,
                             ColumnInputs<F, N, NT>& in) {
#pragma unroll
  for (int n = 0; n < NT; n++)
#pragma unroll
    for (int i = 0; i < ColumnStage<F, N>::kRows; i++)
      if ((there >> n & 1) != 0) in.x[n][i] = *reinterpret_cast<const uint4*>(x + n * 8 * kChunk + i * 16);
  if constexpr (quantised(F)) {  // of rows g and g + 8 of each fragment, which are neighbours
#pragma unroll
    for (int m = 0; m < N / 16; m++)
      in.scales[m] = *reinterpret_cast<const uint32_t*>(scales + (F == Stored::i8 ? 32 * m : m / 2 * 64 + m % 2 * 4));
  }
}
template <Stored F, int N, int NT>
RWKV_DEVICE void multiply_stage(const unsigned char* stage, const ColumnInputs<F, N, NT>& in,
                                float (&acc)[N / 16][NT][4]) {
  float group[N / 16][NT][4] = {};
#pragma unroll
  for (int i = 0; i < 2 * ColumnStage<F, N>::kRows; i++) {
    uint32_t a[N / 16][4];
    column_fragments<F, N>(stage, i, a);
#pragma unroll
    for (int m = 0; m < N / 16; m++)
#pragma unroll
      for (int n = 0; n < NT; n++) {
        const uint32_t b[2] = {word(in.x[n][i / 2], i % 2 * 2), word(in.x[n][i / 2], i % 2 * 2 + 1)};
        multiply<F>(quantised(F) ? group[m][n] : acc[m][n], a[m], b);
      }
  }
  if constexpr (quantised(F)) {
#pragma unroll
    for (int m = 0; m < N / 16; m++) {
      const float low = from_bits(in.scales[m] << 16), high = from_bits(in.scales[m] & 0xffff0000u);
#pragma unroll
      for (int n = 0; n < NT; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) acc[m][n][i] = fmaf(i < 2 ? low : high, group[m][n][i], acc[m][n][i]);
    }
  }
}

// A warp's blocks of k from `begin` to `end`, for NT tiles of 8 tokens from `token` on.
template <Stored F, int N, int NT>
RWKV_DEVICE void multiply_columns(const LinearJobParams& q, int output, int begin, int end, int token, bool skip,
                                  unsigned char* shared, float (&acc)[N / 16][NT][4]) {
  using S = ColumnStage<F, N>;
  constexpr int kBlocks = kWindowRows / S::kRows;                // of a window
  constexpr int kAhead = NT == 1 ? 4 / S::kRows : 2 / S::kRows;  // blocks whose inputs are on their way
  const int count = q.tokens - token < 8 * NT ? q.tokens - token : 8 * NT;
  const int g = lane() / 4, t = lane() % 4, line = q.n * bits_of(F) / 8, row_bytes = q.rows8 * kChunk;
  const ColumnLane<F, N> own;
  uint32_t there = 0;
  for (int n = 0; n < NT; n++) there |= uint32_t(n * 8 + g < count) << n;
#pragma unroll 1
  for (int first = begin; first < end; first += kBlocks) {
    const int last = first + kBlocks < end ? first + kBlocks : end;
    const uint32_t live = find_live<F>(q, output, first * S::kRows, last * S::kRows, token, count, skip);
    const unsigned char* weights = own.from(q, output, first);
    const auto copy = [&](int block, unsigned char* to) {  // behind the last one zeros, and nothing is read
      const uint32_t wanted = own.live(live, (block - first) * S::kRows);
      own.copy(weights, line, block < last ? wanted : 0, to);
      weights += size_t(block_k(F)) * line;
      commit();
    };
    for (int i = 0; i < S::kStages; i++) copy(first + i, shared + i * S::kBytes);
    const auto* x =
        static_cast<const unsigned char*>(q.x) +
        (quantised(F) ? size_t(2 * first + t / 2) * row_bytes + t % 2 * 32 : size_t(first) * row_bytes + t * 16) +
        (token + g) * kChunk;
    const auto* scales =
        static_cast<const unsigned char*>(q.w) +
        (quantised(F) ? scale_at(F, Order::columns, q.n, q.k, output + (F == Stored::i8 ? 2 : 4) * g, first) : 0);
    ColumnInputs<F, N, NT> in[kAhead];
    const auto load = [&](int block, ColumnInputs<F, N, NT>& to) {
      if (block < last) load_inputs<F, N, NT>(x, scales, there, to);
      x += S::kRows * row_bytes, scales += 2 * q.n;
    };
#pragma unroll
    for (int i = 0; i < kAhead; i++) load(first + i, in[i]);
    int stage = 0;
#pragma unroll 1
    for (int block = first; block < last; block += kAhead)
#pragma unroll
      for (int i = 0; i < kAhead; i++) {
        if (block + i >= last) break;
        wait<S::kStages - 1>();
        sync_warp();
        unsigned char* at = shared + stage * S::kBytes;
        multiply_stage<F, N, NT>(at, in[i], acc);
        sync_warp();
        copy(block + i + S::kStages, at);
        load(block + i + kAhead, in[i]);
        stage = stage + 1 == S::kStages ? 0 : stage + 1;
      }
    wait<0>();
  }
}

// float32: as multiply_floats of small.cuh, for a lane's two outputs.
template <int NT>
RWKV_DEVICE void multiply_float_columns(const LinearJobParams& q, int output, int begin, int end, int token, bool skip,
                                        float (&acc)[1][NT][4]) {
  const int g = lane() / 4, t = lane() % 4;
  const int count = q.tokens - token < 8 * NT ? q.tokens - token : 8 * NT;
  float sum[2][NT * 8] = {};
  uint32_t live = 0;
#pragma unroll 1
  for (int block = begin, first = begin; block < end; block++) {
    if (block == begin || block - first == kWindowRows) {
      first = block;
      const int last = first + kWindowRows < end ? first + kWindowRows : end;
      live = find_live<Stored::f32>(q, output, first, last, token, count, skip);
    }
    const uint32_t own = live_of(live, block - first, t);
    const unsigned char* from = columns_from<Stored::f32>(q, block * 16 + t * 4, output + 2 * g);
    uint64_t w[4];
#pragma unroll
    for (int i = 0; i < 4; i++) w[i] = (own >> i & 1) != 0 ? *reinterpret_cast<const uint64_t*>(from + i * q.n * 4) : 0;
#pragma unroll
    for (int n = 0; n < NT * 8; n++) {
      const uint4 x = load_operand(q, block, token + n, t);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        sum[0][n] = fmaf(from_bits(word(x, i)), from_bits(uint32_t(w[i])), sum[0][n]);
        sum[1][n] = fmaf(from_bits(word(x, i)), from_bits(uint32_t(w[i] >> 32)), sum[1][n]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 2; r++)
#pragma unroll
    for (int n = 0; n < NT * 8; n++) {
      float v = sum[r][n] + shuffle_xor(sum[r][n], 1);
      v += shuffle_xor(v, 2);
      if (n % 8 / 2 == t) acc[0][n / 8][r * 2 + n % 2] = v;
    }
}

RWKV_DEVICE FinishShared<1>& sums_of(FinishShared<1>& s, const float (&)[1][4]) { return s; }
template <int Bytes>
RWKV_DEVICE FinishShared<1>& sums_of(SparseShared<Bytes>& s, const float (&)[1][4]) {
  return s.of_16;
}
template <int Bytes>
RWKV_DEVICE FinishShared<2>& sums_of(SparseShared<Bytes>& s, const float (&)[2][4]) {
  return s.of_32;
}

// N outputs a block.
template <Stored F, int N, int NT>
RWKV_KERNEL void RWKV_BOUNDS(256, NT > 1 ? 1 : 2) sparse(PARAMS(LinearParams, p)) {
  constexpr int kTogether = quantised(F) ? 16 / bits_of(F) : F == Stored::f32 ? 2 : 1;
  using Shared = std::conditional_t<F == Stored::f32, FinishShared<1>, SparseShared<block_k(F) * N * bits_of(F) / 8>>;
  SHARED(Shared, s);
  int job = 0;
  while (job + 1 < p.count && int(blockIdx.x) >= p.job[job + 1].first) job++;
  const LinearJobParams& q = p.job[job];
  const int output = (int(blockIdx.x) - q.first) * N, blocks = q.k / block_k(F);
  const int begin = blocks * warp() / kWarps, end = blocks * (warp() + 1) / kWarps;
  // Which weights will be read only the operand says, but all scales are, and the head that allows to skip.
  let_next_start();
  prefetch(q.w);
  if constexpr (quantised(F))
    for (int i = begin + lane(); i < end; i += 32)
      prefetch(static_cast<const unsigned char*>(q.w) + scale_at(F, Order::columns, q.n, q.k, output, i));
  wait_for_previous();
  const bool skip = q.skip != 0 && *static_cast<const int32_t*>(q.w) == 0;
  for (int token = 0; token < q.tokens; token += 8 * NT) {
    float acc[N / 16][NT][4] = {};
    if constexpr (F == Stored::f32) {
      multiply_float_columns<NT>(q, output, begin, end, token, skip, acc);
    } else {
      multiply_columns<F, N, NT>(q, output, begin, end, token, skip, &s.stage[warp()][0][0], acc);
    }
#pragma unroll
    for (int n = 0; n < NT; n++) {
      if (token + n * 8 >= q.tokens) break;
      float d[N / 16][4];
#pragma unroll
      for (int m = 0; m < N / 16; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) d[m][i] = acc[m][n][i];
      finish<kTogether>(q, sums_of(s, d), d, output, token + n * 8);
    }
    if (token + 8 * NT < q.tokens) sync();  // the sums lie where weights will
  }
}

}  // namespace rwkv::cuda
