// Any bytes as a vocabulary: refused, or a tokenizer that agrees with itself on these same bytes as text.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <numeric>

#include "core/error.h"
#include "engine/tokenizer.h"

using namespace rwkv;

static void require(bool condition) {
  if (!condition) std::abort();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  std::shared_ptr<const Tokenizer> tokenizer;
  try {
    tokenizer = Tokenizer::parse(text, "fuzz");
  } catch (const ModelFormatError&) {
    return 0;
  }
  // Every token is the longest match of its own bytes. The ends of the range hold what small inputs can say.
  std::vector<int32_t> some(static_cast<size_t>(std::min(tokenizer->size(), 1024)));
  std::iota(some.begin(), some.end(), 0);
  for (int32_t id = std::max(1024, tokenizer->size() - 1024); id < tokenizer->size(); ++id) some.push_back(id);
  for (int32_t id : some) {
    const std::string_view bytes = tokenizer->bytes_of(id);
    if (!bytes.empty()) require(tokenizer->encode(bytes) == std::vector<int32_t>{id});
  }
  StreamDecoder stream(tokenizer);
  std::string streamed;
  for (int32_t id : some) streamed += stream.put(id);
  require(streamed + stream.finish() == tokenizer->decode(some));

  std::vector<int32_t> ids;
  try {
    ids = tokenizer->encode(text);
  } catch (const Error&) {
    return 0;  // bytes that no token covers
  }
  bool ends = false;  // id 0 stands for no bytes
  for (int32_t id : ids) ends |= id == 0;
  require(ends || tokenizer->decode_bytes(ids) == text);
  return 0;
}
