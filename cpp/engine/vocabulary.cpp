#include "engine/vocabulary.h"

#include <algorithm>

#include "core/error.h"
#include "engine/utf8.h"

namespace rwkv {
namespace {

std::string hex(uint32_t value, int digits) {
  std::string out(static_cast<size_t>(digits), '0');
  for (int i = digits; i-- > 0; value >>= 4) out[static_cast<size_t>(i)] = "0123456789abcdef"[value & 15];
  return out;
}

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// One line of the file, read from left to right.
class Line {
 public:
  Line(std::string_view text, const std::string& name, int32_t number) : text_(text), name_(name), number_(number) {}

  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    throw ModelFormatError(join(name_, ":", number_, ": ", parts...));
  }

  // A decimal number up to `limit`.
  uint32_t number(const char* what, uint32_t limit) {
    const size_t begin = at_;
    uint64_t value = 0;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      value = value * 10 + static_cast<uint64_t>(text_[at_] - '0');
      if (value > limit) fail("expected ", what, " of at most ", limit, ", found ", digits_from(begin));
    }
    if (at_ == begin) fail("expected ", what, " in decimal digits, found ", found());
    return static_cast<uint32_t>(value);
  }

  void space(const char* before) {
    if (!take(' ')) fail("expected one space before the ", before, ", found ", found());
  }

  // A Python literal, its value appended to out.
  void literal(std::string& out) {
    const bool raw = take('b');
    const char quote = take('\'') ? '\'' : take('"') ? '"' : '\0';
    if (quote == '\0') fail("expected a str or bytes literal ('...', \"...\", b'...', b\"...\"), found ", found());
    while (!take(quote)) {
      if (at_ == text_.size()) fail("expected a closing ", quote, ", found the end of the line");
      if (take('\\')) {
        escape(raw, out);
      } else {
        plain(raw, out);
      }
    }
  }

  void end() {
    if (at_ != text_.size()) fail("expected the line to end after the length, found ", found());
  }

 private:
  bool take(char c) {
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  std::string found() const {
    if (at_ == text_.size()) return "the end of the line";
    const char c = text_[at_];
    if (c >= ' ' && c <= '~') return join("'", c, "'");
    return "byte 0x" + hex(static_cast<uint8_t>(c), 2);
  }

  std::string_view digits_from(size_t begin) const {
    size_t end = begin;
    while (end < text_.size() && end - begin < 20 && text_[end] >= '0' && text_[end] <= '9') ++end;
    return text_.substr(begin, end - begin);
  }

  // One character that stands for itself.
  void plain(bool raw, std::string& out) {
    const std::string_view rest = text_.substr(at_);
    if (rest[0] == '\0' || rest[0] == '\r') fail("expected an escape for this character in a literal, found ", found());
    if (raw && (rest[0] & 0x80)) fail("expected only ASCII in a bytes literal, found ", found());
    const Utf8Part part = first_utf8_part(rest);
    if (part.kind != Utf8Kind::whole) fail("expected valid UTF-8 in a str literal, found ", found());
    out.append(rest.substr(0, part.length));
    at_ += part.length;
  }

  // What follows a backslash. Python lets unknown escapes stand for themselves; here they are refused.
  void escape(bool raw, std::string& out) {
    const char c = at_ == text_.size() ? '\0' : text_[at_];
    static constexpr std::string_view kNames = "ntrabfv\\'\"", kValues = "\n\t\r\a\b\f\v\\'\"";
    if (const size_t i = kNames.find(c); i != kNames.npos) {
      ++at_;
      out += kValues[i];
    } else if (c >= '0' && c <= '7') {
      code_point(octal(), raw, out);
    } else if (c == 'x') {
      code_point(hexadecimal(2), raw, out);
    } else if (c == 'u' && !raw) {
      code_point(hexadecimal(4), raw, out);
    } else if (c == 'U' && !raw) {
      code_point(hexadecimal(8), raw, out);
    } else {
      fail("expected after \\ one of n t r a b f v \\ ' \" x", raw ? "" : " u U", " or an octal digit, found ",
           found());
    }
  }

  uint32_t octal() {
    uint32_t value = 0;
    for (int i = 0; i < 3 && at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '7'; ++i, ++at_) {
      value = value * 8 + static_cast<uint32_t>(text_[at_] - '0');
    }
    if (value > 0xFF) fail("expected an octal escape of at most \\377, found value ", value);
    return value;
  }

  uint32_t hexadecimal(int digits) {
    const char kind = text_[at_++];
    uint32_t value = 0;
    for (int i = 0; i < digits; ++i, ++at_) {
      const int digit = at_ == text_.size() ? -1 : hex_value(text_[at_]);
      if (digit < 0) fail("expected ", digits, " hexadecimal digits after \\", kind, ", found ", found());
      value = value << 4 | static_cast<uint32_t>(digit);
    }
    return value;
  }

  void code_point(uint32_t value, bool raw, std::string& out) {
    if (raw) {
      out += static_cast<char>(value);  // at most 0xFF: bytes literals have no \u and \U
      return;
    }
    if (value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) {
      fail("expected a code point up to U+10FFFF that is no surrogate, found U+", hex(value, 8));
    }
    append_code_point(value, out);
  }

  std::string_view text_;
  const std::string& name_;
  int32_t number_;
  size_t at_ = 0;
};

}  // namespace

