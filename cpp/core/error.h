#pragma once
#include <sstream>
#include <stdexcept>
#include <string>

namespace rwkv {

// Anything a file, a device or a caller can get wrong. Every message says what was expected and what was found.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct ModelFormatError : Error {
  using Error::Error;
};
struct StateError : Error {
  using Error::Error;
};
struct StrategyError : Error {
  using Error::Error;
};
struct DeviceError : Error {
  using Error::Error;
};
struct NonFiniteError : Error {
  using Error::Error;
};
struct ConcurrentUseError : Error {
  using Error::Error;
};

template <class... Parts>
std::string join(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return std::move(out).str();
}

}  // namespace rwkv

// g++ 12 has no <format>: the message is streamed from its parts, and only when the check fails.
#define RWKV_CHECK(kind, condition, ...) \
  do { \
    if (!(condition)) throw kind(::rwkv::join(__VA_ARGS__)); \
  } while (false)
