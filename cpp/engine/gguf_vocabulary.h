// The vocabulary that a GGUF file carries in llama.cpp's form for RWKV: one escaped byte string per id.
#pragma once
#include <memory>
#include <string>

#include "engine/tokenizer.h"

namespace rwkv {

// The vocabulary of a model: in its GGUF file, or beside it in its folder as a World file. Null if there is none.
// Throws ModelFormatError.
std::shared_ptr<const Tokenizer> tokenizer_in_model(const std::string& path);

}  // namespace rwkv
