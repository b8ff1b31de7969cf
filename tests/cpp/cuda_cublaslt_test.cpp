// Products through the library of cuBLASLt, in whose place one of the tests computes on the host, against the same
// backend's own: every way to go on from the sums, shapes that fill no block, and failures.
#include <filesystem>
#include <fstream>

#include "backend/backend.h"
#include "core/error.h"
#include "core/platform.h"
#include "cuda_operands.h"

namespace {

using namespace rwkv;

const std::string kLog = std::filesystem::temp_directory_path() / join("rwkv-cublaslt-", rwkv::process_id());

std::shared_ptr<Backend> open(bool other_library, const char* schedule, Format format = Format::f16) {
  setenv("RWKV_CUDA_LIBRARY", simulator(std::strcmp(schedule, kRace) == 0), 1);
  setenv("RWKV_CUSIM", schedule, 1);
  setenv("RWKV_CUBLASLT", RWKV_FAKE_CUBLASLT_FILE, 1);
  setenv("FAKE_CUBLASLT_LOG", kLog.c_str(), 1);
  setenv("RWKV_CUDA_FEATURES", other_library ? "cublaslt" : "", 1);
  auto backend = open_backend("cuda:0", {});
  backend->prepare({.width = 300, .ffn = 530, .rows = 140, .results = 8, .vocab = 4, .activations = format});
  return backend;
}

// A line for each product since the last call. The backend goes, and with it all that it has made there.
std::vector<std::string> products_of(std::shared_ptr<Backend>& other) {
  const bool had_one = other->description().find("cublasLtCreate:") == std::string::npos;
  other.reset();
  std::vector<std::string> lines;
  std::ifstream file(kLog);
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  std::filesystem::remove(kLog);
  CHECK(!had_one || (!lines.empty() && lines.back() == "destroyed, left 0"));
  if (!lines.empty()) lines.pop_back();
  return lines;
}

// Bytes of a device, as numbers of which it makes nothing.
struct Bytes {
  std::shared_ptr<Backend> backend;
  Memory memory;
  Bytes(std::shared_ptr<Backend> b, size_t bytes)
      : backend(std::move(b)), memory(backend->allocate((bytes + 3) / 4 * 4)) {}
  Tensor tensor() const {
    const auto n = int64_t(memory.size / sizeof(float));
    return {memory.data.get(), DType::f32, 1, n, n};
  }
  void write(const void* from) const { backend->write(tensor(), static_cast<const float*>(from)); }
  std::vector<unsigned char> read() const {
    std::vector<unsigned char> bytes(memory.size);
    backend->read(tensor(), reinterpret_cast<float*>(bytes.data()));
    return bytes;
  }
};

struct Case {
  Format format;
  bool by_columns;
  int tokens, n, k;
  Row w, x, old, gate;
};

// What a product leaves: y, or the sums, or the operand as numbers.
struct Way {
  Act act;
  bool sum, out, gate;
};
constexpr Way kWays[] = {{Act::none, false, false, false},   {Act::tanh, false, false, false},
                         {Act::sigmoid, false, true, false}, {Act::relu2, false, true, true},
                         {Act::none, true, false, false},    {Act::none, true, false, true}};

std::vector<Row> results(const std::shared_ptr<Backend>& b, const Case& c) {
  const Stored f = Stored(uint8_t(c.format));
  Linear w{nullptr, c.format, c.n, c.k, c.by_columns};
  const Bytes weights(b, b->linear_bytes(w));
  w.data = weights.memory.data.get();
  b->pack(w, {DType::f32, 0, [&](int64_t row, int64_t count, std::byte* to) {
                std::memcpy(to, c.w.data() + row * c.k, size_t(count * c.k) * sizeof(float));
              }});
  const Bytes operand(b, b->operand_bytes(c.format, c.tokens, c.k));
  operand.write(DeviceOperand::laid_out(f, c.tokens, c.k, c.x).data());
  const int64_t ld = b->row_stride(c.n);
  const size_t rows = size_t(c.tokens) * size_t(ld) * sizeof(float);
  const Bytes gate(b, rows);
  const auto tensor = [&](const Bytes& bytes) {
    return Tensor{bytes.memory.data.get(), DType::f32, c.tokens, c.n, ld};
  };
  b->write(tensor(gate), c.gate.data());
  std::vector<Row> all;
  for (const Way& way : kWays) {
    const Bytes y(b, rows), out(b, b->operand_bytes(c.format, c.tokens, c.n));
    b->write(tensor(y), c.old.data());
    LinearJob job{{operand.memory.data.get(), c.format, c.tokens, c.k}, w, tensor(y), way.act};
    if (way.out) job.out = {out.memory.data.get(), c.format, c.tokens, c.n};
    if (way.sum) job.sum = tensor(y);
    if (way.gate) job.gate = tensor(gate);
    b->linear(std::span(&job, 1));
    Row numbers(size_t(c.tokens) * size_t(c.n));
    if (way.out) {
      const auto bytes = out.read();
      for (int i = 0; i < c.tokens * rounded_up(c.n, 64); i++) {
        const int t = i / rounded_up(c.n, 64), col = i % rounded_up(c.n, 64);
        uint16_t h;
        std::memcpy(&h, &bytes[cuda::operand_at(f, rounded_up(c.tokens, 8), t, col)], 2);
        const float v = f == Stored::f16 ? f16_to_f32(h) : bf16_to_f32(h);
        if (col < c.n)
          numbers[size_t(t * c.n + col)] = v;
        else
          CHECK(v == 0);
      }
    } else {
      b->read(tensor(y), numbers.data());
    }
    all.push_back(numbers);
    if (way.sum) {  // and their statistics
      Row spread(size_t(c.tokens) * size_t(ld));
      const auto bytes = y.read();
      std::memcpy(spread.data(), bytes.data(), rows);
      const Row expected = Rows::spread(c.tokens, c.n, numbers);
      for (int i = 0; i < c.tokens * int(ld); i++)
        if (const int col = i % int(ld) - rounded_up(c.n, 16); col >= 0 && col < (c.n + 15) / 16 * 2)
          CHECK(near(double(spread[size_t(i)]), double(expected[size_t(i)]), 1e-5));
    }
  }
  return all;
}

Case random_case(Random& random, Format format, bool by_columns, int tokens, int n, int k) {
  Case c{format,
         by_columns,
         tokens,
         n,
         k,
         random.row(size_t(n * k)),
         random.row(size_t(tokens * k), 0.1f),
         random.row(size_t(tokens * n)),
         random.row(size_t(tokens * n))};
  for (float& v : c.x) v = rounded(format, v);
  return c;
}

void check_same(const std::vector<Row>& found, const std::vector<Row>& expected, Format format) {
  for (size_t i = 0; i < found.size(); i++) {
    const double step = !kWays[i].out ? 0 : format == Format::f16 ? 0x1p-11 : 0x1p-8;
    CHECK(distance(found[i], expected[i]) < 1e-5 + 2 * step);
  }
}

}  // namespace

