// What adapters add to a matrix W (rows, cols), in float32 and row by row: the bits of a row are the same whatever is
// read with it, and on every instruction set.
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace rwkv {

// Changes row number `row`, which `w` holds.
using RowChange = std::function<void(int64_t row, std::span<float> w)>;

// LoRA: W += B A, with A (rank, cols) and B (rows, rank), of which one has been scaled.
RowChange add_low_rank(std::vector<float> a, std::vector<float> b);

// MiSS: the inputs are summed up in `rank` classes, i modulo rank, and multiplied with a block (rank, width), the same
// for all rows with the same number modulo `width`: W[o, i] += block[i mod rank, o mod width].
RowChange add_shards(std::vector<float> block, int64_t rank, float scale);

// Bat: with W cut into squares of side r, W_ab += W_ab D + D. The block D is that of the square's column b, as
// RWKV-PEFT has it, or of its row a, as peft has it.
enum class BlockOf { column, row };
RowChange add_blocks(std::vector<float> blocks, int64_t side, BlockOf kind, float scale);

}  // namespace rwkv
