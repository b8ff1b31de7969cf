// The block formats of GGUF files: a run of weights with shared scales. They are decoded to float32 with the same
// operations in the same order as the reference decoder, so the values have the same bits.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace rwkv {

// `none`: elements of a DType, one after another. `f16` is the block of one element, for tensors that are read as
// float32 because they are scaled on the way.
enum class BlockType : uint8_t { none, f16, q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k };

inline constexpr size_t kMaxBlockElements = 256;

size_t block_elements(BlockType type);  // at most kMaxBlockElements
size_t block_bytes(BlockType type);
std::string_view name_of(BlockType type);  // "q4_0", ...

// `blocks` whole blocks from finite float32, for f16, q8_0 and q4_0; as llama.cpp's own quantisation rounds them.
// Throws Error for a value that float16 cannot hold.
void encode_blocks(BlockType type, const float* src, size_t blocks, void* dst);

// `blocks` whole blocks to float32.
void decode_blocks(BlockType type, const void* src, size_t blocks, float* dst);

}  // namespace rwkv
