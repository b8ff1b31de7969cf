// Texts through the C++ interface, and its parts against plain definitions of them.
#include "engine/generation.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <thread>

#include "check.h"
#include "core/text.h"
#include "letters.h"
#include "tiny_model.h"

namespace {

using rwkv::Finish;
using rwkv::Generation;
using rwkv::PenaltyStyle;
using rwkv::Piece;
using rwkv::SamplingParams;

struct Fixture {
  tiny::TempFile file{"generation.safetensors"};
  std::shared_ptr<rwkv::Engine> engine = rwkv::Engine::open(tiny::Model({}).write(file), {"cpu fp32", 2, {}, {}});
  std::shared_ptr<const rwkv::Tokenizer> vocabulary = letters();

  Generation generation(std::vector<rwkv::TextRequest> requests) const {
    return Generation(engine, vocabulary, std::move(requests));
  }
};

SamplingParams params(uint64_t seed, int64_t max_tokens = 30) {
  SamplingParams p;
  p.seed = seed, p.max_tokens = max_tokens, p.ignore_eos = true, p.top_p = 1;
  p.presence_penalty = 0.5, p.frequency_penalty = 0.25;
  return p;
}

std::vector<int32_t> tokens_of(const std::vector<Piece>& pieces) {
  std::vector<int32_t> tokens;
  for (const Piece& p : pieces) tokens.push_back(p.token);
  return tokens;
}

std::string text_of(const std::vector<Piece>& pieces) {
  std::string text;
  for (const Piece& p : pieces) text += p.text;
  return text;
}

}  // namespace

TEST(stop_strings_agree_with_a_plain_search) {
  std::mt19937 random(5);
  for (int round = 0; round < 3000; round++) {
    std::vector<std::string> stops(1 + random() % 4);
    for (auto& s : stops)
      for (size_t n = 1 + random() % 4; n > 0; n--) s += char('a' + random() % 2);
    std::string text;
    for (size_t n = random() % 12; n > 0; n--) text += char('a' + random() % 2);
    const size_t from = text.empty() ? 0 : random() % text.size();
    const rwkv::StopStrings found(stops);
    size_t at = std::string::npos, open = 0;
    for (size_t end = from + 1; end <= text.size() && at == std::string::npos; end++)
      for (size_t begin = 0; begin < end && at == std::string::npos; begin++)
        if (std::ranges::find(stops, text.substr(begin, end - begin)) != stops.end()) at = begin;
    for (size_t begin = text.size(); begin-- > 0;)
      for (const auto& s : stops)
        if (s.size() > text.size() - begin && s.starts_with(text.substr(begin))) open = text.size() - begin;
    CHECK(found.find(text, from) == at);
    CHECK(found.open(text) == open);
  }
}

TEST(penalties_agree_with_their_definitions) {
  const auto vocabulary = letters();
  for (const PenaltyStyle style : {PenaltyStyle::rwkv, PenaltyStyle::rapid, PenaltyStyle::openai}) {
    SamplingParams p = params(1);
    p.penalty_style = style, p.penalty_decay = 0.9;
    p.logit_bias = {{2, 1.5f}, {30, -INFINITY}, {39, 2}};
    rwkv::SamplerState sampler;
    sampler.style = style;
    std::map<int32_t, double> weight;
    std::mt19937 random(9);
    for (int i = 0; i < 200; i++) {
      const auto token = int32_t(1 + random() % 39);
      sampler.count(token, vocabulary->bytes_of(token), p);
      if (style != PenaltyStyle::openai)
        for (auto& [t, w] : weight) w *= 0.9;
      if (style == PenaltyStyle::rapid)
        weight[token] += weight[token] == 0 ? 0.5 : 0.25;
      else
        weight[token] += style == PenaltyStyle::rwkv && token > 30 ? 0 : 1;
    }
    std::map<int32_t, float> expected{{2, 1.5f}, {30, -INFINITY}, {39, 2}};
    for (const auto& [t, w] : weight) {
      const double cost = style == PenaltyStyle::rapid ? w : 0.5 + w * 0.25;
      expected[t] = float(-cost + (expected.contains(t) ? double(expected[t]) : 0));
    }
    std::map<int32_t, float> found;
    int32_t last = -1;
    for (const auto& b : sampler.bias(p)) {
      CHECK(b.token > last);
      last = b.token;
      found[b.token] = b.bias;
    }
    CHECK(found == expected);
  }
}

