// What a file's bytes must be before they may stand in a name or in an error message.
#pragma once
#include <string>
#include <string_view>

namespace rwkv {

bool is_utf8(std::string_view bytes);

// For an error message: at most 80 bytes, anything that is not printable ASCII as \xNN.
std::string shown(std::string_view bytes);

}  // namespace rwkv
