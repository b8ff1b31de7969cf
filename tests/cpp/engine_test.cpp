// The engine through its C++ interface: what a program relies on that links the library without Python.
#include "engine/engine.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <fstream>
#include <thread>

#include "allocations.h"
#include "check.h"
#include "core/safetensors.h"
#include "engine/state_file.h"
#include "model/adapter_weights.h"
#include "model/model.h"
#include "tiny_model.h"

namespace {

std::shared_ptr<rwkv::Engine> open(const tiny::Shape& shape = {}, const char* strategy = "cpu fp32", int threads = 2) {
  const tiny::TempFile file("engine.safetensors");
  return rwkv::Engine::open(tiny::Model(shape).write(file), {strategy, threads, {}, {}});
}

std::vector<int32_t> tokens(int n, int vocab = 40) {
  std::vector<int32_t> t;
  for (int i = 0; i < n; i++) t.push_back((i * 7 + i / 3) % vocab);
  return t;
}

std::vector<float> run(rwkv::Engine& engine, rwkv::State& state, std::span<const int32_t> t,
                       rwkv::Output output = rwkv::Output::last) {
  const rwkv::Sequence sequence[] = {{t, &state}};
  return engine.forward(sequence, output);
}

}  // namespace

TEST(pieces_give_the_bits_of_the_whole) {
  for (const char* version : tiny::kVersions)
    for (const char* strategy :
         {"cpu fp32", "cpu fp16", "cpu bf16", "cpu int8", "cpu int4", "cpu int4 *1 -> cpu fp32"}) {
      const auto engine = open({.layers = 3, .version = version}, strategy);
      const auto t = tokens(100);
      auto whole = engine->new_state(), pieces = engine->new_state();
      const auto expected = run(*engine, *whole, t, rwkv::Output::all);
      std::vector<float> found;
      for (size_t at = 0; at < t.size();) {
        const size_t n = std::min<size_t>(1 + at % 17, t.size() - at);
        const auto part = run(*engine, *pieces, std::span(t).subspan(at, n), rwkv::Output::all);
        found.insert(found.end(), part.begin(), part.end());
        at += n;
      }
      CHECK(expected == found);
      CHECK(engine->equal(*whole, *pieces));
      CHECK(whole->tokens_seen() == 100);
    }
}

TEST(scores_are_of_the_logits_and_move_no_state) {
  for (const char* version : tiny::kVersions) {
    const auto engine = open({.version = version});
    const auto t = tokens(700);
    const auto begun = engine->new_state(), fresh = engine->new_state();
    run(*engine, *begun, std::span(t).first(5));
    std::vector<rwkv::Sequence> sequences = {{std::span(t).first(0), fresh.get()},
                                             {std::span(t).first(1), fresh.get()}};
    for (int i = 0; i < 40; i++) sequences.push_back({std::span(t).first(size_t(i % 3)), begun.get()});
    sequences.push_back({t, fresh.get()});
    sequences.push_back({std::span(t).subspan(5), begun.get()});
    const auto scores = engine->score(sequences);

    const auto rows = run(*engine, *engine->new_state(), t, rwkv::Output::all);
    const auto& whole = scores[42];
    CHECK(whole.size() == 699);
    for (size_t i = 0; i < whole.size(); i++) {
      const std::span row(rows.data() + i * 40, 40);
      double sum = 0;
      for (float x : row) sum += std::exp(double(x));
      CHECK(std::abs(double(whole[i].logprob) - (double(row[size_t(t[i + 1])]) - std::log(sum))) < 1e-6);
      CHECK(whole[i].greedy == (std::ranges::max_element(row) - row.begin() == t[i + 1]));
    }
    CHECK(scores[0].empty() && scores[1].empty());
    for (size_t i = 0; i < 40; i++) CHECK(scores[2 + i].size() == i % 3);
    CHECK(scores[43].size() == 695);
    for (size_t i = 0; i < 695; i++) CHECK(scores[43][i].logprob == whole[i + 4].logprob);
    CHECK(fresh->tokens_seen() == 0 && begun->tokens_seen() == 5 && begun->last_logits());
  }
  const auto engine = open();
  const int32_t outside[] = {1, 40};
  const auto state = engine->new_state(), other = open()->new_state();
  const rwkv::Sequence wrong[] = {{outside, state.get()}}, foreign[] = {{outside, other.get()}};
  CHECK_THROWS(engine->score(wrong), rwkv::Error, "token 1: expected an id from 0 to 39, found 40");
  const int32_t negative[] = {5, -1};
  const rwkv::Sequence below[] = {{negative, state.get()}};
  CHECK_THROWS(engine->score(below), rwkv::Error, "token 1: expected an id from 0 to 39, found -1");
  const std::vector<float> vectors(size_t(engine->config().n_embd), 1.0f);
  const rwkv::Sequence embedded[] = {{.tokens = {}, .state = state.get(), .embeddings = vectors}};
  CHECK_THROWS(engine->score(embedded), rwkv::Error, "expected tokens, found embeddings");
  CHECK_THROWS(engine->score(foreign), rwkv::StateError, "of this engine");
}