TEST(products_of_another_library_are_our_own) {
  Random random;
  struct Shape {
    const char* schedule;
    int tokens, n, k;
  };
  const Shape shapes[] = {{"stream:late", 65, 300, 260}, {"order:rand:7,greedy", 130, 256, 530}, {kRace, 72, 530, 256}};
  int turn = 0;  // each of them for one order of a format's weights, as the simulator takes its time
  for (Format format : {Format::f16, Format::bf16})
    for (bool by_columns : {false, true}) {
      if (format == Format::bf16 && !multiplies_bf16()) continue;
      const auto [schedule, tokens, n, k] = shapes[turn++ % 3];
      const Case c = random_case(random, format, by_columns, tokens, n, k);
      auto other = open(true, schedule, format), own = open(false, schedule, format);
      CHECK(other->description() == "cuda:0 simulator, cublaslt 13.1.0" && own->description() == "cuda:0 simulator");
      check_same(results(other, c), results(own, c), format);
      const auto log = products_of(other);
      // Rows of ours are columns of a transposed matrix there; columns of ours are columns there, as they lie.
      const std::string kind = join(by_columns ? "columns " : "rows ", n, " x ", rounded_up(k, 64), " x ", tokens,
                                    " ld ", rounded_up(by_columns ? n : k, 64), " ", rounded_up(k, 64), " "),
                        type = format == Format::f16 ? " f16" : " bf16";
      CHECK(log.size() == std::size(kWays));
      for (size_t i = 0; i < log.size(); i++)
        CHECK(log[i] == kind + join(i == 0 ? int(own->row_stride(n)) : rounded_up(n, 64), type));
    }
}

