// What is a character and what is not: UTF-8 as Python's decoder sees it. Broken input is cut into maximal subparts
// (the longest beginning that some character has, else one byte), each worth one U+FFFD.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace rwkv {

enum class Utf8Kind {
  whole,   // a character
  broken,  // bytes that no continuation can save
  cut,     // the beginning of a character, and the input ends
};
struct Utf8Part {
  Utf8Kind kind;
  size_t length;  // 1 to 4 bytes
};
Utf8Part first_utf8_part(std::string_view bytes);  // of input that is not empty

// Appends `bytes` to out, every broken part as U+FFFD. Returns the length of a cut character at the end (0 to 3 bytes),
// which is not appended: what follows may complete it.
size_t append_utf8(std::string_view bytes, std::string& out);

// Python's bytes.decode("utf-8", errors="replace"): a cut character at the end becomes U+FFFD too.
std::string replace_invalid_utf8(std::string_view bytes);

void append_code_point(char32_t code_point, std::string& out);  // up to U+10FFFF

inline constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

}  // namespace rwkv