TEST(a_state_that_scores_advance_is_held_from_the_first_look) {
  const auto engine = open();
  const auto t = tokens(20);
  const auto state = engine->new_state(), same = engine->new_state(), other = engine->new_state();
  run(*engine, *state, std::span(t).first(5)), run(*engine, *same, std::span(t).first(5));
  const rwkv::Sequence rest[] = {{std::span(t).subspan(5), state.get()}};
  const rwkv::Sequence expected[] = {{std::span(t).subspan(5), same.get()}};

  // While another state's call computes, the scores have looked at their state's logits and wait for their turn.
  std::vector<std::vector<rwkv::TokenScore>> scores;
  std::atomic<bool> waits = false;
  std::thread scoring;
  const auto busy = [&](int64_t, int64_t) {
    scoring = std::thread([&] { scores = engine->score(rest, [&] { waits = true; }, {}, true); });
    while (!waits) std::this_thread::yield();
    CHECK_THROWS(run(*engine, *state, std::span(t).first(1)), rwkv::ConcurrentUseError, "one use of a state handle");
  };
  const rwkv::Sequence step[] = {{std::span(t).first(1), other.get()}};
  engine->forward(step, rwkv::Output::none, {}, {}, busy);
  scoring.join();
  const auto alone = engine->score(expected, {}, {}, true);
  CHECK(scores.size() == 1 && scores[0].size() == 15 && state->tokens_seen() == 19);
  for (size_t i = 0; i < 15; i++) CHECK(scores[0][i].logprob == alone[0][i].logprob);
  CHECK(engine->equal(*state, *same));

  const rwkv::Sequence twice[] = {{std::span(t).first(1), state.get()}, {t, state.get()}};
  CHECK_THROWS(engine->score(twice, {}, {}, true), rwkv::StateError, "expected every state once in a batch");
  const auto stop = [](int64_t, int64_t) { throw rwkv::Error("stopped"); };
  const rwkv::Sequence both[] = {{t, state.get()}, {t, other.get()}};
  CHECK_THROWS(engine->score(both, {}, stop, true), rwkv::Error, "stopped");
  CHECK(engine->equal(*state, *same) && other->tokens_seen() == 1);
}

