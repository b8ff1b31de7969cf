// The GGUF container: header, key-values, tensor descriptions, then the data, each tensor at an aligned offset.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/checkpoint.h"

namespace rwkv {

struct GgufHeader {
  std::map<std::string, std::string> metadata;  // strings as they are, numbers in decimal, booleans as true and false
  std::vector<std::string> tokens;              // tokenizer.ggml.tokens
  std::vector<int32_t> token_types;             // tokenizer.ggml.token_type
  std::vector<TensorInfo> tensors;              // in the order of the file; shapes in row-major order
};

// Reads everything before the data and proves that every tensor lies in the file and overlaps no other. Arrays besides
// those two are checked and passed over. Throws ModelFormatError.
GgufHeader read_gguf(const File& file);

}  // namespace rwkv
