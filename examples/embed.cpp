// The engine without Python: step, fork, save a state, load it again, and get the same bits.
#include <cstdio>
#include <exception>
#include <vector>

#include "engine/engine.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s MODEL STATE_FILE\n", argv[0]);
    return 2;
  }
  try {
    const auto engine = rwkv::Engine::open(argv[1]);
    const auto step = [&](const std::vector<int32_t>& tokens, rwkv::State& state) {
      const rwkv::Sequence sequences[] = {{tokens, &state}};
      return engine->forward(sequences);
    };
    const auto state = engine->new_state();
    step({1, 2, 3, 4, 5}, *state);
    const auto branch = state->fork();
    engine->save(*state, argv[2]);
    const auto restored = engine->load_state(argv[2]);

    const bool same = step({6}, *branch) == step({6}, *restored) && engine->equal(*branch, *restored);
    std::printf("RWKV-%s on %s: fork and restored state %s after %lld tokens\n", engine->config().version.c_str(),
                engine->description().c_str(), same ? "agree" : "differ",
                static_cast<long long>(branch->tokens_seen()));
    return same ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