TEST(an_adapter_that_is_being_read_can_be_stopped_anywhere) {
  const tiny::TempFile model("adapted.safetensors"), file("adapter.safetensors");
  const auto engine = rwkv::Engine::open(tiny::Model({}).write(model), {"cpu int8", 1, {}, {}});
  std::vector<rwkv::TensorInfo> tensors;
  std::vector<float> values;
  for (const char* module : {"blocks.0.att.key", "blocks.1.att.value"})
    for (const char part : {'A', 'B'}) {
      rwkv::TensorInfo& info = tensors.emplace_back();
      info.name = rwkv::join(module, ".lora_", part);
      info.shape = part == 'A' ? std::vector<int64_t>{4, 32} : std::vector<int64_t>{32, 4};
      for (int i = 0; i < 128; i++) values.push_back(float(i % 7) * 0.1f);
    }
  std::ofstream(file, std::ios::binary) << rwkv::write_safetensors_header({}, tensors)
                                        << std::string_view(reinterpret_cast<char*>(values.data()), 4 * values.size());

  int polls = 0, last = 1 << 30;
  const auto poll = [&] {
    if (++polls == last) throw rwkv::Error("stopped");
  };
  const std::string fingerprint = engine->load_adapter({file, 8}, poll)->fingerprint();
  const int all = polls;
  CHECK(all >= 6);  // each tensor and each pair
  for (last = 1; last <= all; last++) {
    polls = 0;
    CHECK_THROWS(engine->load_adapter({file, 8}, poll), rwkv::Error, "stopped");
  }
  last = 0;
  CHECK(engine->load_adapter({file, 8}, poll)->fingerprint() == fingerprint);

  int before = -1;  // the weights are read
  const auto progress = [&](int64_t, int64_t) { before = before < 0 ? polls : before; };
  polls = 0;
  rwkv::Engine::open(model, {"cpu fp32", 1, progress, poll, {}, false, {{file, 8}}});
  CHECK(before > 4);
}

TEST(more_rows_than_a_panel) {
  for (const char* version : tiny::kVersions) {
    const auto engine = open({.version = version});
    const auto t = tokens(1000);
    auto whole = engine->new_state(), pieces = engine->new_state();
    const auto expected = run(*engine, *whole, t);
    for (int i = 0; i < 9; i++) run(*engine, *pieces, std::span(t).subspan(size_t(i) * 111, 111), rwkv::Output::none);
    CHECK(!pieces->last_logits());
    CHECK(run(*engine, *pieces, std::span(t).subspan(999)) == expected);
    CHECK(engine->equal(*whole, *pieces));
  }
}

TEST(ragged_batch_equals_each_alone) {
  const auto engine = open();
  const auto t = tokens(700);
  const size_t lengths[] = {1, 300, 7, 64, 299, 2};
  std::vector<std::shared_ptr<rwkv::State>> states;
  std::vector<rwkv::Sequence> batch;
  for (size_t n : lengths) {
    states.push_back(engine->new_state());
    batch.push_back({std::span(t).first(n), states.back().get()});
  }
  const auto rows = engine->forward(batch, rwkv::Output::last);
  for (size_t i = 0; i < batch.size(); i++) {
    auto alone = engine->new_state();
    const auto expected = run(*engine, *alone, batch[i].tokens);
    CHECK(std::equal(expected.begin(), expected.end(), rows.begin() + ptrdiff_t(i * expected.size())));
    CHECK(engine->equal(*alone, *states[i]));
  }
}

TEST(forks_go_their_own_ways) {
  const auto engine = open();
  auto a = engine->new_state();
  run(*engine, *a, tokens(9));
  auto b = a->fork();
  CHECK(engine->equal(*a, *b));
  const int32_t x[] = {3}, y[] = {4};
  const auto kept = a->fork();
  run(*engine, *a, x);
  CHECK(engine->equal(*b, *kept));
  run(*engine, *b, y);
  CHECK(!engine->equal(*a, *b));
  const rwkv::Sequence both[] = {{y, a.get()}, {y, a.get()}};
  CHECK_THROWS(engine->forward(both), rwkv::StateError, "once in a batch");
}

