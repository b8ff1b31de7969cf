// Packed weights: every number where layout.h says, and of int8 and int4 the one that the CPU has.
#include <set>

#include "cuda_weights.h"

TEST(every_element_has_a_place_of_its_own) {
  constexpr int kN = 64, kK = 128;
  for (Stored f : kStored)
    for (Order order : {Order::rows, Order::columns}) {
      const int size = std::max(1, cuda::bits_of(f) / 8);
      std::set<size_t> places;
      size_t end = 0;
      for (int row = 0; row < kN; row++)
        for (int col = 0; col < kK; col++) {
          const size_t at = cuda::weight_at(f, order, kN, kK, row, col);
          CHECK(at % size_t(size) == 0 && (order == Order::rows || at >= cuda::kHead));
          places.insert(at * 2 + (f == Stored::i4 && cuda::high_nibble(order, row, col)));
          end = std::max(end, at + size_t(size));
        }
      CHECK(places.size() == kN * kK);
      if (cuda::quantised(f))
        for (int row = 0; row < kN; row++)
          for (int group = 0; group < kK / 64; group++) {
            const size_t at = cuda::scale_at(f, order, kN, kK, row, group);
            CHECK(at >= end && places.insert(at * 2).second);
          }
      CHECK(*places.rbegin() / 2 + size_t(cuda::quantised(f) ? 2 : size) <= cuda::weight_bytes(f, order, kN, kK));
    }
}

TEST(operands_and_rows_do_not_overlap) {
  for (Stored f : kOperands) {
    std::set<size_t> places;
    for (int token = 0; token < 16; token++)
      for (int col = 0; col < 128; col++) places.insert(cuda::operand_at(f, 16, token, col));
    CHECK(places.size() == 16 * 128 && *places.rbegin() < cuda::operand_bytes(f, 16, 128));
  }
  for (int cols = 1; cols < 300; cols++) {
    const int spans = (cols + 15) / 16;
    CHECK(cuda::statistics_at(cols, 0) >= cols && cuda::statistics_at(cols, spans) <= cuda::row_stride(cols));
  }
}

TEST(packed_weights_are_those_of_the_definition) {
  Random random;
  for (const char* schedule : schedules())
    for (Stored f : kStored)
      for (Order order : {Order::rows, Order::columns})
        for (Stored dtype : kOperands)
          for (auto [n, k] : {std::pair{1, 1}, {5, 70}, {37, 64}, {64, 200}, {83, 128}}) {
            Device d(schedule);
            const Weights w(d, random, f, order, n, k, dtype);
            CHECK(w.unpack() == w.values);
            CHECK(!w.marked_not_finite());
          }
}

TEST(ties_zeros_and_tiny_groups_are_quantised_as_on_the_cpu) {
  for (const char* schedule : schedules())
    for (Stored f : {Stored::i8, Stored::i4})
      for (Order order : {Order::rows, Order::columns}) {
        Device d(schedule);
        Row x(3 * 256);
        x[70] = 2, x[75] = -2, x[64] = 1;            // the first of several decides the sign of int4's scale
        x[128 + 9] = -3, x[128 + 2] = 3;             // out of order
        x[192] = 1e-38f, x[193] = 1e-39f;            // a scale that would be denormal
        x[256 + 1] = 200e-38f, x[256 + 2] = 9e-39f;  // a denormal that would be 1
        x[384] = 5e-38f;                             // a normal number whose scale is not
        for (int i = 0; i < 64; i++) x[size_t(320 + i)] = float(i) + 0.5f;  // halves between two numbers
        x[512 + 63] = -1;
        const Weights w(d, f, order, 3, 256, Stored::f32, x);
        CHECK(w.unpack() == w.values);
      }
}

TEST(what_is_not_finite_is_kept_and_marked) {
  for (const char* schedule : schedules())
    for (Stored f : kStored)
      for (Order order : {Order::rows, Order::columns})
        for (float bad : {kNan, kInf, -kInf}) {
          Device d(schedule);
          Row x(5 * 70, 1.0f);
          x[4 * 70 + 66] = bad;
          const Weights w(d, f, order, 5, 70, Stored::f32, x);
          const Row found = w.unpack();
          for (int i = 0; i < 5 * 70; i++) {
            const bool hit = cuda::quantised(f) ? i >= 4 * 70 + 64 : i == 4 * 70 + 66;
            CHECK(std::isfinite(found[size_t(i)]) != hit);
          }
          CHECK(w.marked_not_finite() == (order == Order::columns));
        }
}

TEST(pieces_of_a_matrix_make_the_whole) {
  Random random;
  for (const char* schedule : schedules())
    for (Stored f : kStored)
      for (Order order : {Order::rows, Order::columns}) {
        Device d(schedule);
        const Row x = random.row(83 * 70);
        const Weights whole(d, f, order, 83, 70, Stored::f32, x), pieces(d, f, order, 83, 70, Stored::f32, x, 32);
        CHECK(whole.bytes.read() == pieces.bytes.read());
      }
}

CHECK_MAIN
