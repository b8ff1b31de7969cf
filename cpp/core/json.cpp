// One pass of recursive descent over text that is known to be UTF-8.
#include "core/json.h"

#include <algorithm>
#include <deque>
#include <limits>
#include <vector>

#include "core/error.h"
#include "core/text.h"

namespace rwkv {
namespace {

void append_utf8(std::string& out, uint32_t code) {
  if (code < 0x80) {
    out += char(code);
  } else if (code < 0x800) {
    out += char(0xc0 | code >> 6);
    out += char(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    out += char(0xe0 | code >> 12);
    out += char(0x80 | (code >> 6 & 0x3f));
    out += char(0x80 | (code & 0x3f));
  } else {
    out += char(0xf0 | code >> 18);
    out += char(0x80 | (code >> 12 & 0x3f));
    out += char(0x80 | (code >> 6 & 0x3f));
    out += char(0x80 | (code & 0x3f));
  }
}

}  // namespace

// One level of arrays and objects; bounds the recursion of the caller and of skip().
class JsonReader::Nested {
 public:
  explicit Nested(JsonReader& reader) : reader_(reader) {
    if (reader_.depth_ == kMost) reader_.fail("at most 64 levels of nesting");
    ++reader_.depth_;
  }
  ~Nested() { --reader_.depth_; }

 private:
  static constexpr int kMost = 64;
  JsonReader& reader_;
};

JsonReader::JsonReader(std::string_view text) : text_(text) {
  RWKV_CHECK(ModelFormatError, is_utf8(text), "JSON: expected UTF-8 text, found other bytes");
}

void JsonReader::fail(std::string_view expected) const {
  const std::string found = at_ < text_.size() ? "'" + shown(text_.substr(at_, 16)) + "'" : "the end";
  throw ModelFormatError(join("JSON: expected ", expected, " at byte ", at_, ", found ", found));
}

void JsonReader::blank() {
  while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t')) {
    ++at_;
  }
}

bool JsonReader::take(char c) {
  blank();
  if (at_ == text_.size() || text_[at_] != c) return false;
  ++at_;
  return true;
}

void JsonReader::expect(char c, std::string_view expected) {
  if (!take(c)) fail(expected);
}

void JsonReader::object(const std::function<void(std::string&&)>& member) {
  const Nested level(*this);
  expect('{', "an object");
  if (take('}')) return;
  // Remembered as slices of the text, because a header may have a hundred million bytes of them. An escape is always
  // longer than what it stands for, so a key as long as its source has none.
  std::vector<std::string_view> keys;
  std::deque<std::string> unescaped;
  do {
    blank();
    const size_t start = at_ + 1;
    std::string key = string();
    const std::string_view source = text_.substr(start, at_ - 1 - start);
    keys.push_back(source.size() == key.size() ? source : unescaped.emplace_back(key));
    expect(':', "':'");
    member(std::move(key));
  } while (take(','));
  expect('}', "',' or '}'");
  std::sort(keys.begin(), keys.end());
  const auto twice = std::adjacent_find(keys.begin(), keys.end());
  RWKV_CHECK(ModelFormatError, twice == keys.end(), "JSON: expected different keys in an object, found \"",
             shown(*twice), "\" twice");
}

void JsonReader::array(const std::function<void()>& item) {
  const Nested level(*this);
  expect('[', "an array");
  if (take(']')) return;
  do {
    item();
  } while (take(','));
  expect(']', "',' or ']'");
}

std::string JsonReader::plain() {
  blank();
  const size_t start = at_;
  const char c = peek();
  skip();
  return c == '"' || c == '{' || c == '[' ? "" : std::string(text_.substr(start, at_ - start));
}

std::string JsonReader::scalar() {
  blank();
  return peek() == '"' ? string() : plain();
}

uint32_t JsonReader::hex4() {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i, ++at_) {
    const char c = peek();
    if (c >= '0' && c <= '9') {
      value = value << 4 | uint32_t(c - '0');
    } else if ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F')) {
      value = value << 4 | (uint32_t(c | 0x20) - 'a' + 10);
    } else {
      fail("four hexadecimal digits");
    }
  }
  return value;
}

void JsonReader::escape(std::string& out) {
  static constexpr std::string_view names = "\"\\/bfnrt";
  static constexpr std::string_view values = "\"\\/\b\f\n\r\t";
  if (const size_t i = names.find(peek()); at_ < text_.size() && i != std::string_view::npos) {
    out += values[i];
    ++at_;
    return;
  }
  if (peek() != 'u') fail("an escape: one of \" \\ / b f n r t u");
  ++at_;
  uint32_t code = hex4();
  if (code >= 0xd800 && code < 0xe000) {
    if (code >= 0xdc00 || !text_.substr(at_).starts_with("\\u")) fail("a pair of surrogates");
    at_ += 2;
    const uint32_t low = hex4();
    if (low < 0xdc00 || low > 0xdfff) fail("a pair of surrogates");
    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
  }
  append_utf8(out, code);
}

std::string JsonReader::string() {
  expect('"', "a string");
  std::string out;
  for (;;) {
    const size_t start = at_;
    while (at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\\' && uint8_t(text_[at_]) >= 0x20) ++at_;
    out += text_.substr(start, at_ - start);
    if (at_ == text_.size() || uint8_t(text_[at_]) < 0x20) fail("the rest of a string");
    if (text_[at_++] == '"') return out;
    escape(out);
  }
}

uint64_t JsonReader::natural() {
  blank();
  const size_t start = at_;
  number();
  const std::string_view token = text_.substr(start, at_ - start);
  uint64_t value = 0;
  for (const char c : token) {
    const uint64_t digit = uint64_t(c - '0');
    if (c < '0' || c > '9' || value > (std::numeric_limits<uint64_t>::max() - digit) / 10) {
      at_ = start;
      fail("an integer from 0 to 2^64 - 1");
    }
    value = value * 10 + digit;
  }
  return value;
}

void JsonReader::digits() {
  if (peek() < '0' || peek() > '9') fail("a digit");
  while (peek() >= '0' && peek() <= '9') ++at_;
}

void JsonReader::number() {
  if (peek() == '-') ++at_;
  if (peek() == '0') {
    ++at_;  // nothing may follow a leading zero
  } else {
    digits();
  }
  if (peek() == '.') {
    ++at_;
    digits();
  }
  if (peek() == 'e' || peek() == 'E') {
    ++at_;
    if (peek() == '+' || peek() == '-') ++at_;
    digits();
  }
}

void JsonReader::word(std::string_view literal) {
  if (!text_.substr(at_).starts_with(literal)) fail("a value");
  at_ += literal.size();
}

void JsonReader::skip() {
  blank();
  switch (peek()) {
    case '{':
      return object([this](std::string&&) { skip(); });
    case '[':
      return array([this] { skip(); });
    case '"':
      string();
      return;
    case 't':
      return word("true");
    case 'f':
      return word("false");
    case 'n':
      return word("null");
    default:
      if (peek() != '-' && (peek() < '0' || peek() > '9')) fail("a value");
      number();
  }
}

void JsonReader::finish() {
  while (peek() == ' ') ++at_;
  if (at_ != text_.size()) fail("nothing but spaces after the value");
}

std::string json_quoted(std::string_view text) {
  RWKV_CHECK(Error, is_utf8(text), "expected UTF-8 text to write as JSON, found '", shown(text), "'");
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (uint8_t(c) < 0x20) {
      out += "\\u00";
      out += "0123456789abcdef"[c >> 4];
      out += "0123456789abcdef"[c & 15];
    } else {
      out += c;
    }
  }
  return out += '"';
}

}  // namespace rwkv
