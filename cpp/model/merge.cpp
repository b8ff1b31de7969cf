#include "model/merge.h"

#include <cstddef>
#include <utility>

namespace rwkv {

RowChange add_low_rank(std::vector<float> a, std::vector<float> b) {
  return [a = std::move(a), b = std::move(b)](int64_t row, std::span<float> w) {
    const size_t cols = w.size(), rank = a.size() / cols;
    const float* factor = b.data() + size_t(row) * rank;
    std::vector<float> sum(cols);
    float* const out = sum.data();
    size_t k = 0;
    for (; k + 4 <= rank; k += 4) {  // four at a time: sums are written a quarter as often, in the same order
      const float* const from = a.data() + k * cols;
      const float* const f = factor + k;
      for (size_t c = 0; c < cols; c++)
        out[c] =
            out[c] + f[0] * from[c] + f[1] * from[cols + c] + f[2] * from[2 * cols + c] + f[3] * from[3 * cols + c];
    }
    for (; k < rank; k++) {
      const float* const from = a.data() + k * cols;
      const float f = factor[k];
      for (size_t c = 0; c < cols; c++) out[c] += f * from[c];
    }
    for (size_t c = 0; c < cols; c++) w[c] += out[c];
  };
}

RowChange add_shards(std::vector<float> block, int64_t rank, float scale) {
  // Turned, so that what a row needs lies together.
  const size_t classes = size_t(rank), width = block.size() / classes;
  std::vector<float> turned(block.size());
  for (size_t k = 0; k < classes; k++)
    for (size_t o = 0; o < width; o++) turned[o * classes + k] = scale * block[k * width + o];
  return [turned = std::move(turned), classes, width](int64_t row, std::span<float> w) {
    const float* from = turned.data() + size_t(row) % width * classes;
    for (size_t c = 0; c < w.size(); c++) w[c] += from[c % classes];
  };
}

RowChange add_blocks(std::vector<float> blocks, int64_t side, BlockOf kind, float scale) {
  return [blocks = std::move(blocks), r = size_t(side), kind, scale](int64_t row, std::span<float> w) {
    const size_t within = size_t(row) % r;
    std::vector<float> sum(r);
    for (size_t first = 0; first < w.size(); first += r) {
      const size_t number = kind == BlockOf::column ? first / r : size_t(row) / r;
      const float* const block = blocks.data() + number * r * r;
      for (size_t j = 0; j < r; j++) sum[j] = block[within * r + j];
      for (size_t i = 0; i < r; i++)
        for (size_t j = 0; j < r; j++) sum[j] += w[first + i] * block[i * r + j];
      for (size_t j = 0; j < r; j++) w[first + j] += scale * sum[j];
    }
  };
}

}  // namespace rwkv
