// The strings are what Python prints between the quotes of a bytes literal. Ids without text of their own (end of text,
// padding up to the rows of the embedding) are marked by a type and are left out.
#include "engine/gguf_vocabulary.h"

#include <string_view>

#include "core/error.h"
#include "core/folder.h"
#include "core/gguf.h"
#include "core/platform.h"
#include "core/text.h"
#include "engine/vocabulary.h"

namespace rwkv {
namespace {

constexpr int32_t kNormal = 1, kUserDefined = 4, kLastType = 6;
constexpr std::string_view kEndOfText = "<s>";  // of id 0, in files without types

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

void append_unescaped(std::string_view text, const std::string& where, std::string& out) {
  const auto fail = [&](const auto&... parts) {
    throw ModelFormatError(join(where, ": ", parts..., ", found '", shown(text), "'"));
  };
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\') {
      out += text[i];
      continue;
    }
    if (++i == text.size()) fail("expected a character after \\");
    if (text[i] == 'x') {
      const int high = i + 2 < text.size() ? hex_value(text[i + 1]) : -1;
      const int low = i + 2 < text.size() ? hex_value(text[i + 2]) : -1;
      if (high < 0 || low < 0) fail("expected two hexadecimal digits after \\x");
      out += char(high << 4 | low);
      i += 2;
    } else {
      static constexpr std::string_view kNames = "tnr\\'\"", kValues = "\t\n\r\\'\"";
      const size_t which = kNames.find(text[i]);
      if (which == kNames.npos) fail("expected after \\ one of t n r x \\ ' \"");
      out += kValues[which];
    }
  }
}

Vocabulary vocabulary_of(const GgufHeader& header, const std::string& path) {
  const size_t count = header.tokens.size();
  const bool typed = !header.token_types.empty();
  RWKV_CHECK(ModelFormatError, count > 0, path, ": tokenizer.ggml.tokens: expected the tokens, found none");
  RWKV_CHECK(ModelFormatError, !typed || header.token_types.size() == count, path,
             ": tokenizer.ggml.token_type: expected one for each of ", count, " tokens, found ",
             header.token_types.size());
  Vocabulary vocabulary;
  for (size_t id = 0; id < count; ++id) {
    const std::string where = join(path, ": tokenizer.ggml.tokens: token ", id);
    const int32_t type = typed ? header.token_types[id] : kNormal;
    RWKV_CHECK(ModelFormatError, type >= 0 && type <= kLastType, where, ": expected a type from 0 to ", kLastType,
               ", found ", type);
    if (type != kNormal && type != kUserDefined) continue;
    if (!typed && id == 0 && header.tokens[id] == kEndOfText) continue;
    Vocabulary::Token token;
    token.id = int32_t(id);
    token.line = int32_t(id) + 1;
    token.offset = uint32_t(vocabulary.bytes.size());
    append_unescaped(header.tokens[id], where, vocabulary.bytes);
    const size_t length = vocabulary.bytes.size() - token.offset;
    RWKV_CHECK(ModelFormatError, length >= 1 && length <= Vocabulary::kMaxTokenBytes, where, ": expected 1 to ",
               Vocabulary::kMaxTokenBytes, " bytes, found ", length);
    RWKV_CHECK(ModelFormatError, vocabulary.bytes.size() <= Vocabulary::kMaxFileBytes, where,
               ": expected tokens of at most ", Vocabulary::kMaxFileBytes, " bytes in all, found more");
    token.length = uint32_t(length);
    vocabulary.tokens.push_back(token);
  }
  RWKV_CHECK(ModelFormatError, !vocabulary.tokens.empty(), path,
             ": tokenizer.ggml.tokens: expected tokens with text, found none");
  sort_tokens(vocabulary, path + ": tokenizer.ggml.tokens");
  return vocabulary;
}

}  // namespace

std::shared_ptr<const Tokenizer> tokenizer_in_model(const std::string& path) {
  if (is_folder(path)) {
    const std::string beside = path + "/rwkv_vocab_v20230424.txt";
    if (is_file(beside)) return Tokenizer::open(beside);
    const FolderIndex index = find_model(path);
    return index.files.size() == 1 ? tokenizer_in_model(path + "/" + index.files.front()) : nullptr;
  }
  const File file(path);
  char magic[4] = {};
  if (file.size() < sizeof magic) return nullptr;
  file.read(0, magic, sizeof magic);
  if (std::string_view(magic, sizeof magic) != "GGUF") return nullptr;
  const GgufHeader header = read_gguf(file);
  const auto model = header.metadata.find("tokenizer.ggml.model");
  if (model == header.metadata.end() || model->second != "rwkv") return nullptr;
  return Tokenizer::of(vocabulary_of(header, path), path);
}

}  // namespace rwkv