TEST(what_it_is_not_for_goes_its_own_way) {
  Random random;
  auto other = open(true, "stream:late");
  for (auto [tokens, n, k] : {std::array{64, 300, 260}, {65, 255, 260}, {65, 300, 255}, {65, 600, 600}})
    results(other, random_case(random, Format::f16, false, tokens, n, k));
  results(other, random_case(random, Format::i8, false, 65, 300, 260));
  CHECK(products_of(other).empty());
}

TEST(a_library_that_fails_is_not_asked_again) {
  Random random;
  const Case c = random_case(random, Format::f16, false, 65, 300, 260);
  const auto expected = results(open(false, "stream:late"), c);
  struct Failing {
    const char *what, *said;
    size_t products;
  };
  for (auto [what, said, products] :
       {Failing{"Create", "cublasLtCreate: expected status 0, found 14", 0},
        {"MatmulDescCreate", "cublasLtMatmulDescCreate: expected status 0, found 14", 0},
        {"MatrixLayoutCreate", "cublasLtMatrixLayoutCreate: expected status 0, found 14", 0},
        {"MatmulPreferenceCreate", "cublasLtMatmulPreferenceCreate: expected status 0, found 14", 0},
        {"MatmulAlgoGetHeuristic", "cublasLtMatmulAlgoGetHeuristic: expected status 0, found 14", 0},
        {"NoAlgorithm", "cublasLtMatmulAlgoGetHeuristic: expected a way to multiply 300 x 320 x 65, found none", 0},
        {"Matmul:3", "cublasLtMatmul: expected status 0, found 14", 2}}) {
    setenv("FAKE_CUBLASLT_FAIL", what, 1);
    auto other = open(true, "stream:late");
    check_same(results(other, c), expected, Format::f16);
    unsetenv("FAKE_CUBLASLT_FAIL");
    check_same(results(other, c), expected, Format::f16);
    const std::string place = std::string_view(what) == "Create" ? RWKV_FAKE_CUBLASLT_FILE ": " : "";
    CHECK(other->description() == join("cuda:0 simulator, without cublaslt: ", place, said));
    CHECK(products_of(other).size() == products);
  }
}

TEST(why_there_is_none_is_said) {
  const auto said = [](const char* name, const char* path) {
    open(true, "stream:late");
    setenv(name, path, 1);
    setenv("RWKV_CUDA_FEATURES", "cublaslt", 1);
    return open_backend("cuda:0", {})->description();
  };
  CHECK(said("RWKV_CUBLASLT", "/nowhere/libcublasLt.so")
            .find("without cublaslt: /nowhere/libcublasLt.so: cannot load /nowhere/libcublasLt.so: ") !=
        std::string::npos);
  CHECK(said("RWKV_CUBLASLT", RWKV_CUSIM_FILE) == "cuda:0 simulator, without cublaslt: " RWKV_CUSIM_FILE
                                                  ": expected cublasLtGetVersion, found none");
  CHECK(said("FAKE_CUBLASLT_VERSION", "110900") == "cuda:0 simulator, without cublaslt: " RWKV_FAKE_CUBLASLT_FILE
                                                   ": expected cuBLASLt 12 or 13, found version 110900");
  unsetenv("FAKE_CUBLASLT_VERSION");
  std::filesystem::remove(kLog);
}

CHECK_MAIN
