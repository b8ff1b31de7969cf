// RWKV-6's and 7's recurrences with the products in front of them in one launch, against both one after the other: the
// same bits of everything they leave, through the backend, on a simulated device so small that a block has several
// sequences. And lerps made on the way to products, with a token shift that stays where it is.
#include <filesystem>
#include <fstream>
#include <iterator>
#include <tuple>

#include "backend/backend.h"
#include "core/error.h"
#include "core/platform.h"
#include "cuda_operands.h"

namespace {

constexpr int kHeads = 2, kC = 64 * kHeads, kTokens = 9;
const std::string kTrace = std::filesystem::temp_directory_path() / join("rwkv-decode-", process_id());

// Bytes of a device, as numbers of which it makes nothing.
struct Bytes {
  Backend& backend;
  Memory memory;
  Bytes(Backend& b, size_t bytes) : backend(b), memory(b.allocate((bytes + 63) / 64 * 64)) {}
  Bytes(Backend& b, const std::vector<unsigned char>& bytes) : Bytes(b, bytes.size()) {
    std::vector<unsigned char> all(memory.size);
    std::ranges::copy(bytes, all.begin());
    backend.write(tensor(), reinterpret_cast<const float*>(all.data()));
  }
  Tensor tensor() const {
    const auto n = int64_t(memory.size / sizeof(float));
    return {memory.data.get(), DType::f32, 1, n, n};
  }
  Row read() const {
    Row numbers(memory.size / sizeof(float));
    backend.read(tensor(), numbers.data());
    return numbers;
  }
};

struct Case {
  int version = 7;
  Format low = Format::f16;
  DType state = DType::f32;
  int tokens = 1;
  bool first = false;     // layer
  bool in_place = false;  // slots of the states
};

// What is left, which is y as it lies, v_first, and the states; and the kernels that made it.
struct Results {
  std::vector<Row> numbers;
  std::vector<std::string> kernels;
};

std::shared_ptr<Backend> open(const char* schedule, const char* features) {
  setenv("RWKV_CUDA_LIBRARY", simulator(std::string_view(schedule).starts_with(kRace)), 1);
  setenv("RWKV_CUSIM", join(schedule, ",trace:", kTrace).c_str(), 1);
  setenv("RWKV_CUDA_FEATURES", features, 1);
  auto backend = open_backend("cuda:0", {});
  unsetenv("RWKV_CUDA_FEATURES");
  backend->prepare({.width = kC, .ffn = kC, .rows = 64, .results = 8, .vocab = 4, .heads = kHeads, .head_size = 64});
  return backend;
}

Results results(const char* schedule, const char* features, const Case& c, uint64_t seed) {
  const auto backend = open(schedule, features);
  Backend& b = *backend;
  Random random(seed);
  std::vector<Memory> kept;
  const auto rows = [&](int count, int cols, float scale) {
    kept.push_back(b.allocate(size_t(count) * size_t(b.row_stride(cols)) * sizeof(float)));
    const Tensor x{kept.back().data.get(), DType::f32, count, cols, b.row_stride(cols)};
    b.write(x, random.row(size_t(count * cols), scale).data());
    return x;
  };
  // Of fewer blocks of k than warps, and of more, but no multiple.
  std::vector<LinearJob> jobs;
  for (int rank : {130, 300, 300, 5}) {
    if (jobs.size() == (c.version == 6 ? 1 : c.first ? 3 : 4)) break;
    Linear w{nullptr, c.low, kC, rank};
    kept.push_back(b.allocate(b.linear_bytes(w)));
    w.data = kept.back().data.get();
    const Row numbers = random.row(size_t(kC * rank), 0.3f);
    b.pack(w, {DType::f32, 0, [&](int64_t row, int64_t count, std::byte* to) {
                 std::memcpy(to, numbers.data() + row * rank, size_t(count * rank) * sizeof(float));
               }});
    Row x = random.row(size_t(c.tokens * rank));
    for (float& v : x) v = as_operand(Stored(uint8_t(c.low)), v);
    const Bytes operand(b, DeviceOperand::laid_out(Stored(uint8_t(c.low)), c.tokens, rank, x));
    kept.push_back(operand.memory);
    jobs.push_back({{operand.memory.data.get(), c.low, c.tokens, rank}, w, rows(c.tokens, kC, 1)});
  }
  const auto vector = [&] { return rows(1, kC, 1); };
  const auto activations = [&] { return rows(c.tokens, kC, 1); };
  const Tensor v_first = activations();
  const auto low = [&](size_t job) { return job < jobs.size() ? jobs[job].y : Tensor{}; };
  const Wkv6 w6{activations(), activations(),
                activations(), activations(),
                low(0),        vector(),
                vector(),      {vector(), vector(), 64e-5f},
                kHeads,        64};
  const Wkv7 w7{activations(), low(0),   activations(), activations(), low(1),
                low(2),        low(3),   v_first,       vector(),      vector(),
                vector(),      vector(), vector(),      vector(),      {vector(), vector(), 64e-5f},
                kHeads,        64};
  // Sequences may share a state that they go on from, where they do not write to it.
  const size_t slot = size_t(kHeads) * 64 * 64 * (c.state == DType::f16 ? 2 : 4);
  std::vector<Memory> before, after;
  std::vector<const std::byte*> src;
  std::vector<std::byte*> dst;
  std::vector<int32_t> start(1), token;
  for (int t = 0; t < c.tokens; t++) {
    if (c.in_place || t % 2 == 0) {
      const Row state = random.row(size_t(kHeads) * 64 * 64);
      const Row lying = c.state == DType::f16 ? in_halves(state) : state;
      const auto* bytes = reinterpret_cast<const unsigned char*>(lying.data());
      before.push_back(Bytes(b, std::vector<unsigned char>(bytes, bytes + slot)).memory);
    }
    after.push_back(c.in_place ? before.back() : b.allocate(slot));
    src.push_back(before.back().data.get()), dst.push_back(after.back().data.get());
    start.push_back(t + 1), token.push_back(t);
  }
  const Bytes y(b, b.operand_bytes(c.low, c.tokens, kC));
  const Batch batch{.token = token, .start = start, .src = src, .dst = dst};
  const Operand out{y.memory.data.get(), c.low, c.tokens, kC};
  std::filesystem::remove(kTrace);
  b.begin(batch);
  if (c.version == 6)
    b.linear_wkv6(jobs[0], w6, {0, c.state}, batch, out);
  else
    b.linear_wkv7(jobs, w7, {0, c.state}, batch, out);
  b.end();
  std::vector<Row> all{y.read()};
  std::ifstream trace(kTrace);
  const std::vector<std::string> kernels{std::istream_iterator<std::string>(trace), {}};
  Row values(size_t(c.tokens * kC));
  b.read(v_first, values.data());
  all.push_back(values);
  for (const Memory& state : after) {
    Row numbers(slot / sizeof(float));
    b.read({state.data.get(), DType::f32, 1, int64_t(numbers.size()), int64_t(numbers.size())}, numbers.data());
    all.push_back(numbers);
  }
  std::filesystem::remove(kTrace);
  return {all, kernels};
}

std::string words(const std::vector<std::string>& all) {
  std::string text;
  for (const std::string& word : all) text += text.empty() ? word : " " + word;
  return text;
}

bool same_bytes(const std::vector<Row>& a, const std::vector<Row>& b) {
  bool all = a.size() == b.size();
  for (size_t i = 0; all && i < a.size(); i++)
    all = a[i].size() == b[i].size() && std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(float)) == 0;
  return all;
}

}  // namespace