TEST(texts_of_a_batch_are_those_of_each_alone) {
  const Fixture f;
  const std::vector<std::vector<int32_t>> prompts = {{1, 2, 3}, {4}, {5, 6, 7, 8, 9, 10}};
  std::vector<rwkv::TextRequest> requests;
  for (size_t i = 0; i < 3; i++) requests.push_back({prompts[i], f.engine->new_state(), params(i, 20 + int64_t(i)), 2});
  Generation batch = f.generation(requests);
  const auto pieces = batch.run();
  CHECK(pieces.size() == 6 && batch.count() == 6);
  for (size_t i = 0; i < 6; i++) {
    const auto state = f.engine->new_state();
    Generation alone = f.generation({{prompts[i / 2], state, params(i / 2 + i % 2, 20 + int64_t(i) / 2), 1}});
    alone.read();
    std::vector<Piece> one;
    while (auto piece = alone.next(0)) {
      one.push_back(*piece);
      CHECK(state->tokens_seen() == int64_t(prompts[i / 2].size() + one.size()));
    }
    CHECK(tokens_of(one) == tokens_of(pieces[i]) && text_of(one) == text_of(pieces[i]));
    CHECK(f.engine->to_bytes(*state) == f.engine->to_bytes(*batch.state(i)));
    CHECK(batch.finish(i) == Finish::length);
  }
  CHECK(requests[2].state->tokens_seen() == 6);
}

TEST(stop_strings_end_a_text_and_step_its_state_back) {
  const Fixture f;
  for (uint64_t seed = 0; seed < 20; seed++) {
    const auto whole = f.generation({{{1}, f.engine->new_state(), params(seed), 1}}).run()[0];
    const std::string text = text_of(whole);
    for (size_t length : {1, 4, 12}) {
      SamplingParams p = params(seed);
      p.stop = {text.substr(8, length), text.substr(3, 9) + "!"};
      if (!rwkv::is_utf8(p.stop[0]) || !rwkv::is_utf8(p.stop[1])) continue;
      const auto state = f.engine->new_state();
      Generation cut = f.generation({{{1}, state, p, 1}});
      const auto found = cut.run()[0];
      CHECK(cut.finish(0) == Finish::stop);
      CHECK(text_of(found) == text.substr(0, text.find(p.stop[0])));
      const auto again = f.engine->new_state();
      std::vector<int32_t> read = {1};
      for (int32_t t : tokens_of(found))
        if (t >= 0) read.push_back(t);
      const rwkv::Sequence sequence[] = {{read, again.get()}};
      f.engine->forward(sequence);
      CHECK(f.engine->equal(*state, *again));
    }
  }
}

TEST(a_call_that_fails_changes_nothing) {
  const Fixture f;
  const auto state = f.engine->new_state();
  const auto before = f.engine->to_bytes(*state);
  SamplingParams p = params(1);
  p.process_logits = true;
  Generation generation = f.generation({{{1, 2}, state, p, 1}});
  const auto fail = [](size_t, std::span<const int32_t> written, std::span<float> logits) {
    if (written.size() == 4) logits[3] = NAN;
  };
  CHECK_THROWS(generation.run({}, {}, fail), rwkv::NonFiniteError, "expected");
  CHECK(f.engine->to_bytes(*state) == before);
  CHECK_THROWS(f.generation({{{1}, state, p, 1}, {{2}, state, p, 1}}), rwkv::StateError, "found one twice");
  CHECK_THROWS(f.generation({{{1}, state, p, 0}}), rwkv::Error, "n: expected 1 or more, found 0");
}

TEST(prompts_move_all_states_or_none) {
  const Fixture f;
  const auto first = f.engine->new_state(), second = f.engine->new_state();
  Generation generation = f.generation({{{1, 2}, first, params(1), 1}, {{3}, second, params(2), 1}});
  std::optional<rwkv::State::Use> use;
  const auto take = [&](int64_t, int64_t) { use.emplace(*second); };
  CHECK_THROWS(generation.read({}, take), rwkv::ConcurrentUseError, "one use of a state handle");
  use.reset();
  CHECK(first->tokens_seen() == 0 && second->tokens_seen() == 0);
  generation.read();
  CHECK(first->tokens_seen() == 2 && second->tokens_seen() == 1);
}

