#include "engine/tokenizer.h"

#include <algorithm>

#include "core/error.h"
#include "core/platform.h"
#include "engine/trie.h"
#include "engine/utf8.h"
#include "engine/vocabulary.h"

namespace rwkv {

struct Tokenizer::Data {
  // `words` tells how the text is to be cut, and may be without tokens; `all` has the bytes of every id.
  Data(const Vocabulary& words, const Vocabulary& all, const std::string& name) : trie(words, name) {
    int32_t last = 0;
    for (const auto& token : all.tokens) last = std::max(last, token.id);
    // Id 0 ends a text: it keeps the token its line gives it for encoding, but stands for no bytes.
    offsets.assign(static_cast<size_t>(last) + 2, 0);
    for (const auto& token : all.tokens) {
      if (token.id != 0) offsets[static_cast<size_t>(token.id) + 1] = token.length;
    }
    for (size_t i = 1; i < offsets.size(); ++i) offsets[i] += offsets[i - 1];
    bytes.resize(offsets.back());
    for (const auto& token : all.tokens) {
      if (token.id != 0) all.bytes_of(token).copy(&bytes[offsets[static_cast<size_t>(token.id)]], token.length);
    }
  }

  int32_t size() const { return static_cast<int32_t>(offsets.size()) - 1; }
  std::string_view bytes_of(int32_t id) const {
    RWKV_CHECK(Error, id >= 0, "token id: expected 0 or more, found ", id);
    if (id >= size()) return {};
    const size_t index = static_cast<size_t>(id);
    return {bytes.data() + offsets[index], offsets[index + 1] - offsets[index]};
  }

  Trie trie;
  std::string bytes;              // of all tokens, by id
  std::vector<uint32_t> offsets;  // (size + 1) where each id's bytes begin
};

Tokenizer::Tokenizer(std::unique_ptr<const Data> data) : data_(std::move(data)) {}
Tokenizer::~Tokenizer() = default;

std::shared_ptr<const Tokenizer> Tokenizer::open(const std::string& path) {
  const File file(path);
  RWKV_CHECK(ModelFormatError, file.size() <= Vocabulary::kMaxFileBytes, path, ": expected a vocabulary of at most ",
             Vocabulary::kMaxFileBytes, " bytes, found ", file.size());
  std::string text(static_cast<size_t>(file.size()), '\0');
  file.read(0, text.data(), text.size());
  return parse(text, path);
}

std::shared_ptr<const Tokenizer> Tokenizer::parse(std::string_view text, const std::string& name) {
  return of(parse_vocabulary(text, name), name);
}

std::shared_ptr<const Tokenizer> Tokenizer::of(const Vocabulary& vocabulary, const std::string& name) {
  return std::shared_ptr<const Tokenizer>(new Tokenizer(std::make_unique<const Data>(vocabulary, vocabulary, name)));
}

std::shared_ptr<const Tokenizer> Tokenizer::of_words(std::span<const std::pair<int32_t, std::string>> words,
                                                     const std::string& name) {
  Vocabulary all;
  for (const auto& [id, bytes] : words) {
    RWKV_CHECK(ModelFormatError, id >= 0 && id < Vocabulary::kMaxIds, name, ": expected ids from 0 to ",
               Vocabulary::kMaxIds - 1, ", found ", id);
    RWKV_CHECK(ModelFormatError, !bytes.empty() && bytes.size() <= Vocabulary::kMaxTokenBytes, name, ": token ", id,
               ": expected 1 to ", Vocabulary::kMaxTokenBytes, " bytes, found ", bytes.size());
    RWKV_CHECK(ModelFormatError, all.bytes.size() + bytes.size() <= Vocabulary::kMaxFileBytes, name,
               ": expected tokens of at most ", Vocabulary::kMaxFileBytes, " bytes in all, found more");
    all.tokens.push_back({id, int32_t(all.tokens.size()) + 1, uint32_t(all.bytes.size()), uint32_t(bytes.size())});
    all.bytes += bytes;
  }
  std::ranges::sort(all.tokens, {}, &Vocabulary::Token::id);
  const auto twice = std::ranges::adjacent_find(all.tokens, {}, &Vocabulary::Token::id);
  RWKV_CHECK(ModelFormatError, twice == all.tokens.end(), name, ": expected each id once, found two tokens ",
             twice == all.tokens.end() ? 0 : twice->id);
  return std::shared_ptr<const Tokenizer>(new Tokenizer(std::make_unique<const Data>(Vocabulary{}, all, name)));
}

int Tokenizer::size() const { return data_->size(); }

std::vector<int32_t> Tokenizer::encode(std::string_view bytes) const {
  std::vector<int32_t> ids;
  ids.reserve(bytes.size() / 4 + 1);
  append(bytes, 0, false, ids);
  return ids;
}

size_t Tokenizer::append(std::string_view bytes, size_t before, bool goes_on, std::vector<int32_t>& ids) const {
  const uint8_t* const begin = reinterpret_cast<const uint8_t*>(bytes.data());
  const uint8_t* const end = begin + bytes.size();
  const uint8_t* at = begin;
  while (at != end) {
    const Trie::Match match = data_->trie.longest(at, end);
    if (goes_on && match.open) break;
    RWKV_CHECK(Error, match.id >= 0, "text, byte ", before + size_t(at - begin),
               ": expected a byte that a token begins with, found value ", int{*at});
    ids.push_back(match.id);
    at += match.length;
  }
  return size_t(at - begin);
}

std::string_view Tokenizer::bytes_of(int32_t id) const { return data_->bytes_of(id); }

std::string Tokenizer::decode_bytes(std::span<const int32_t> ids) const {
  size_t size = 0;
  for (int32_t id : ids) size += data_->bytes_of(id).size();
  std::string out;
  out.reserve(size);
  for (int32_t id : ids) out.append(data_->bytes_of(id));
  return out;
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const { return replace_invalid_utf8(decode_bytes(ids)); }

std::vector<int32_t> StreamEncoder::put(std::string_view bytes) {
  pending_.append(bytes);
  return take(true);
}

std::vector<int32_t> StreamEncoder::finish() { return take(false); }

std::vector<int32_t> StreamEncoder::take(bool goes_on) {
  std::vector<int32_t> ids;
  const size_t length = tokenizer_->append(pending_, read_, goes_on, ids);
  pending_.erase(0, length);
  read_ += length;
  return ids;
}

std::string StreamDecoder::put(int32_t id) {
  pending_.append(tokenizer_->bytes_of(id));
  std::string out;
  const size_t waiting = append_utf8(pending_, out);
  pending_.erase(0, pending_.size() - waiting);
  return out;
}

std::string StreamDecoder::finish() {
  std::string out = replace_invalid_utf8(pending_);
  pending_.clear();
  return out;
}

}  // namespace rwkv
