// Any bytes as a GGUF file: as it is, under the official names, and its vocabulary. Each is refused with rwkv::Error or
// can be read in full; the tables of a vocabulary have bounds of their own.
#include <algorithm>

#include "engine/gguf_vocabulary.h"
#include "fuzz_tensors.h"
#include "model/config.h"
#include "model/names.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<uint8_t> input(data, data + size);
  std::copy_n("GGUF", std::min<size_t>(size, 4), input.begin());
  with_input(input.data(), size, true, [](const std::string& path) {
    const auto file = rwkv::Checkpoint::open(path);
    read_tensors(file);
    const auto named = rwkv::with_official_names(file);
    read_tensors(named);
    rwkv::read_config(named);
  });
  with_input(input.data(), size, false, [](const std::string& path) {
    const auto tokenizer = rwkv::tokenizer_in_model(path);
    for (int id = 0; tokenizer && id < tokenizer->size(); ++id) {
      const std::string bytes(tokenizer->bytes_of(id));
      require(tokenizer->decode_bytes(tokenizer->encode(bytes)) == bytes, "a token's bytes again");
    }
  });
  return 0;
}