TEST(a_piece_that_is_not_handed_over_is_the_next) {
  const Fixture f;
  const auto alone = f.generation({{{1, 2}, f.engine->new_state(), params(2), 1}}).run()[0];
  const auto first = f.engine->new_state(), second = f.engine->new_state();
  Generation generation = f.generation({{{1}, first, params(1), 1}, {{1, 2}, second, params(2), 1}});
  generation.read();
  for (int i = 0; i < 20; i++) generation.next(0);  // the second's pieces wait, more than have states

  std::vector<Piece> pieces;
  int stopped = 0;
  const auto stop = [&] { stopped++, throw rwkv::Error("stopped"); };
  for (;;) {
    {
      const rwkv::State::Use use(*second);
      CHECK_THROWS(generation.next(1), rwkv::ConcurrentUseError, "one use of a state handle");
    }
    const int64_t before = second->tokens_seen();
    std::optional<Piece> piece;
    try {
      piece = generation.next(1, stop);
    } catch (const rwkv::Error&) {
      CHECK(second->tokens_seen() == before);
      piece = generation.next(1);
    }
    pieces.push_back(*piece);
    CHECK(second->tokens_seen() == int64_t(2 + pieces.size()));
    if (pieces.size() == alone.size()) break;
  }
  CHECK(stopped > 10 && tokens_of(pieces) == tokens_of(alone) && text_of(pieces) == text_of(alone));
  CHECK(!generation.next(1));

  const rwkv::Sequence step[] = {{std::span(&pieces[0].token, 1), first.get()}};
  f.engine->forward(step);
  CHECK_THROWS(generation.next(0), rwkv::ConcurrentUseError, "another call has stepped it");
}

TEST(parameters_out_of_range) {
  const auto refused = [](auto change, const char* message) {
    SamplingParams p;
    change(p);
    CHECK_THROWS(p.check(40), rwkv::Error, message);
  };
  refused([](auto& p) { p.temperature = -1; }, "temperature: expected a number from 0");
  refused([](auto& p) { p.top_p = NAN; }, "top_p: expected a number from 0 to 1");
  refused([](auto& p) { p.min_p = 1.5f; }, "min_p: expected a number from 0 to 1, found 1.5");
  refused([](auto& p) { p.presence_penalty = INFINITY; }, "presence_penalty");
  refused([](auto& p) { p.penalty_decay = 2; }, "penalty_decay: expected a number from 0 to 1, found 2");
  refused([](auto& p) { p.top_logprobs = 41; }, "top_logprobs: expected 0 to 40, found 41");
  refused([](auto& p) { p.logit_bias = {{3, 1}, {3, 1}}; }, "expected ascending ids from 0 to 39, found 3");
  refused([](auto& p) { p.logit_bias = {{40, 1}}; }, "found 40");
  refused([](auto& p) { p.logit_bias = {{4, INFINITY}}; }, "expected a number or -inf for token 4, found inf");
  refused([](auto& p) { p.stop = {"\xff"}; }, "expected UTF-8");
  refused([](auto& p) { p.max_tokens = -1; }, "max_tokens: expected 0 or more, found -1");
}

TEST(one_call_of_a_generation_at_a_time) {
  const Fixture f;
  Generation generation = f.generation({{{1}, f.engine->new_state(), params(1, 400), 1}});
  generation.read();
  int pieces = 0;
  std::atomic<int> refused = 0;
  std::thread other([&] {
    for (int i = 0; i < 200; i++) {
      try {
        if (generation.next(0)) refused--;
      } catch (const rwkv::ConcurrentUseError&) {
      }
    }
  });
  for (int i = 0; i < 200; i++) {
    try {
      pieces += generation.next(0).has_value();
    } catch (const rwkv::ConcurrentUseError&) {
    }
  }
  other.join();
  CHECK(pieces - refused > 0 && pieces - refused <= 400);
}

CHECK_MAIN