TEST(one_launch_has_the_bits_of_two) {
  Random random;
  for (const char* schedule : schedules())
    for (auto [low, name] : {std::pair{Format::f16, "f16"}, {Format::bf16, "bf16"}, {Format::f32, "f32"}})
      for (Case c : {Case{.tokens = kTokens},
                     {.state = DType::f16, .tokens = kTokens, .in_place = true},
                     {.state = DType::f16, .first = true},
                     {.tokens = 3, .first = true, .in_place = true},
                     {.version = 6, .tokens = kTokens},
                     {.version = 6, .state = DType::f16, .tokens = kTokens, .in_place = true},
                     {.version = 6}}) {
        if (low == Format::bf16 && !multiplies_bf16()) continue;
        c.low = low;
        const uint64_t seed = random.bits();
        const std::string wkv = join("wkv", c.version), state = c.state == DType::f16 ? "_state16" : "";
        const Results two = results("order:fwd", "noranks", c, seed);
        CHECK(words(two.kernels) == join("small_", name, c.tokens > 8 ? "_2 " : "_1 ", wkv, "_64", state));
        for (const char* processors : {"processors:132", "processors:1", "processors:4"}) {  // groups of 1, 8 and 3
          const Results one = results(join(schedule, ",", processors).c_str(), "", c, seed);
          CHECK(words(one.kernels) == join(wkv, "_decode_", name, state));
          CHECK(same_bytes(one.numbers, two.numbers));
        }
      }
}

