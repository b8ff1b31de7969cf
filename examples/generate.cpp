// Text without Python: read a prompt, write what comes after it as it is produced, three times from one prefill.
#include <cstdio>
#include <exception>
#include <vector>

#include "engine/generation.h"

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: %s MODEL VOCABULARY PROMPT\n", argv[0]);
    return 2;
  }
  try {
    const auto engine = rwkv::Engine::open(argv[1]);
    const auto vocabulary = rwkv::Tokenizer::open(argv[2]);
    rwkv::SamplingParams params;
    params.seed = 1;
    params.max_tokens = 40;
    params.stop = {"\n\n"};

    // One text, piece by piece. The state stands behind the last piece at every moment.
    const auto state = engine->new_state();
    rwkv::Generation stream(engine, vocabulary, {{vocabulary->encode(argv[3]), state, params, 1}});
    stream.read();
    while (const auto piece = stream.next(0)) std::fputs(piece->text.c_str(), stdout);

    // Two more from where it is, at once.
    params.seed = 2;
    params.max_tokens = 10;
    rwkv::Generation more(engine, vocabulary, {{{}, state, params, 2}});
    for (const auto& pieces : more.run()) {
      std::fputs("\n-- ", stdout);
      for (const auto& piece : pieces) std::fputs(piece.text.c_str(), stdout);
    }
    std::printf("\n%lld tokens read and written\n", static_cast<long long>(state->tokens_seen()));
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