Vocabulary parse_vocabulary(std::string_view text, const std::string& name) {
  RWKV_CHECK(ModelFormatError, text.size() <= Vocabulary::kMaxFileBytes, name, ": expected a vocabulary of at most ",
             Vocabulary::kMaxFileBytes, " bytes, found ", text.size());
  RWKV_CHECK(ModelFormatError, !text.empty(), name,
             ": expected a line `id literal length` per token, found an empty file");
  Vocabulary vocabulary;
  std::vector<int32_t> line_of_id;  // 0: the id is free
  for (int32_t number = 1; !text.empty(); ++number) {
    const size_t size = std::min(text.find('\n'), text.size());
    std::string_view content = text.substr(0, size);
    text.remove_prefix(std::min(size + 1, text.size()));
    if (content.ends_with('\r')) content.remove_suffix(1);

    Line line(content, name, number);
    Vocabulary::Token token;
    token.id = static_cast<int32_t>(line.number("an id", Vocabulary::kMaxIds - 1));
    token.line = number;
    token.offset = static_cast<uint32_t>(vocabulary.bytes.size());
    line.space("literal");
    line.literal(vocabulary.bytes);
    token.length = static_cast<uint32_t>(vocabulary.bytes.size()) - token.offset;
    line.space("length");
    const uint32_t length = line.number("a length", Vocabulary::kMaxFileBytes);
    line.end();

    if (token.length == 0 || token.length > Vocabulary::kMaxTokenBytes) {
      line.fail("expected a token of 1 to ", Vocabulary::kMaxTokenBytes, " bytes, found ", token.length);
    }
    if (length != token.length) line.fail("expected length ", token.length, ", as the literal has, found ", length);
    const size_t index = static_cast<size_t>(token.id);
    if (index >= line_of_id.size()) line_of_id.resize(index + 1, 0);
    if (line_of_id[index] != 0) {
      line.fail("expected an id of its own, found ", token.id, ", which line ", line_of_id[index], " has");
    }
    line_of_id[index] = number;
    vocabulary.tokens.push_back(token);
  }

  sort_tokens(vocabulary, name);
  return vocabulary;
}

void sort_tokens(Vocabulary& vocabulary, const std::string& name) {
  std::sort(vocabulary.tokens.begin(), vocabulary.tokens.end(), [&](const auto& a, const auto& b) {
    const int order = vocabulary.bytes_of(a).compare(vocabulary.bytes_of(b));
    return order != 0 ? order < 0 : a.line < b.line;
  });
  for (size_t i = 1; i < vocabulary.tokens.size(); ++i) {
    const Vocabulary::Token &first = vocabulary.tokens[i - 1], &second = vocabulary.tokens[i];
    RWKV_CHECK(ModelFormatError, vocabulary.bytes_of(first) != vocabulary.bytes_of(second), name, ":", second.line,
               ": expected a byte string of its own, found that of line ", first.line);
  }
}

}  // namespace rwkv
