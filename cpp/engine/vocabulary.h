// The World vocabulary file: one line a token, `id literal length`. The literal is a Python str (its UTF-8 is meant) or
// bytes literal, the length counts bytes. Read by a strict parser; nothing is ever evaluated.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace rwkv {

struct Vocabulary {
  // They bound what a file can make us allocate, and by the longest token how slow greedy matching can get.
  static constexpr int32_t kMaxIds = 1 << 20;
  static constexpr size_t kMaxTokenBytes = 1024;
  static constexpr size_t kMaxFileBytes = 16 << 20;

  struct Token {
    int32_t id;
    int32_t line;  // where it stands in the file, from 1
    uint32_t offset, length;
  };
  std::string bytes;          // of all tokens
  std::vector<Token> tokens;  // ascending by byte string; no two ids and no two byte strings are equal

  std::string_view bytes_of(const Token& token) const { return {bytes.data() + token.offset, token.length}; }
};

// Brings the tokens into order. Throws ModelFormatError where two have the same bytes.
void sort_tokens(Vocabulary& vocabulary, const std::string& name);

// Throws ModelFormatError naming the line, what was expected there and what was found.
Vocabulary parse_vocabulary(std::string_view text, const std::string& name);

}  // namespace rwkv
