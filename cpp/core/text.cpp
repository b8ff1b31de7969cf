// UTF-8 as Unicode defines it, and bytes made fit for a message.
#include "core/text.h"

#include <cstdint>

namespace rwkv {

bool is_utf8(std::string_view bytes) {
  const size_t n = bytes.size();
  for (size_t i = 0; i < n;) {
    const auto lead = uint8_t(bytes[i]);
    if (lead < 0x80) {
      ++i;
      continue;
    }
    const size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || length > n - i) return false;
    // The second byte alone rules out overlong forms, surrogates and what lies beyond U+10FFFF.
    const uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    const uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (uint8_t(bytes[i + 1]) < low || uint8_t(bytes[i + 1]) > high) return false;
    for (size_t k = 2; k < length; ++k) {
      if ((uint8_t(bytes[i + k]) & 0xc0) != 0x80) return false;
    }
    i += length;
  }
  return true;
}

std::string shown(std::string_view bytes) {
  constexpr size_t kMost = 80;
  std::string out;
  for (const char c : bytes.substr(0, kMost)) {
    if (c >= ' ' && c <= '~') {
      out += c;
    } else {
      out += "\\x";
      out += "0123456789abcdef"[uint8_t(c) >> 4];
      out += "0123456789abcdef"[uint8_t(c) & 15];
    }
  }
  if (bytes.size() > kMost) out += "...";
  return out;
}

}  // namespace rwkv
