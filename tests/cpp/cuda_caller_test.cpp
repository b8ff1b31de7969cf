// What calls make of the context that their thread has: whole steps of models, against devices whose kernels do nothing
// and a driver that counts. The program brings its own porch.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "check.h"
#include "core/error.h"
#include "cuda/backend.h"
#include "engine/engine.h"
#include "tiny_model.h"

namespace {

using namespace rwkv;
using namespace rwkv::cuda;

char devices[2], theirs;               // contexts
thread_local void* current = nullptr;  // of the thread, which any call on a device changes
int calls = 0, asked = 0, told = 0;    // on devices, and what the driver has been
int launches_left = -1;                // until one fails; below zero: none does

bool called(void* device) { return current = device, calls++, true; }

DeviceApi fake_api() {
  DeviceApi api = {};
  api.count = [](int32_t* count, Fault*) { return *count = 2, true; };
  api.open = [](int32_t index, void** device, DeviceInfo* info, Fault*) {
    info->major = 9, info->processors = 1, info->shared_per_block = 48 << 10;
    return called(*device = &devices[index]);
  };
  api.close = [](void* device) { called(device); };
  api.allocate = [](void* device, uint64_t bytes, void** memory, Fault*) {
    return *memory = std::calloc(bytes, 1), called(device);
  };
  api.release = [](void* device, void* memory) { std::free(memory), called(device); };
  api.pin = api.allocate, api.unpin = api.release;
  api.upload = [](void* device, void* to, const void* from, uint64_t bytes, Fault*) {
    return std::memcpy(to, from, bytes), called(device);
  };
  api.download = api.upload;
  api.stage = [](void* device, void*, const void*, uint64_t, int32_t, Fault*) { return called(device); };
  api.await = [](void* device, int32_t, Fault*) { return called(device); };
  api.launch = [](void* device, const Launch*, uint32_t, Fault* fault) {
    called(device);
    if (launches_left < 0 || launches_left-- > 0) return true;
    fault->failure = Failure::device;
    return false;
  };
  api.synchronise = [](void* device, Fault*) { return called(device); };
  return api;
}

const DeviceApi kFake = fake_api();
const Driver kDriver = {[](void** context) { return asked++, *context = current, 0; },
                        [](void* context) { return told++, current = context, 0; }};

}  // namespace

std::shared_ptr<Backend> rwkv::open_backend(std::string_view device, const DeviceOptions& options) {
  return std::make_shared<CudaBackend>(std::make_shared<Context>(kFake, device.back() - '0', kDriver), options);
}

namespace {

struct Opened {
  std::shared_ptr<Engine> engine;
  std::shared_ptr<State> state;

  explicit Opened(const std::string& strategy) {
    const tiny::TempFile file("caller.safetensors");
    engine = Engine::open(tiny::Model({.layers = 4}).write(file), {strategy, 1, {}, {}});
    state = engine->new_state();
    for (int i = 0; i < 3; i++) step();  // until its slots are there
    calls = asked = told = 0;
  }
  void step(const Poll& poll = {}) {
    const int32_t token = 1;
    const Sequence sequence = {.tokens = {&token, 1}, .state = state.get()};
    engine->forward({&sequence, 1}, Output::last, poll);
  }
};

constexpr const char* kOne = "cuda:0 fp32";
constexpr const char* kTwo = "cuda:0 fp32 *2 -> cuda:1 fp32";

}  // namespace

TEST(a_step_changes_the_context_of_its_thread_once_for_each_stage) {
  for (void* before : {static_cast<void*>(nullptr), static_cast<void*>(&theirs)})
    for (auto [strategy, stages] : {std::pair{kOne, 1}, {kTwo, 2}, {"cuda:0 fp32 *0+", 1}, {"cuda:0 fp32 *1+", 2}}) {
      current = before;
      Opened opened(strategy);
      CHECK(current == before);
      opened.step();
      CHECK(current == before);
      CHECK(calls > 10 * stages && asked == stages && told == stages);
    }
}

TEST(a_draw_changes_it_once) {
  Opened opened(kOne);
  current = &theirs;
  std::vector<float> logits(40);
  const SampleJob job = {.logits = {reinterpret_cast<std::byte*>(logits.data()), DType::f32, 1, 40, 40}};
  opened.engine->sample({&job, 1});
  CHECK(current == &theirs);
  CHECK(calls > 3 && asked == 1 && told == 1);
}

TEST(a_step_that_fails_leaves_its_thread_the_context_that_it_had) {
  for (const char* strategy : {kOne, kTwo, "cuda:0 fp32 *0+"}) {
    Opened opened(strategy);
    opened.step();
    const int in_a_step = calls;
    current = &theirs;
    int failed = 0;
    for (int i = 0; i < in_a_step; i++) {
      launches_left = i;
      try {
        opened.step();
      } catch (const DeviceError&) {
        failed++;
      }
      launches_left = -1;
      CHECK(current == &theirs);
    }
    CHECK(failed > 10);
    // An interrupt comes from no call on a device.
    for (int after = 0; after < 4; after++) {
      int polls = 0;
      CHECK_THROWS(opened.step([&] {
        if (polls++ == after) throw std::runtime_error("interrupted");
      }),
                   std::runtime_error, "interrupted");
      CHECK(current == &theirs);
    }
    asked = told = 0;
    opened.step();
    CHECK(current == &theirs && asked <= 2 && told == asked);
  }
}

// Of the thread that steps nobody else knows, and one step may be within another.
TEST(calls_in_the_middle_of_a_step) {
  Opened opened(kOne), other("cuda:1 fp32");
  current = &theirs;
  int polls = 0;
  opened.step([&] {
    if (polls++ != 1) return;
    CHECK(current == &devices[0]);
    std::thread([&] {
      other.engine->to_bytes(*other.state);
      CHECK(current == nullptr);
    }).join();
    asked = 0;
    other.step();
    CHECK(asked == 0);
  });
  CHECK(polls > 1 && current == &theirs);
}

CHECK_MAIN
