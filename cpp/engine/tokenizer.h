#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace rwkv {

struct Vocabulary;

// A vocabulary in the World file format (one line a token: id, Python literal, length in bytes) and greedy
// longest-match encoding over it.
class Tokenizer {
 public:
  static std::shared_ptr<const Tokenizer> open(const std::string& path);  // throws ModelFormatError
  static std::shared_ptr<const Tokenizer> parse(std::string_view text, const std::string& name);  // name: for messages
  static std::shared_ptr<const Tokenizer> of(const Vocabulary& vocabulary, const std::string& name);
  // The words of a vocabulary whose encoding is done elsewhere: two ids may have the same bytes. encode() refuses.
  static std::shared_ptr<const Tokenizer> of_words(std::span<const std::pair<int32_t, std::string>> words,
                                                   const std::string& name);
  ~Tokenizer();

  int size() const;                                           // largest id + 1
  std::vector<int32_t> encode(std::string_view bytes) const;  // throws Error at a byte no token begins with
  // The token's bytes; empty for id 0 (end of text) and ids without a token. Throws Error for a negative id.
  std::string_view bytes_of(int32_t id) const;
  std::string decode_bytes(std::span<const int32_t> ids) const;
  std::string decode(
      std::span<const int32_t> ids) const;  // valid UTF-8: what is none becomes U+FFFD, as Python's "replace"

 private:
  friend class StreamEncoder;
  struct Data;
  explicit Tokenizer(std::unique_ptr<const Data> data);
  // Appends the tokens that `bytes`, which stand behind `before` others, begin with, and returns the length of those.
  // Of a text that goes on, the tokens that no further byte can change.
  size_t append(std::string_view bytes, size_t before, bool goes_on, std::vector<int32_t>& ids) const;
  std::unique_ptr<const Data> data_;
};

// Encodes a text that comes in parts: the same tokens wherever it is cut. What waits is shorter than the longest token.
class StreamEncoder {
 public:
  explicit StreamEncoder(std::shared_ptr<const Tokenizer> tokenizer) : tokenizer_(std::move(tokenizer)) {}
  std::vector<int32_t> put(std::string_view bytes);  // tokens that have become certain
  std::vector<int32_t> finish();                     // those of what still waits

 private:
  std::vector<int32_t> take(bool goes_on);

  std::shared_ptr<const Tokenizer> tokenizer_;
  std::string pending_;
  size_t read_ = 0;  // bytes before the pending ones
};

// Decodes a stream of tokens so that no character is ever split: bytes wait until they are a whole character, or until
// it is certain that they never will be (then each maximal broken part becomes one U+FFFD).
class StreamDecoder {
 public:
  explicit StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer, std::string pending = {})
      : tokenizer_(std::move(tokenizer)), pending_(std::move(pending)) {}
  std::string put(int32_t id);  // text that has become certain; valid UTF-8
  std::string finish();         // what still waits
  const std::string& pending() const { return pending_; }

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::string pending_;
};

}  // namespace rwkv