TEST(saved_and_restored) {
  const auto engine = open();
  auto a = engine->new_state();
  run(*engine, *a, tokens(20));
  const tiny::TempFile file("a.state");
  engine->save(*a, file);
  auto b = engine->load_state(file);
  CHECK(engine->equal(*a, *b));
  CHECK(run(*engine, *a, tokens(5)) == run(*engine, *b, tokens(5)));
  auto c = engine->state_from_parts(engine->parts(*a));
  CHECK(run(*engine, *c, tokens(5)) == run(*engine, *b, tokens(5)));
}

TEST(halves_by_name_and_files_without_the_model) {
  for (const char* version : tiny::kVersions) {
    const auto engine = open({.version = version});
    auto state = engine->new_state();
    run(*engine, *state, tokens(20));
    const auto wide = engine->to_bytes(*state), narrow = engine->to_bytes(*state, rwkv::DType::f16);
    CHECK(narrow.size() < wide.size());
    const rwkv::StateFile file(wide), half(narrow);
    CHECK(file.to_bytes(rwkv::DType::f32) == wide && file.to_bytes(rwkv::DType::f16) == narrow);
    CHECK(half.to_bytes(rwkv::DType::f16) == narrow && half.type() == rwkv::DType::f16);
    CHECK(file.model().fingerprint == engine->fingerprint() && file.info().tokens_seen == 20);
    CHECK(file.last_logits() == half.last_logits());
    const auto exact = engine->parts(*state), restored = engine->parts(*engine->state_from_bytes(narrow));
    const auto rounded = half.parts();
    for (size_t p = 0; p < exact.size(); p++) {
      const bool kept = exact[p].name == "att.pp";
      for (size_t i = 0; i < exact[p].values.size(); i++) {
        const float value = exact[p].values[i];
        CHECK(rounded[p].values[i] == (kept ? value : rwkv::f16_to_f32(rwkv::f32_to_f16(value))));
      }
      CHECK(restored[p].values == rounded[p].values && file.parts()[p].values == exact[p].values);
    }
  }
}

TEST(what_is_not_finite_changes_nothing) {
  tiny::Model model({});
  model.fill("blocks.1.ffn.key.weight", std::nanf(""));
  const tiny::TempFile file("nan.safetensors");
  const auto engine = rwkv::Engine::open(model.write(file), {"cpu fp32", 1, {}, {}});
  auto state = engine->new_state();
  const auto before = engine->to_bytes(*state);
  for (rwkv::Output output : {rwkv::Output::last, rwkv::Output::none, rwkv::Output::hidden})
    CHECK_THROWS(run(*engine, *state, tokens(3), output), rwkv::NonFiniteError, "expected finite");
  CHECK(engine->to_bytes(*state) == before);
}

TEST(a_call_that_is_stopped_changes_nothing) {
  const auto engine = open();
  auto state = engine->new_state();
  run(*engine, *state, tokens(3));
  const auto before = engine->to_bytes(*state);
  const auto t = tokens(600);
  const rwkv::Sequence sequence[] = {{t, state.get()}};
  int polls = 0;
  const auto stop = [&] {
    if (++polls == 5) throw rwkv::Error("stopped");
  };
  CHECK_THROWS(engine->forward(sequence, rwkv::Output::last, stop), rwkv::Error, "stopped");
  CHECK(engine->to_bytes(*state) == before);
}

TEST(a_step_in_place_equals_one_from_slot_to_slot) {
  for (const char* version : tiny::kVersions) {
    const tiny::TempFile path("place.safetensors");
    const auto file = rwkv::Checkpoint::open(tiny::Model({.version = version}).write(path));
    const auto model = rwkv::Model::load(file, "cpu fp32", {2}, {});
    const rwkv::Model::Stage& stage = model->stages().front();
    const size_t bytes = stage.states.slot_bytes;
    rwkv::Workspace space = model->workspace();
    const rwkv::Memory slots = stage.backend->allocate(3 * bytes);
    const auto t = tokens(100);
    const auto step = [&](size_t from, size_t to) {
      const int32_t start[] = {0, 50}, rows[] = {49};
      const std::byte* src[] = {slots.data.get() + from * bytes};
      std::byte* dst[] = {slots.data.get() + to * bytes};
      const auto part = std::span(t).subspan(from == to ? 50 : from * 50, 50);
      const rwkv::Batch batch[] = {{part, start, src, dst, rows}};
      model->forward(batch, rwkv::Model::Result::none, space, {}, {});
    };
    step(0, 1), step(1, 2), step(1, 1);
    CHECK(std::memcmp(slots.data.get() + bytes, slots.data.get() + 2 * bytes, bytes) == 0);
  }
}

