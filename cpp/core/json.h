// A strict JSON reader (RFC 8259) that builds nothing: the caller walks the text and takes what it needs, so the
// memory used is the caller's. Refused besides bad grammar: invalid UTF-8, lone surrogates, repeated keys, deep
// nesting.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace rwkv {

// Throws ModelFormatError naming the byte. Every value must be consumed by exactly one call.
class JsonReader {
 public:
  explicit JsonReader(std::string_view text);

  void object(const std::function<void(std::string&& key)>& member);  // `member` consumes the value of `key`
  void array(const std::function<void()>& item);                      // `item` consumes one element
  std::string string();
  uint64_t natural();    // an integer from 0 to 2^64 - 1, without sign, fraction or exponent
  void skip();           // any value
  std::string scalar();  // a string's text, or as plain
  std::string plain();   // any value: the text of a number, true, false or null, otherwise nothing
  void finish();         // nothing but spaces may follow

 private:
  class Nested;

  [[noreturn]] void fail(std::string_view expected) const;
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  void blank();
  bool take(char c);
  void expect(char c, std::string_view expected);
  void word(std::string_view literal);
  void digits();
  void number();
  uint32_t hex4();
  void escape(std::string& out);

  std::string_view text_;
  size_t at_ = 0;
  int depth_ = 0;
};

std::string json_quoted(std::string_view text);  // with the quotes; `text` must be UTF-8

}  // namespace rwkv