// Sequences of a row each, and two products of lerps of theirs.
struct MixCase {
  Format format = Format::f16, second = Format::f16;  // of the weights
  int cols = kC, tokens = 2;
  int place = 0;  // floats in front of the part in a slot
  bool in_place = false;
  Backend::Shift write = Backend::Shift::write;
  bool dynamic = false, wild = false;  // wild: with numbers too large for a half, or infinite, or none
};
// What the products are, and what lies in front of and behind the step.
struct Shifted {
  Row y, src, dst;
  std::vector<std::string> kernels;
};
constexpr int kOutputs = 40;

Shifted shifted(const char* schedule, const char* features, const MixCase& c, uint64_t seed) {
  const auto backend = open(schedule, features);
  Backend& b = *backend;
  Random random(seed);
  std::vector<Memory> kept;
  const auto rows = [&](int count, int cols, const Row& numbers) {
    kept.push_back(b.allocate(size_t(count) * size_t(b.row_stride(cols)) * sizeof(float)));
    const Tensor x{kept.back().data.get(), DType::f32, count, cols, b.row_stride(cols)};
    b.write(x, numbers.data());
    return x;
  };
  const auto vector = [&] {
    Row numbers = random.row(size_t(c.cols));
    if (c.wild) numbers[3] *= 1e6f;
    return rows(1, c.cols, numbers);
  };
  const auto activations = [&] { return rows(c.tokens, c.cols, random.row(size_t(c.tokens * c.cols))); };
  const Tensor x = activations();
  const Norm norm{vector(), vector(), 1e-5f};
  std::vector<MixJob> mixes;
  std::vector<LinearJob> jobs;
  for (Format format : {c.format, c.second}) {
    Linear w{nullptr, format, kOutputs, c.cols};
    kept.push_back(b.allocate(b.linear_bytes(w)));
    w.data = kept.back().data.get();
    const Row numbers = random.row(size_t(kOutputs * c.cols), 0.3f);
    b.pack(w, {DType::f32, 0, [&](int64_t row, int64_t count, std::byte* to) {
                 std::memcpy(to, numbers.data() + row * c.cols, size_t(count * c.cols) * sizeof(float));
               }});
    const Format operand = b.operand_format(format);
    kept.push_back(Bytes(b, b.operand_bytes(operand, c.tokens, c.cols)).memory);
    const Operand lerp{kept.back().data.get(), operand, c.tokens, c.cols};
    mixes.push_back({vector(), lerp, c.dynamic ? activations() : Tensor{}});
    jobs.push_back({lerp, w, rows(c.tokens, kOutputs, Row(size_t(c.tokens * kOutputs)))});
  }
  struct Slots {
    std::vector<std::byte*> begin;
    std::vector<Tensor> part;
  };
  const auto slots = [&](float behind) {  // the part
    Slots all;
    for (int i = 0; i < c.tokens; i++) {
      const int count = rounded_up(c.place + c.cols, 16);
      kept.push_back(b.allocate(size_t(count) * sizeof(float)));
      all.begin.push_back(kept.back().data.get());
      b.write({all.begin.back(), DType::f32, 1, count, count}, Row(size_t(count), behind).data());
      all.part.push_back({all.begin.back() + size_t(c.place) * sizeof(float), DType::f32, 1, c.cols, c.cols});
    }
    return all;
  };
  const Slots src = slots(kNan), dst = c.in_place ? src : slots(0);
  Row shift = random.row(size_t(c.tokens * c.cols));
  if (c.wild) shift[0] = kInf, shift[size_t(c.cols + 1)] = kNan, shift[size_t(2 * c.cols + 2)] = -1e30f;
  for (int i = 0; i < c.tokens; i++) b.write(src.part[size_t(i)], shift.data() + i * c.cols);
  const std::vector<const std::byte*> from(src.begin.begin(), src.begin.end());
  std::vector<int32_t> token, start{0};
  for (int i = 0; i < c.tokens; i++) token.push_back(i), start.push_back(i + 1);
  const Batch batch{.token = token, .start = start, .src = from, .dst = dst.begin};
  b.synchronise();
  std::filesystem::remove(kTrace);
  b.begin(batch);
  b.mix_linear(x, norm, mixes, size_t(c.place) * sizeof(float), batch, jobs, c.write);
  b.end();
  b.synchronise();
  std::ifstream trace(kTrace);
  const std::vector<std::string> kernels{std::istream_iterator<std::string>(trace), {}};
  const auto read = [&](std::span<const Tensor> all) {
    Row numbers;
    for (const Tensor& t : all) {
      Row some(size_t(t.rows * t.cols));
      b.read(t, some.data());
      std::ranges::copy(some, std::back_inserter(numbers));
    }
    return numbers;
  };
  const Tensor y[] = {jobs[0].y, jobs[1].y};
  std::filesystem::remove(kTrace);
  return {read(y), read(src.part), read(dst.part), kernels};
}