TEST(a_step_allocates_nothing) {
  for (const char* version : tiny::kVersions)
    for (const char* strategy : {"cpu fp32", "cpu bf16"}) {
      const tiny::TempFile path("step.safetensors");
      const auto file = rwkv::Checkpoint::open(tiny::Model({.version = version}).write(path));
      const auto model = rwkv::Model::load(file, strategy, {2}, {});
      CHECK(model->config().version == version);
      const rwkv::Model::Stage& stage = model->stages().front();
      rwkv::Workspace space = model->workspace();
      const rwkv::Memory slots = stage.backend->allocate(2 * stage.states.slot_bytes);
      const auto t = tokens(100);
      const int32_t start[] = {0, 100}, rows[] = {50, 99};
      const std::byte* src[] = {slots.data.get()};
      std::byte* dst[] = {slots.data.get() + stage.states.slot_bytes};
      const rwkv::Batch batch[] = {{t, start, src, dst, rows}};
      const long before = allocations;
      model->forward(batch, rwkv::Model::Result::logits, space, {}, [](const rwkv::Tensor&) {});
      CHECK(allocations == before);
    }
}

TEST(tokens_one_by_one_allocate_nothing) {
  const auto t = tokens(check::kSanitized ? 50 : 220);
  for (const char* version : tiny::kVersions)
    for (const char* strategy : {"cpu fp32", "cpu fp16", "cpu bf16", "cpu int8", "cpu int4", "cpu int8 *1 -> cpu fp32"})
      for (int threads : {1, 2}) {
        const auto engine = open({.version = version}, strategy, threads);
        auto a = engine->new_state(), b = engine->new_state();
        std::vector<float> result(2 * 40);
        const auto step = [&](size_t i) {
          const rwkv::Sequence batch[] = {{std::span(t).subspan(i, 1), a.get()}, {std::span(t).subspan(i, 1), b.get()}};
          const std::span<const rwkv::Sequence> both(batch), first = both.first(1);
          engine->forward(first, rwkv::Output::last, std::span(result).first(40));
          engine->forward(both, rwkv::Output::last, result);
          engine->forward(both, i % 2 ? rwkv::Output::last : rwkv::Output::none, std::span<float>());
        };
        for (size_t i = 0; i < 4; i++) step(i);  // the first call of each kind makes what the others use again
        const long before = allocations;
        for (size_t i = 4; i < t.size(); i++) step(i);
        CHECK(allocations == before);
        CHECK(a->tokens_seen() == 3 * std::ssize(t) && b->tokens_seen() == 2 * std::ssize(t));
      }
}

TEST(what_recycles_is_used_again) {
  const auto recycler = std::make_shared<rwkv::Recycler>();
  using Allocator = rwkv::RecyclingAllocator<float>;
  const float* first = nullptr;
  {
    const rwkv::Logits::Values a(100, Allocator(recycler)), other(101, Allocator(recycler));
    first = a.data();
    const rwkv::Logits::Values second(100, Allocator(recycler));
    CHECK(second.data() != first);
  }
  const rwkv::Logits::Values smaller(99, Allocator(recycler));
  const rwkv::Logits::Values one(100, Allocator(recycler)), two(100, Allocator(recycler));
  CHECK(smaller.data() != first && (one.data() == first || two.data() == first) && one.data() != two.data());
}

