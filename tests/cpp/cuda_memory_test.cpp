// Rows between the host and a simulated device, through the backend: more than go at a time, and wider ones.
#include "backend/backend.h"
#include "cuda_operands.h"

namespace {

std::shared_ptr<Backend> open(int64_t width) {
  setenv("RWKV_CUDA_LIBRARY", simulator(), 1);
  setenv("RWKV_CUSIM", "stream:late", 1);
  auto backend = open_backend("cuda:0", {});
  backend->prepare({.width = width, .rows = 8, .results = 8, .vocab = 4, .heads = 1, .head_size = 4});
  return backend;
}

}  // namespace

TEST(rows_come_and_go_in_pieces) {
  Random random;
  for (auto [rows, cols] : {std::pair{3000, 1000}, {1, 7}, {1049, 1001}, {3, 1'100'000}}) {
    const auto backend = open(cols);
    const int64_t ld = backend->row_stride(cols);
    const Memory memory = backend->allocate(size_t(rows * ld) * sizeof(float));
    const Tensor x{memory.data.get(), DType::f32, rows, cols, ld};
    const Row numbers = random.row(size_t(rows) * size_t(cols));
    Row found(numbers.size(), kNan);
    backend->write(x, numbers.data());
    backend->read(x, found.data());
    CHECK(::same(found, numbers));
    // Whoever writes rows writes their statistics, with which a norm of them needs no look at all of a row.
    const Tensor last{x.row(rows - 1), DType::f32, 1, ld, ld};
    Row row(static_cast<size_t>(ld));
    backend->read(last, row.data());
    const Row expected = Rows::spread(1, cols, Row(numbers.end() - cols, numbers.end()));
    for (int64_t i = (cols + 15) / 16 * 16; i < (cols + 15) / 16 * 18; i++)
      CHECK(near(double(row[size_t(i)]), double(expected[size_t(i)]), 1e-5));
  }
}

TEST(rows_wider_than_was_said_are_refused) {
  const auto backend = open(10);
  const Memory memory = backend->allocate(size_t(32) << 20);
  const Tensor x{memory.data.get(), DType::f32, 2, 2'000'000, 2'000'032};
  Row numbers(4'000'000);
  CHECK_THROWS(backend->read(x, numbers.data()), std::logic_error, "rows wider than what was prepared for");
}

CHECK_MAIN