// Equal, or neither a number.
bool same_numbers(const Row& a, const Row& b) {
  return std::ranges::equal(a, b, [](float v, float w) { return v == w || (std::isnan(v) && std::isnan(w)); });
}

// RWKV-6's first lerp must not replace what its second still reads.
TEST(a_token_shift_is_written_or_kept_whoever_makes_the_lerp) {
  using Shift = Backend::Shift;
  Random random;
  const Row nothing(2 * kC);
  for (const char* schedule : schedules()) {
    const uint64_t seed = random.bits();
    const Shifted last = shifted("order:fwd", "nofused", {}, seed);
    CHECK(last.dst != nothing && last.dst != last.src);
    for (const char* features : {"", "nofused"})
      for (bool in_place : {false, true})
        for (Shift write : {Shift::keep, Shift::write})
          for (int place : {0, 3}) {  // numbers that can be read by fours, and such that cannot
            const Shifted found =
                shifted(schedule, features, {.place = place, .in_place = in_place, .write = write}, seed);
            CHECK(words(found.kernels) == (*features || in_place ? "mix small_f16_1" : "mixed_f16"));
            CHECK(found.y == last.y);
            CHECK(found.dst == (write == Shift::write ? last.dst : in_place ? last.src : nothing));
            CHECK(in_place || found.src == last.src);
          }
  }
}

// Of fewer columns than all warps' lanes take at once, of more for some warps than for others, and of many.
TEST(lerps_made_in_a_product_have_the_bits_of_those_made_before) {
  Random random;
  for (const char* schedule : schedules())
    for (auto [format, second, kernel] : {std::tuple{Format::f16, Format::f16, "mixed_f16"},
                                          {Format::bf16, Format::bf16, "mixed_bf16"},
                                          {Format::i8, Format::f16, "mixed_i8"},
                                          {Format::i4, Format::bf16, "mixed_i4"}})
      for (MixCase c : {MixCase{.cols = 101, .tokens = 3, .dynamic = true},
                        {.cols = 836, .tokens = 8, .wild = true},
                        {.cols = 1410, .tokens = 3, .place = 1, .wild = true},
                        {.cols = 1600, .tokens = 1},
                        {.cols = 2304, .tokens = 2, .dynamic = true}}) {
        c.format = format, c.second = second;
        if (second == Format::bf16 && !multiplies_bf16()) continue;
        const uint64_t seed = random.bits();
        const Shifted before = shifted("order:fwd", "nofused", c, seed), found = shifted(schedule, "", c, seed);
        CHECK(words(found.kernels) == kernel);
        CHECK(same_numbers(found.y, before.y));
        CHECK(same_numbers(found.dst, before.dst) && same_numbers(found.src, before.src));
      }
}

CHECK_MAIN
