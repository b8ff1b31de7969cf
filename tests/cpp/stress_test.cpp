// Threads that create, fork, step, generate from, save, restore and free states at random, on one engine. The thread
// sanitizer is what judges; the bits are checked too, against the same walk done alone.
#include <random>
#include <thread>

#include "check.h"
#include "engine/generation.h"
#include "letters.h"
#include "tiny_model.h"

namespace {

// A walk of `steps` random operations; its result depends on the seed alone.
std::vector<std::byte> walk(rwkv::Engine& engine, unsigned seed, int steps) {
  std::mt19937 random(seed);
  const auto vocabulary = letters();
  std::vector<std::shared_ptr<rwkv::State>> states{engine.new_state()};
  for (int i = 0; i < steps; i++) {
    const size_t at = random() % states.size();
    switch (random() % 7) {
      case 0:
        states.push_back(engine.new_state());
        break;
      case 1:
        states.push_back(states[at]->fork());
        break;
      case 2:
        states.push_back(engine.state_from_bytes(engine.to_bytes(*states[at])));
        break;
      case 3:
        if (states.size() > 1) states.erase(states.begin() + ptrdiff_t(at));
        break;
      case 4: {
        rwkv::SamplingParams params;
        params.seed = seed, params.max_tokens = 8, params.presence_penalty = 0.5;
        params.stop = {"ab", "cd"};
        rwkv::Generation(engine.shared_from_this(), vocabulary, {{{1 + i % 30}, states[at], params, 2}}).run();
        break;
      }
      default: {
        std::vector<int32_t> tokens(1 + random() % 30);
        for (int32_t& t : tokens) t = int32_t(random() % 40);
        const rwkv::Sequence sequence[] = {{tokens, states[at].get()}};
        engine.forward(sequence, random() % 2 ? rwkv::Output::last : rwkv::Output::none);
      }
    }
    if (states.size() > 12) states.erase(states.begin());
  }
  return engine.to_bytes(*states.back());
}

}  // namespace

TEST(threads_at_random) {
  const char* length = std::getenv("RWKV_STRESS_STEPS");
  const int steps = length ? std::atoi(length) : 60;
  const tiny::TempFile file("stress.safetensors");
  const auto engine = rwkv::Engine::open(tiny::Model({}).write(file), {"cpu bf16", 2, {}, {}});
  std::vector<std::vector<std::byte>> results(6);
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < results.size(); i++) threads.emplace_back([&, i] { results[i] = walk(*engine, i, steps); });
  for (std::thread& t : threads) t.join();
  for (unsigned i = 0; i < results.size(); i++) CHECK(results[i] == walk(*engine, i, steps));
}

TEST(one_handle_from_two_threads) {
  const tiny::TempFile file("stress2.safetensors");
  const auto engine = rwkv::Engine::open(tiny::Model({}).write(file), {"cpu fp32", 2, {}, {}});
  const auto state = engine->new_state();
  std::atomic<int> done{0};
  const auto use = [&] {
    for (int i = 0; i < 50; i++) {
      const int32_t token[] = {int32_t(i % 40)};
      const rwkv::Sequence sequence[] = {{token, state.get()}};
      try {
        engine->forward(sequence, rwkv::Output::last);
        done++;
        state->last_logits();
      } catch (const rwkv::ConcurrentUseError&) {  // the other thread's turn
      }
    }
  };
  std::thread a(use), b(use);
  a.join(), b.join();
  CHECK(state->tokens_seen() == done && done > 0);
}

CHECK_MAIN
