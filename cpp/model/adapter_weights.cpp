#include "model/adapter_weights.h"

#include <algorithm>
#include <cstring>

#include "core/sha256.h"
#include "model/model.h"

namespace rwkv {
namespace {

constexpr const char* kMerge = ": merge this adapter, Engine(model, adapters=...)";
constexpr int64_t kAnyRank = 64;  // any matrix may have it, larger ones half of their shorter side

Format format_of_in(Format w) {
  if (w == Format::i8 || w == Format::i4) return Format::i8;
  return w == Format::bf16 ? Format::bf16 : Format::f32;
}
Format format_of_out(Format w) {
  const Format in = format_of_in(w);
  return in == Format::i8 ? Format::bf16 : in;
}

// MiSS sums the inputs up in classes, as A does that has a one for each input in the row of its class.
LowRankChange as_low_rank(const ShardChange& c, int64_t rows, int64_t cols) {
  LowRankChange change{std::vector<float>(size_t(c.rank * cols)), std::vector<float>(size_t(rows * c.rank)), c.rank};
  for (int64_t i = 0; i < cols; i++) change.a[size_t(i % c.rank * cols + i)] = 1;
  for (int64_t o = 0; o < rows; o++)
    for (int64_t k = 0; k < c.rank; k++)
      change.b[size_t(o * c.rank + k)] = c.scale * c.block[size_t(k * c.width + o % c.width)];
  return change;
}

// What is to be added to `w`; `room` is where, if the file holds it in another form.
const LowRankChange& expanded(const AdapterChange& change, int64_t rows, int64_t cols, LowRankChange& room) {
  if (const auto* shards = std::get_if<ShardChange>(&change)) return room = as_low_rank(*shards, rows, cols);
  return std::get<LowRankChange>(change);
}

std::string layer_of(const std::string& module) {
  const size_t dot = module.find('.');
  return dot == module.npos ? module : module.substr(0, module.find('.', dot + 1));
}

// An adapter of a higher one would take more memory than it may, whatever its file's size.
void expect_rank(const AdapterReader& reader, const std::string& name, int64_t rank,
                 const std::vector<int64_t>& shape) {
  const int64_t most = std::max(kAnyRank, std::min(shape[0], shape[1]) / 2);
  reader.expect(rank <= most, name, "a rank of at most ", most, ", found ", rank, kMerge);
}

RowSource source_of(const std::vector<float>& numbers, int64_t cols) {
  return {DType::f32, size_t(256) << 10, [&numbers, cols](int64_t row, int64_t count, std::byte* to) {
            std::memcpy(to, numbers.data() + row * cols, size_t(count * cols) * sizeof(float));
          }};
}

}  // namespace

AdapterWeights::AdapterWeights(const std::shared_ptr<const Model>& model, const AdapterSpec& spec, const Poll& poll)
    : model_(model), backend_(model->stages().front().backend) {
  for (const Model::Stage& stage : model->stages())
    RWKV_CHECK(DeviceError, stage.backend->adapts() && stage.backend == backend_,
               "expected all layers on the CPU, where states can have adapters of their own, found ",
               stage.backend->description(), kMerge);
  const AdapterReader reader(spec, model->config(), poll);
  for (const TensorInfo& t : reader.adapter().replacements)
    reader.expect(false, t.name, "A and B of matrices alone, found a weight that was trained in full", kMerge);

  Fingerprint fingerprint;
  for (const auto& [module, parts] : reader.adapter().additions) {
    const std::string& any = parts.begin()->second.name;
    const auto w = model->linears().find(module + ".weight");
    const bool there = w != model->linears().end();
    reader.expect(module != "emb", any, "an adapter of a matrix that activations are multiplied with, found one of ",
                  "the embedding table", kMerge);
    const auto shape = there ? std::vector<int64_t>{w->second.rows, w->second.cols} : std::vector<int64_t>();
    AdapterChange change = reader.change(module, there ? &shape : nullptr, "is no matrix that it multiplies with");
    reader.expect(!std::holds_alternative<BlockChange>(change), any,
                  "LoRA or MiSS, which add products of a low rank, found Bat, which depends on the weights", kMerge);
    const auto* shards = std::get_if<ShardChange>(&change);
    const int64_t rank = shards ? shards->rank : std::get<LowRankChange>(change).rank;
    expect_rank(reader, any, rank, shape);
    LowRankChange room;
    const LowRankChange& low_rank = expanded(change, shape[0], shape[1], room);
    expect_finite_numbers(spec.path, any, low_rank.b);
    fingerprint.add(module + ".A", {rank, shape[1]}, low_rank.a);
    fingerprint.add(module + ".B", {shape[0], rank}, low_rank.b);
    parts_.push_back({w->second, layer_of(module), int(rank), std::move(change)});
  }
  Sha256 hash;
  const std::string names =
      join("rwkv adapter 1\n", model->fingerprint(), "\n", fingerprint.hex(model->config()), "\n");
  hash.update(names.data(), names.size());
  fingerprint_ = hash.hex();
}

void AdapterWeights::pack(const Poll& poll) {
  for (const bool counting : {true, false}) {
    Arena arena = counting ? Arena() : Arena(memory_);
    for (const auto& [w, layer, rank, change] : parts_) {
      LowRank pair{{.format = format_of_in(w.format), .rows = rank, .cols = w.cols},
                   {.format = format_of_out(w.format), .rows = w.rows, .cols = rank}};
      pair.in.data = arena.take(backend_->linear_bytes(pair.in));
      pair.out.data = arena.take(backend_->linear_bytes(pair.out));
      if (counting) continue;
      if (poll) poll();
      LowRankChange room;  // of one matrix at a time: what MiSS becomes is larger than its file
      const LowRankChange& low_rank = expanded(change, w.rows, w.cols, room);
      backend_->pack(pair.in, source_of(low_rank.a, w.cols));
      backend_->pack(pair.out, source_of(low_rank.b, rank));
      pairs_.emplace_back(w.data, pair);
      layers_[layer].push_back(pair);
    }
    bytes_ = arena.used();
    if (counting) memory_ = backend_->allocate(bytes_);
  }
  std::ranges::sort(pairs_, {}, &std::pair<const std::byte*, LowRank>::first);
  parts_ = {};
}

const LowRank* AdapterWeights::find(const Linear& w) const {
  const auto at = std::ranges::lower_bound(pairs_, w.data, {}, &std::pair<const std::byte*, LowRank>::first);
  return at == pairs_.end() || at->first != w.data ? nullptr : &at->second;
}

size_t AdapterWeights::scratch_bytes(int rows) const {
  size_t most = 0;
  for (const auto& [layer, pairs] : layers_) {
    Arena arena;
    for (const LowRank& pair : pairs) LowRankRoom(arena, *backend_, pair, rows);
    // Rows that are apart take memory apart.
    most = std::max(most, arena.used() + pairs.size() * size_t(rows) * LowRankRoom::kPieces * Arena::kAlign);
  }
  return most;
}

LowRankRoom::LowRankRoom(Arena& arena, const Backend& b, const LowRank& p, int rows)
    : x{nullptr, b.operand_format(p.in.format), rows, p.in.cols},
      low(arena.take(DType::f32, rows, p.in.rows, b.row_stride(p.in.rows))),
      rank{nullptr, b.operand_format(p.out.format), rows, p.in.rows},
      partial(arena.take(DType::f32, rows, p.out.rows, b.row_stride(p.out.rows))) {
  for (Operand* o : {&x, &rank}) o->data = arena.take(b.operand_bytes(o->format, rows, o->cols));
}

}  // namespace rwkv
