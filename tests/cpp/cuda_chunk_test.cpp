// The chunked recurrence of RWKV-7 against the serial kernel, whose own test compares it with the CPU; and a sequence's
// bits in any batch.
#include "cuda_operands.h"

namespace {

using cuda::Wkv7Chunk;
using cuda::Wkv7Run;

struct Inputs {
  std::vector<int> lengths;
  int heads, tokens = 0, c;
  bool first;  // layer
  Row r, w, k, v, a, g, v_mix, v_first;
  Row w0, a0, v0, k_k, k_a, r_k, ln_w, ln_b;
  std::vector<Row> states;

  Inputs(Random& random, std::vector<int> all, int count, bool first_layer)
      : lengths(std::move(all)), heads(count), c(64 * count), first(first_layer) {
    for (int n : lengths) tokens += n;
    for (Row* x : {&r, &w, &k, &v, &a, &g, &v_mix, &v_first}) *x = random.row(size_t(tokens * c), 2);
    for (Row* x : {&w0, &a0, &v0, &k_k, &k_a, &r_k, &ln_w, &ln_b}) *x = random.row(size_t(c));
    for (size_t s = 0; s < lengths.size(); s++) states.push_back(random.row(size_t(4 + heads * 64 * 64)));
  }
  // One sequence of them alone.
  Inputs only(size_t s) const {
    Inputs one = *this;
    int begin = 0;
    for (size_t i = 0; i < s; i++) begin += lengths[i];
    for (Row* x : {&one.r, &one.w, &one.k, &one.v, &one.a, &one.g, &one.v_mix, &one.v_first})
      *x = Row(x->begin() + begin * c, x->begin() + (begin + lengths[s]) * c);
    one.lengths = {lengths[s]}, one.tokens = lengths[s], one.states = {states[s]};
    return one;
  }
};

struct Result {
  Row y, v_first;
  std::vector<Row> states;
};
bool same(const Result& a, const Result& b) {
  bool all = ::same(a.y, b.y) && ::same(a.v_first, b.v_first) && a.states.size() == b.states.size();
  for (size_t s = 0; all && s < a.states.size(); s++) all = ::same(a.states[s], b.states[s]);
  return all;
}
bool close(const Result& found, const Result& expected, double tolerance) {
  double far = distance(found.y, expected.y);
  bool all = ::same(found.v_first, expected.v_first) && far < tolerance;
  for (size_t s = 0; s < found.states.size(); s++) {
    const double d = distance(found.states[s], expected.states[s]);
    if (!(d < tolerance)) all = false;
    if (std::getenv("RWKV_SHOW")) std::printf("state %.2g ", d);
  }
  if (std::getenv("RWKV_SHOW") || !all) std::printf("y %.2g\n", far);
  return all;
}

// Sequences of `from` rows and more in chunks, the others serially.
Result on_device(const char* schedule, const Inputs& in, int from, bool in_place, Stored format = Stored::f32,
                 bool halves = false) {
  Device d(schedule);
  const Buffer<float> w0(d, in.w0), a0(d, in.a0), v0(d, in.v0), k_k(d, in.k_k), k_a(d, in.k_a), r_k(d, in.r_k),
      ln_w(d, in.ln_w), ln_b(d, in.ln_b);
  std::vector<Row> states = in.states;
  if (halves) std::ranges::transform(states, states.begin(), in_halves);
  const Sequences batch(d, in.lengths, states, in_place);
  const auto rows = [&](const Row& x) { return Rows(d, in.tokens, in.c, x); };
  const Rows r = rows(in.r), w = rows(in.w), k = rows(in.k), v = rows(in.v), a = rows(in.a), g = rows(in.g),
             v_mix = rows(in.v_mix), v_first = rows(in.first ? Row(in.v.size(), kNan) : in.v_first);
  const DeviceOperand y(d, format, in.tokens, in.c);

  std::vector<int32_t> serial;
  std::vector<Wkv7Chunk> chunks;
  std::vector<Wkv7Run> runs;
  for (int s = 0, row = 0; s < int(in.lengths.size()); row += in.lengths[size_t(s)], s++) {
    const int n = in.lengths[size_t(s)];
    if (n < from) {
      serial.push_back(s);
      continue;
    }
    runs.push_back({s, int32_t(chunks.size()), (n + cuda::kWkvChunk - 1) / cuda::kWkvChunk});
    for (int i = 0; i < n; i += cuda::kWkvChunk) chunks.push_back({row + i, std::min(cuda::kWkvChunk, n - i)});
  }
  const Buffer<int32_t> d_serial(d, serial);
  const Buffer<Wkv7Chunk> d_chunks(d, chunks);
  const Buffer<Wkv7Run> d_runs(d, runs);
  const Buffer<cuda::Wkv7Piece> pieces(d, chunks.size() * size_t(in.heads));

  cuda::Wkv7ChunkParams p = {};
  p.wkv.r = r.buffer, p.wkv.w = w.buffer, p.wkv.k = k.buffer, p.wkv.v = v.buffer, p.wkv.a = a.buffer;
  p.wkv.g = g.buffer, p.wkv.v_mix = in.first ? nullptr : v_mix.buffer.data(), p.wkv.v_first = v_first.buffer;
  p.wkv.ld = r.ld, p.wkv.heads = in.heads, p.wkv.n = 64;
  p.wkv.w0 = w0, p.wkv.a0 = a0, p.wkv.v0 = v0, p.wkv.k_k = k_k, p.wkv.k_a = k_a, p.wkv.r_k = r_k;
  p.wkv.out = {ln_w, ln_b, 64e-5f}, p.wkv.state = halves ? 8 : 16, p.wkv.y = y.pointer(), p.wkv.step = batch.pointers();
  p.wkv.sequences = d_serial, p.chunk = d_chunks, p.run = d_runs, p.piece = pieces;
  if (!serial.empty())
    d.launch(halves ? Kernel::wkv7_64_state16 : Kernel::wkv7_64, {in.heads, int(serial.size()), 1}, &p.wkv);
  if (!chunks.empty()) {
    d.launch(Kernel::wkv7_chunk, {in.heads, int(chunks.size()), 1}, &p);
    d.launch(halves ? Kernel::wkv7_carry_state16 : Kernel::wkv7_carry, {in.heads, int(runs.size()), 2}, &p);
    d.launch(Kernel::wkv7_chunk_out, {in.heads, int(chunks.size()), 1}, &p);
  }
  Result result{y.dense(), v_first.dense(), {}};
  for (size_t s = 0; s < in.lengths.size(); s++) {
    const Row state = batch.state(s);
    result.states.push_back(halves ? from_halves(state, in.states[s].size()) : state);
    std::fill_n(result.states.back().begin(), 4, 0.0f);  // not a part of it
  }
  return result;
}
constexpr int kSerial = 1 << 30;

}  // namespace

