// The host's side of the seam, against a table of functions that only note what they are asked for.
#include <algorithm>
#include <cstring>
#include <utility>

#include "check.h"
#include "core/error.h"
#include "cuda/context.h"
#include "cuda/large_products.h"
#include "cuda/tape.h"

namespace {

using namespace rwkv;
using namespace rwkv::cuda;

// What the calling thread uses, and what any call on the device makes of that.
char ours, theirs;
void* current = nullptr;
bool begun = false;  // the driver, by the first call of all

// What has been asked for, in words: "launch 3", "record 3", "replay", "forget".
std::vector<std::string> asked;
void note(const std::string& what) {
  current = &ours, begun = true;
  asked.push_back(what);
}
Fault next_fault = {};
bool answer(const std::string& what, Fault* fault) {
  note(what);
  if (next_fault.failure == Failure::none) return true;
  *fault = next_fault;
  return false;
}

bool makes_graphs = true;
std::string reason = "the first";

DeviceApi fake_api() {
  DeviceApi api = {};
  api.count = [](int32_t* devices, Fault*) { return *devices = 2, true; };
  api.open = [](int32_t, void** device, DeviceInfo*, Fault* f) { return *device = nullptr, answer("open", f); };
  api.close = [](void*) { note("close"); };
  api.allocate = [](void*, uint64_t, void** memory, Fault* f) {
    static std::byte byte;
    return *memory = &byte, answer("allocate", f);
  };
  api.release = [](void*, void*) { note("release"); };
  api.pin = [](void*, uint64_t bytes, void** memory, Fault*) { return *memory = new std::byte[bytes], true; };
  api.unpin = [](void*, void* memory) { delete[] static_cast<std::byte*>(memory); };
  api.launch = [](void*, const Launch*, uint32_t n, Fault* f) { return answer(join("launch ", n), f); };
  api.record = [](void*, const Launch*, uint32_t n, void** graph, Fault* f) {
    static int graphs;
    std::strcpy(f->text, makes_graphs ? "" : reason.c_str());
    return *graph = makes_graphs ? &graphs : nullptr, answer(join("record ", n), f);
  };
  api.replay = [](void*, void*, Fault* f) { return answer("replay", f); };
  api.forget = [](void*, void*) { note("forget"); };
  api.stream = [](void*, void** stream, Fault* f) { return *stream = nullptr, answer("stream", f); };
  api.synchronise = [](void*, Fault* f) { return answer("synchronise", f); };
  return api;
}

std::vector<std::string> taken() { return std::exchange(asked, {}); }
using Words = std::vector<std::string>;

template <class F>
std::string refusal(const F& f) {
  try {
    f();
  } catch (const DeviceError& e) {
    return e.what();
  }
  return "nothing";
}

// Steps of launches whose params are the numbers given.
void step(Tape& tape, const std::vector<int>& numbers, bool repeats = true) {
  tape.begin(repeats);
  for (int n : numbers) {
    FiniteParams p = {};
    p.cols = n;
    tape.add(launch_of(Kernel::finite, {1, 1, 1}, &p));
  }
  tape.flush();
}

const DeviceApi kFake = fake_api();

}  // namespace

TEST(params_are_compared_byte_by_byte_so_nothing_is_between_their_members) {
#if __has_builtin(__builtin_clear_padding)
  const auto is_dense = [](auto params) {
    std::memset(static_cast<void*>(&params), 0xff, sizeof params);
    __builtin_clear_padding(&params);
    const auto* bytes = reinterpret_cast<const unsigned char*>(&params);
    return std::all_of(bytes, bytes + sizeof params, [](unsigned char b) { return b == 0xff; });
  };
  struct Padded {
    int64_t wide;
    char narrow;
  };
  CHECK(!is_dense(Padded()));
#define RWKV_DENSE(name, source, params, ...) CHECK(is_dense(params()));
  RWKV_KERNELS(RWKV_DENSE)
#undef RWKV_DENSE
#endif
}

TEST(a_step_that_comes_again_is_one_graph) {
  const auto context = std::make_shared<Context>(kFake, 0);
  {
    Tape tape(*context, true);
    taken();
    step(tape, {1, 2, 3});
    CHECK((taken() == Words{"launch 1", "launch 1", "launch 1"}));
    step(tape, {1, 2, 3});
    CHECK((taken() == Words{"launch 3"}));
    step(tape, {1, 2, 3});
    CHECK((taken() == Words{"record 3", "replay"}));
    step(tape, {1, 2, 3});
    CHECK((taken() == Words{"replay"}));
  }
  CHECK((taken() == Words{"forget"}));
}

