// Models on devices with memory of their own, alone and one behind the other: the bits of the CPU, and nothing above
// the backends that follows a pointer into them. The program brings its own porch, on which strategies find such a
// device under the name of a GPU.
#include <cmath>

#include "check.h"
#include "engine/engine.h"
#include "engine/generation.h"
#include "letters.h"
#include "model/packed.h"
#include "remote_backend.h"
#include "tiny_model.h"

namespace rwkv {

std::shared_ptr<Backend> open_backend(std::string_view device, const DeviceOptions& options) {
  if (device == "cpu" || device == "auto") return std::make_shared<cpu::CpuBackend>(options);
  return std::make_shared<remote::RemoteBackend>(device.back() - '0', options);
}

}  // namespace rwkv

namespace {

#ifdef __SANITIZE_ADDRESS__  // each takes long enough
constexpr const char* kSome[] = {"4", "6", "7a"};
#else
constexpr const auto& kSome = tiny::kVersions;
#endif

using rwkv::Engine;
using rwkv::Output;

const tiny::Shape kShape{.layers = 3};

// One model of a version, opened under any strategy.
struct Family {
  tiny::TempFile file{"remote.safetensors"};
  std::string path;

  explicit Family(const char* version, rwkv::DType dtype = rwkv::DType::f32) {
    tiny::Shape shape = kShape;
    shape.version = version, shape.dtype = dtype;
    path = tiny::Model(shape).write(file);
  }
  std::shared_ptr<Engine> open(const std::string& strategy) const { return Engine::open(path, {strategy, 2, {}, {}}); }
};

std::vector<int32_t> tokens(int n) {
  std::vector<int32_t> t;
  for (int i = 0; i < n; i++) t.push_back((i * 7 + i / 3) % kShape.vocab);
  return t;
}

// Everything that an engine gives of some texts: a ragged batch over several panels, steps of one token, all outputs.
struct Results {
  std::vector<std::vector<float>> values;
  std::vector<std::vector<std::byte>> states;
  std::vector<std::string> texts;
  bool operator==(const Results&) const = default;
};

Results results(Engine& engine) {
  Results found;
  const auto t = tokens(200);
  std::vector<std::shared_ptr<rwkv::State>> states;
  std::vector<rwkv::Sequence> batch;
  const auto step = [&](Output output, std::initializer_list<size_t> lengths) {
    batch.clear();
    for (size_t n : lengths) batch.push_back({std::span(t).first(n), states[batch.size()].get()});
    found.values.push_back(engine.forward(batch, output));
  };
  for (int i = 0; i < 7; i++) states.push_back(engine.new_state());
  step(Output::last, {1, 150, 7, 3, 9, 2, 8});
  step(Output::all, {20, 1, 4});
  step(Output::hidden, {3, 2, 150});
  step(Output::none, {1, 30});
  for (int i = 0; i < 3; i++) step(Output::last, {1, 1, 1, 1, 1, 1, 1});
  rwkv::SamplingParams params;
  params.seed = 5, params.max_tokens = 20, params.ignore_eos = true;
  rwkv::Generation generation(engine.shared_from_this(), letters(), {{{1, 2, 3}, states[0]->fork(), params, 2}});
  for (const auto& pieces : generation.run())
    for (const auto& piece : pieces) found.texts.push_back(piece.text);
  CHECK(remote::RemoteBackend::open_steps == 0);
  for (const auto& state : states) found.states.push_back(engine.to_bytes(*state));
  return found;
}

}  // namespace

TEST(every_version_has_the_bits_of_the_cpu) {
  for (const char* version : kSome) {
    const Family family(version);
    const auto expected = results(*family.open("cpu fp32"));
    for (const char* strategy :
         {"cuda fp32", "cuda:1 fp32 *1 -> cuda:1 fp32", "cpu fp32 *1 -> cuda fp32", "cuda fp32 *2 -> cpu fp32",
          "cuda fp32 *1 -> cuda:1 fp32", "cuda fp32 *1 -> cpu fp32 *1 -> cuda fp32"}) {
      const bool same = results(*family.open(strategy)) == expected;
      if (!same) std::printf("%s: %s\n", version, strategy);
      CHECK(same);
    }
  }
}

