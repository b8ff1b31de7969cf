#include "engine/utf8.h"

#include <cstdint>
#include <cstring>

namespace rwkv {
namespace {

// How long the character is that begins with `lead` (0: none does), and which second bytes it allows: only there do
// overlong forms, surrogates and code points past U+10FFFF show.
struct Lead {
  int length;
  uint8_t low, high;
};
Lead lead_of(uint8_t lead) {
  if (lead < 0x80) return {1, 0, 0};
  if (lead < 0xC2) return {0, 0, 0};
  if (lead < 0xE0) return {2, 0x80, 0xBF};
  if (lead == 0xE0) return {3, 0xA0, 0xBF};
  if (lead == 0xED) return {3, 0x80, 0x9F};
  if (lead < 0xF0) return {3, 0x80, 0xBF};
  if (lead == 0xF0) return {4, 0x90, 0xBF};
  if (lead < 0xF4) return {4, 0x80, 0xBF};
  if (lead == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

size_t ascii_prefix(std::string_view bytes) {
  size_t i = 0;
  for (uint64_t word; i + sizeof word <= bytes.size(); i += sizeof word) {
    std::memcpy(&word, bytes.data() + i, sizeof word);
    if (word & 0x8080808080808080u) break;
  }
  while (i < bytes.size() && !(bytes[i] & 0x80)) ++i;
  return i;
}

}  // namespace

Utf8Part first_utf8_part(std::string_view bytes) {
  const Lead lead = lead_of(static_cast<uint8_t>(bytes[0]));
  if (lead.length == 0) return {Utf8Kind::broken, 1};
  uint8_t low = lead.low, high = lead.high;
  const size_t length = static_cast<size_t>(lead.length);
  for (size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return {Utf8Kind::cut, i};
    const uint8_t byte = static_cast<uint8_t>(bytes[i]);
    if (byte < low || byte > high) return {Utf8Kind::broken, i};
    low = 0x80;
    high = 0xBF;
  }
  return {Utf8Kind::whole, length};
}

size_t append_utf8(std::string_view bytes, std::string& out) {
  size_t good = 0;  // bytes at the front that are whole characters and not yet appended
  while (good < bytes.size()) {
    good += ascii_prefix(bytes.substr(good));
    if (good == bytes.size()) break;
    const Utf8Part part = first_utf8_part(bytes.substr(good));
    if (part.kind == Utf8Kind::whole) {
      good += part.length;
      continue;
    }
    out.append(bytes.substr(0, good));
    if (part.kind == Utf8Kind::cut) return part.length;
    out.append(kReplacement);
    bytes.remove_prefix(good + part.length);
    good = 0;
  }
  out.append(bytes);
  return 0;
}

std::string replace_invalid_utf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  if (append_utf8(bytes, out) > 0) out.append(kReplacement);
  return out;
}

void append_code_point(char32_t code_point, std::string& out) {
  const auto continuation = [&](int shift) { out += static_cast<char>(0x80 | (code_point >> shift & 0x3F)); };
  if (code_point < 0x80) {
    out += static_cast<char>(code_point);
  } else if (code_point < 0x800) {
    out += static_cast<char>(0xC0 | code_point >> 6);
    continuation(0);
  } else if (code_point < 0x10000) {
    out += static_cast<char>(0xE0 | code_point >> 12);
    continuation(6);
    continuation(0);
  } else {
    out += static_cast<char>(0xF0 | code_point >> 18);
    continuation(12);
    continuation(6);
    continuation(0);
  }
}

}  // namespace rwkv