TEST(a_graph_that_cannot_be_made_is_done_without) {
  const auto context = std::make_shared<Context>(kFake, 0);
  Tape tape(*context, true);
  makes_graphs = false;
  for (int i = 0; i < 2; i++) step(tape, {1, 2, 3});
  taken();
  CHECK(context->why_no_graph().empty());
  for (int i = 0; i < 3; i++) step(tape, {1, 2, 3});
  CHECK((taken() == Words{"record 3", "launch 3", "launch 3", "launch 3"}));
  reason = "another";
  for (int i = 0; i < 3; i++) step(tape, {4});
  CHECK(context->why_no_graph() == "the first");
  makes_graphs = true;
}

TEST(steps_that_part_are_told_apart) {
  const auto context = std::make_shared<Context>(kFake, 0);
  Tape tape(*context, true);
  for (int i = 0; i < 3; i++) step(tape, {1, 2, 3});
  taken();
  step(tape, {1, 2, 4, 5});  // what had been equal is launched before what is not
  CHECK((taken() == Words{"launch 2", "launch 1", "launch 1"}));
  step(tape, {1, 2});
  CHECK((taken() == Words{"launch 2"}));
  step(tape, {1, 2, 3, 4});
  CHECK((taken() == Words{"launch 3", "launch 1"}));
  step(tape, {7});
  CHECK((taken() == Words{"launch 1"}));
  for (const std::vector<int>& numbers : {std::vector<int>{1, 2, 4, 5}, {1, 2}, {1, 2, 3, 4}, {7}})
    for (int i = 0; i < 3; i++) step(tape, numbers);
  taken();
  for (const std::vector<int>& numbers : {std::vector<int>{1, 2, 3}, {1, 2, 4, 5}, {1, 2}, {1, 2, 3, 4}, {7}})
    step(tape, numbers);
  CHECK((taken() == Words(5, "replay")));
  step(tape, {1, 2, 3}, false);
  CHECK((taken() == Words(3, "launch 1")));
}

TEST(what_an_error_has_left_is_dropped) {
  const auto context = std::make_shared<Context>(kFake, 0);
  Tape tape(*context, true);
  for (int i = 0; i < 3; i++) step(tape, {1, 2, 3});
  tape.begin(true);
  FiniteParams p = {};
  p.cols = 1;
  tape.add(launch_of(Kernel::finite, {1, 1, 1}, &p));
  taken();
  step(tape, {2, 3});
  CHECK((taken() == Words{"launch 1", "launch 1"}));
  step(tape, {1, 2, 3});
  CHECK((taken() == Words{"replay"}));
}

TEST(the_steps_used_least_are_forgotten) {
  const auto context = std::make_shared<Context>(kFake, 0);
  Tape tape(*context, true);
  for (int i = 0; i < 3; i++) step(tape, {-1});
  for (int n = 0; n < 200; n++) step(tape, {n});
  taken();
  step(tape, {-1});
  CHECK((taken() == Words{"launch 1"}));
  step(tape, {199});
  CHECK((taken() == Words{"launch 1"}));  // a replay without a graph
  step(tape, {199});
  CHECK((taken() == Words{"record 1", "replay"}));
}