TEST(chunks_agree_with_the_serial_kernel) {
  Random random;
  for (const char* schedule : schedules())
    for (const std::vector<int>& lengths : {std::vector<int>{200}, {1, 65, 47}, {48, 130}, {64}})
      for (bool first : {true, false}) {
        const Inputs in(random, lengths, lengths.size() == 1 ? 1 : 2, first);
        const Result found = on_device(schedule, in, 1, false), expected = on_device(schedule, in, kSerial, false);
        CHECK(close(found, expected, 1e-3));
        if (lengths.size() != 2) continue;
        CHECK(same(on_device(schedule, in, 1, true), found));
        const Result halves = on_device(schedule, in, 1, true, Stored::f16);
        CHECK(distance(halves.y, found.y) < 0x1p-11 && ::same(halves.states[1], found.states[1]));
      }
}

// From the same halves on, the state is that of float32, rounded in the end.
TEST(a_state_of_halves_is_rounded_after_the_last_chunk) {
  Random random;
  for (const char* schedule : schedules()) {
    Inputs in(random, {130, 65}, 2, false);
    for (Row& state : in.states) round_to_halves(state);
    Result wide = on_device(schedule, in, 1, false);
    const Result found = on_device(schedule, in, 1, false, Stored::f32, true);
    for (Row& state : wide.states) round_to_halves(state);
    CHECK(same(found, wide));
    // Without decay and removal what is added is added to the largest half.
    for (Row* x : {&in.w, &in.a}) std::fill(x->begin(), x->end(), -60.0f);
    for (Row* x : {&in.v, &in.k})
      for (float& v : *x) v *= 20;
    for (Row& state : in.states)
      for (float& v : state) v = v < 0 ? -65504.0f : 65504.0f;
    for (const Row& state : on_device(schedule, in, 1, true, Stored::f32, true).states)
      CHECK(std::ranges::count(state, 65504) > 1000 && std::ranges::count(state, -65504) > 1000 &&
            std::ranges::all_of(state, [](float v) { return std::fabs(v) <= 65504; }));
  }
}