TEST(stages_of_several_formats_too) {
  for (const char* version : kSome) {
    const Family family(version, rwkv::DType::bf16);
    CHECK(results(*family.open("cuda int8 *1 -> cpu bf16 *1 -> cuda fp16")) ==
          results(*family.open("cpu int8 *1 -> cpu bf16 *1 -> cpu fp16")));
    CHECK(results(*family.open("cuda int4 *2 -> cuda:1 bf16")) == results(*family.open("cpu int4 *2 -> cpu bf16")));
  }
}

TEST(a_description_names_the_devices) {
  const Family family("7");
  const auto engine = family.open("cuda fp32 *1 -> cpu fp32");
  CHECK(engine->description().starts_with("remote:0 *1 -> cpu "));
  CHECK(engine->description().ends_with(" threads *2"));
  CHECK(family.open("cuda:1 fp32 *1 -> cuda:1 bf16")->description() == "remote:1");
}

TEST(states_go_from_device_to_device) {
  for (const char* version : kSome) {
    const Family family(version);
    const auto a = family.open("cpu fp32"), b = family.open("cuda fp32 *1 -> cuda:1 fp32");
    const auto t = tokens(30);
    auto on_a = a->new_state(), on_b = b->new_state();
    const auto step = [&](Engine& engine, rwkv::State& state, size_t from, size_t n) {
      const rwkv::Sequence sequence[] = {{std::span(t).subspan(from, n), &state}};
      return engine.forward(sequence);
    };
    step(*a, *on_a, 0, 10);
    on_b = b->state_from_bytes(a->to_bytes(*on_a));
    CHECK(step(*b, *on_b, 10, 10) == step(*a, *on_a, 10, 10));
    on_a = a->state_from_parts(b->parts(*on_b));
    CHECK(step(*b, *on_b, 20, 10) == step(*a, *on_a, 20, 10));
    CHECK(b->equal(*on_b, *b->state_from_bytes(b->to_bytes(*on_b))));
  }
}

TEST(what_is_not_finite_changes_nothing_there) {
  for (const char* name : {"blocks.0.ffn.key.weight", "blocks.2.ffn.key.weight", "ln_out.bias", "head.weight"}) {
    tiny::Model model(kShape);
    model.fill(name, std::nanf(""));
    const tiny::TempFile file("remote-nan.safetensors");
    const auto engine = Engine::open(model.write(file), {"cuda fp32 *1 -> cuda:1 fp32", 2, {}, {}});
    auto state = engine->new_state();
    const auto before = engine->to_bytes(*state);
    const auto t = tokens(3);
    const rwkv::Sequence sequence[] = {{t, state.get()}};
    const bool head = name == std::string("head.weight");
    CHECK_THROWS(engine->forward(sequence), rwkv::NonFiniteError,
                 head ? "expected finite logits" : "expected finite numbers after the last layer");
    if (!head)
      for (const Output output : {Output::none, Output::hidden})
        CHECK_THROWS(engine->forward(sequence, output), rwkv::NonFiniteError, "after the last layer");
    CHECK(engine->to_bytes(*state) == before);
  }
}

TEST(a_call_that_is_stopped_can_be_made_again) {
  const Family family("7");
  const auto engine = family.open("cpu fp32 *1 -> cuda fp32");
  const auto t = tokens(100);
  auto state = engine->new_state(), other = engine->new_state();
  const rwkv::Sequence sequence[] = {{t, state.get()}}, again[] = {{t, other.get()}};
  int polls = 0;
  const auto stop = [&] {
    if (++polls == 4) throw rwkv::Error("stopped");
  };
  CHECK_THROWS(engine->forward(sequence, Output::last, stop), rwkv::Error, "stopped");
  CHECK(engine->forward(sequence) == engine->forward(again));
}

TEST(packed_files_and_what_nobody_can) {
  const Family family("7");
  const tiny::TempFile packed("remote-int8.safetensors");
  rwkv::write_packed(rwkv::Checkpoint::open(family.path), packed, "int8", {});
  const auto open = [](const std::string& path, const char* strategy) {
    return Engine::open(path, {strategy, 2, {}, {}});
  };
  // A device that does not read a file where it lies gets rows, of which it makes the same.
  for (const char* strategy : {"cuda int8", "cuda int8 *1 -> cpu int8"})
    CHECK(results(*open(packed, strategy)) == results(*open(family.path, strategy)));
  CHECK_THROWS(open(family.path, "cuda fp16 *1+"), rwkv::DeviceError,
               "expected a device that layers can be streamed to, found remote:0");
}

CHECK_MAIN