TEST(faults_say_what_was_expected_and_found) {
  const auto context = std::make_shared<Context>(kFake, 1);
  next_fault = {Failure::memory, 0, 2'787'100'000, 1'203'000'000, 143'771'000'000, "cudaMalloc"};
  CHECK(refusal([&] { context->allocate(1); }) ==
        "cuda:1: expected 2787.1 MB of memory, found 1203.0 MB free of 143771.0 MB");
  next_fault = {Failure::device, 700, 0, 0, 0, "mix: cudaErrorIllegalAddress: an illegal memory access"};
  CHECK(refusal([&] { context->synchronise(); }) ==
        "cuda:1: mix: cudaErrorIllegalAddress: an illegal memory access; it is lost to this process, which can be "
        "started again");
  next_fault = {Failure::absent, 0, 0, 0, 0, "no code for this device"};
  CHECK(refusal([&] { Context(kFake, 0); }) == "device 'cuda:0': no code for this device");
  next_fault = {};
  CHECK(refusal([&] { Context(kFake, 2); }) == "device 'cuda:2': expected one of 2 devices, from cuda:0 on");
}

TEST(memory_outlives_the_context_that_it_came_from) {
  auto context = std::make_shared<Context>(kFake, 0);
  Memory memory = context->allocate(64);
  context.reset();
  taken();
  memory = {};
  CHECK((taken() == Words{"release", "close"}));
}

TEST(the_calling_thread_uses_afterwards_what_it_has_used_before) {
  const Driver driver = {[](void** context) { return *context = current, 0; },
                         [](void* context) { return current = context, 0; }};
  for (void* before : {static_cast<void*>(nullptr), static_cast<void*>(&theirs)}) {
    current = before;
    const auto keeps = [&](const auto& call) {
      taken();
      call();
      return !taken().empty() && current == before;
    };
    std::shared_ptr<Context> context;
    Memory memory;
    CHECK(keeps([&] { context = std::make_shared<Context>(kFake, 0, driver); }));
    CHECK(keeps([&] { memory = context->allocate(64); }));
    CHECK(keeps([&] { memory = {}; }));
    CHECK(keeps([&] { context->synchronise(); }));
    CHECK(keeps([&] { context->forget(nullptr); }));
    CHECK(keeps([&] { context->visit([](void*) { CHECK(current == &ours); }); }));
    next_fault.failure = Failure::device;
    CHECK(keeps([&] { CHECK_THROWS(context->synchronise(), DeviceError, "it is lost"); }));
    CHECK(keeps([&] { CHECK_THROWS(context->visit([](void*) {}), DeviceError, "it is lost"); }));
    next_fault = {};
    CHECK(keeps([&] { context.reset(); }));
  }
  // Where the driver does not know, it is not told either: it has ended before this process.
  current = &theirs;
  const Driver silent = {[](void**) { return 4; }, [](void* context) { return current = context, 0; }};
  std::make_shared<Context>(kFake, 0, silent)->synchronise();
  CHECK(current == &ours);
}

// It knows of no thread then, and afterwards of this one what the call has made of it.
TEST(the_first_call_of_all_leaves_the_thread_without_a_context) {
  const Driver driver = {[](void** context) { return begun ? (*context = current, 0) : 3; },
                         [](void* context) { return begun ? (current = context, 0) : 3; }};
  for (Failure failure : {Failure::none, Failure::absent}) {
    current = nullptr, begun = false;
    next_fault.failure = failure;
    const std::string said = refusal([&] { std::make_shared<Context>(kFake, 0, driver); });
    next_fault = {};
    CHECK((said == "nothing") == (failure == Failure::none));
    CHECK(begun && current == nullptr);
  }
}

TEST(cublaslt_begins_and_ends_on_its_device) {
  setenv("RWKV_CUBLASLT", RWKV_FAKE_CUBLASLT_FILE, 1);
  const auto context = std::make_shared<Context>(kFake, 0);
  taken();
  {
    const LargeProducts products(*context);
    CHECK(products.description().starts_with(", cublaslt "));
    CHECK(taken() == Words{"stream"});
  }
  CHECK(taken() == Words{"stream"});
  {
    const LargeProducts products(*context);
    taken();
    next_fault.failure = Failure::device;
  }  // of a device that is lost too
  next_fault = {};
  CHECK(taken() == Words{"stream"});
  unsetenv("RWKV_CUBLASLT");
}

TEST(features_are_words) {
  setenv("RWKV_CUDA_FEATURES", "pdl,graphs", 1);
  CHECK(features_of_environment().graphs && features_of_environment().dependent);
  setenv("RWKV_CUDA_FEATURES", "graphs", 1);
  CHECK(features_of_environment().graphs && !features_of_environment().dependent);
  setenv("RWKV_CUDA_FEATURES", "graphs,magic", 1);
  CHECK(refusal(features_of_environment) ==
        "RWKV_CUDA_FEATURES: expected graphs, pdl, cublaslt, nofused and noranks, found 'magic'");
  setenv("RWKV_CUDA_FEATURES", "nofused,pdl", 1);
  CHECK(!features_of_environment().fused && features_of_environment().dependent && features_of_environment().ranks);
  setenv("RWKV_CUDA_FEATURES", "noranks", 1);
  CHECK(!features_of_environment().ranks && features_of_environment().fused);
  unsetenv("RWKV_CUDA_FEATURES");
  CHECK(!features_of_environment().graphs && features_of_environment().fused);
}

CHECK_MAIN