TEST(chunks_agree_with_the_serial_kernel_where_numbers_are_extreme) {
  Random random;
  const auto times = [](Row& x, float by) {
    for (float& v : x) v *= by;
  };
  const auto fill = [](Row& x, float v) { std::fill(x.begin(), x.end(), v); };
  const std::function<void(Inputs&)> one_key = [](Inputs& in) {
    for (size_t i = 0; i < in.k.size(); i++) in.k[i] = in.k[i % size_t(in.c)];
  };
  std::vector<std::function<void(Inputs&)>> changes;
  for (float w : {0.0f, -60.0f, 60.0f}) {  // no decay, and the greatest
    changes.push_back([=](Inputs& in) { fill(in.w, w), fill(in.a, 60), one_key(in); });
    changes.push_back([=](Inputs& in) { fill(in.w, w), fill(in.a, 60); });
    changes.push_back([=](Inputs& in) { fill(in.w, w), fill(in.a, -60), one_key(in), times(in.k, 20); });
    changes.push_back([=](Inputs& in) { fill(in.w, w), times(in.k, 20); });
  }
  changes.push_back([=](Inputs& in) { fill(in.r, 0); });
  changes.push_back([=](Inputs& in) { fill(in.k, 0); });
  changes.push_back([=](Inputs& in) { times(in.r, 1e4f), times(in.k, 1e3f), times(in.v, 1e-2f); });
  changes.push_back([=](Inputs& in) { times(in.k, 1e-3f), times(in.v, 1e3f), times(in.states[0], 100); });
  changes.push_back([=](Inputs& in) { times(in.k, 100), times(in.v, 100), times(in.states[0], 10000); });
  changes.push_back([=](Inputs& in) {
    for (Row* x : {&in.r, &in.w, &in.k, &in.v, &in.a, &in.g, &in.v_mix, &in.v_first, &in.states[0]}) fill(*x, 0);
  });
  for (const char* schedule : schedules())
    for (const auto& change : changes) {
      Inputs in(random, {130}, 1, true);
      change(in);
      CHECK(close(on_device(schedule, in, 1, true), on_device(schedule, in, kSerial, true), 1e-3));
    }
}

TEST(what_is_not_finite_is_not_lost) {
  Random random;
  const char* schedule = schedules().front();
  for (Row Inputs::* which : {&Inputs::r, &Inputs::w, &Inputs::k, &Inputs::v, &Inputs::a, &Inputs::g}) {
    Inputs in(random, {100}, 1, true);
    (in.*which)[70 * 64 + 5] = kNan;
    const Result found = on_device(schedule, in, 1, true);
    CHECK(std::any_of(found.y.begin() + 64 * 64, found.y.end(), [](float v) { return std::isnan(v); }));
    for (int i = 0; i < 64 * 64; i++) CHECK(std::isfinite(found.y[size_t(i)]));
  }
}

TEST(a_sequence_has_the_same_bits_in_any_batch) {
  Random random;
  for (const char* schedule : schedules()) {
    const Inputs in(random, {65, 3, 130, 47, 48}, 2, false);
    const Result all = on_device(schedule, in, cuda::kChunkFrom, false);
    int begin = 0;
    for (size_t s = 0; s < in.lengths.size(); begin += in.lengths[s], s++) {
      const auto rows = [&](const Row& x) {
        return Row(x.begin() + begin * in.c, x.begin() + (begin + in.lengths[s]) * in.c);
      };
      const int from = in.lengths[s] < cuda::kChunkFrom ? kSerial : 1;
      CHECK(same(on_device(schedule, in.only(s), from, true), {rows(all.y), rows(all.v_first), {all.states[s]}}));
    }
  }
}

TEST(no_batch_has_more_chunks_than_there_is_memory_for) {
  Random random;
  for (int i = 0; i < 2000; i++) {
    int rows = 0, chunks = 0;
    for (int s = random.below(5); s >= 0; s--) {
      const int n = cuda::kChunkFrom + random.below(90);
      rows += n, chunks += (n + cuda::kWkvChunk - 1) / cuda::kWkvChunk;
    }
    CHECK(chunks <= cuda::most_chunks(rows));
  }
}

CHECK_MAIN