TEST(a_call_of_any_length_allocates_nothing) {
  const auto engine = open();
  auto state = engine->new_state();
  const auto t = tokens(1500);
  std::vector<float> result(40);
  const auto count = [&](size_t n) {
    const rwkv::Sequence sequence[] = {{std::span(t).first(n), state.get()}};
    const long before = allocations;
    engine->forward(sequence, rwkv::Output::last, result);
    return allocations - before;
  };
  count(1500), count(1500);  // what the calls after them use again
  CHECK(count(200) == 0 && count(1500) == 0);
}

TEST(numbers_of_threads_that_cannot_be) {
  const tiny::TempFile file("threads.safetensors");
  const std::string path = tiny::Model({}).write(file);
  CHECK_THROWS(rwkv::Engine::open(path, {"cpu fp32", 5000, {}, {}}), rwkv::Error, "expected 1 to 1024, found 5000");
}

TEST(calls_that_cannot_be) {
  const auto engine = open();
  auto state = engine->new_state();
  const int32_t high[] = {40}, low[] = {-1};
  CHECK_THROWS(run(*engine, *state, {}), rwkv::Error, "expected at least one token, found none");
  CHECK_THROWS(run(*engine, *state, high), rwkv::Error, "expected an id from 0 to 39, found 40");
  CHECK_THROWS(run(*engine, *state, low), rwkv::Error, "found -1");
  CHECK_THROWS(open({}, "cpu fp31"), rwkv::StrategyError,
               "expected a precision (fp32, fp16, bf16, int8, int4), found 'fp31'");
  CHECK_THROWS(open({}, "cpu bf16 *3"), rwkv::StrategyError, "expected 2 layers in all, found 3");
  CHECK_THROWS(open({}, "cpu bf16 *1"), rwkv::StrategyError, "expected 2 layers in all, found 1");
  CHECK_THROWS(open({}, "cpu fp32 *1+"), rwkv::StrategyError, "expected a number of layers such as *10, found '*1+'");
  setenv("RWKV_CUDA_LIBRARY", "/nowhere/librwkv_cuda.so", 1);
  for (const char* strategy : {"cuda fp16", "cuda:7 bf16i4 *1 -> cpu fp32", "cuda fp16i8 *10+", "cuda int8 *0+"})
    CHECK_THROWS(open({}, strategy), rwkv::DeviceError, "expected the CUDA backend of this build, found none");
  for (const char* word :
       {"cuda:x", "cuda:", "cuda:-1", "cuda:64", "cuda:1x", "cudas", "gpu", "cuda:99999999999999999999"})
    CHECK_THROWS(open({}, rwkv::join(word, " fp16").c_str()), rwkv::StrategyError,
                 rwkv::join("expected a device (cpu, cuda, cuda:N with N up to 63), found '", word, "'").c_str());
  CHECK_THROWS(open({}, "cpu fp16i8"), rwkv::StrategyError, "(fp32, fp16, bf16, int8, int4), found 'fp16i8'");
  CHECK_THROWS(open({}, "cuda fp16i9"), rwkv::StrategyError,
               "(fp32, fp16, bf16, int8, int4, fp16i8, bf16i8, fp16i4, bf16i4), found 'fp16i9'");
  CHECK_THROWS(open({}, "cpu fp16 state16"), rwkv::StrategyError,
               "expected state16 for cuda only, found it for cpu, whose states are float32");
  CHECK_THROWS(open({}, "cuda fp16 state8"), rwkv::StrategyError, "expected state16 or a number of layers such as *10");
  CHECK_THROWS(open({}, "cuda fp16 *x+"), rwkv::StrategyError, "such as *10 or *10+, found '*x+'");
  const auto other = open();
  CHECK_THROWS(run(*other, *state, tokens(1)), rwkv::StateError, "of this engine");
  const rwkv::State::Use use(*state);
  CHECK_THROWS(run(*engine, *state, tokens(1)), rwkv::ConcurrentUseError, "one use of a state handle at a time");
}

CHECK_MAIN
