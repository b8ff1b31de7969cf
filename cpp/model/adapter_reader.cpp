#include "model/adapter_reader.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace rwkv {

using Shape = std::vector<int64_t>;

constexpr int64_t kPiece = int64_t(1) << 20;  // numbers that are read at a time

void read_floats(const Checkpoint& file, const TensorInfo& t, int64_t first, int64_t count, float* to) {
  if (t.dtype == DType::f32) return file.read(t, first, count, to);
  std::vector<std::byte> raw(size_t(count) * size_of(t.dtype));
  file.read(t, first, count, raw.data());
  to_f32(raw.data(), t.dtype, size_t(count), to);
}

void expect_finite_numbers(const std::string& path, const std::string& name, std::span<const float> values) {
  const auto odd = std::ranges::find_if(values, [](float v) { return !std::isfinite(v); });
  RWKV_CHECK(ModelFormatError, odd == values.end(), path, ": ", shown(name), ": expected finite numbers, found ", *odd);
}

AdapterReader::AdapterReader(const AdapterSpec& spec, const Config& config, std::function<void()> poll)
    : spec_(spec), config_(config), adapter_(open_adapter(spec.path)), poll_(std::move(poll)) {
  RWKV_CHECK(ModelFormatError, std::isfinite(spec_.scale) && std::isfinite(spec_.alpha.value_or(1)), spec_.path,
             ": expected a finite alpha and scale, found ", spec_.alpha.value_or(1), " and ", spec_.scale);
  check_alpha();
}

std::string AdapterReader::model_text() const {
  return join("RWKV-", config_.version, " model of ", config_.n_layer, " layers");
}

void AdapterReader::check_alpha() const {
  const bool lora = std::ranges::any_of(
      adapter_.additions, [](const auto& module) { return module.second.begin()->first < AdapterPart::disha; });
  RWKV_CHECK(ModelFormatError, !adapter_.config || !spec_.alpha, spec_.path,
             ": expected no alpha, since adapter_config.json says it, found ", *spec_.alpha,
             "; scale changes how much is added");
  RWKV_CHECK(ModelFormatError, adapter_.config || lora || !spec_.alpha, spec_.path,
             ": expected no alpha, which only LoRA has, found ", *spec_.alpha, "; scale changes how much is added");
  RWKV_CHECK(ModelFormatError, adapter_.config || !lora || spec_.alpha, spec_.path,
             ": expected the alpha of the training, which such a file does not hold, found none: give it, as in ",
             "Adapter(path, alpha=32). A PiSSA adapter of RWKV-PEFT looks the same and is none until it is ",
             "converted with the init_pissa.pth beside it: A and init_A one below the other, B and -init_B side by ",
             "side, alpha twice the rank");
}

AdapterChange AdapterReader::change(const std::string& module, const Shape* shape, std::string_view instead) const {
  const AdapterFile::Parts& parts = adapter_.additions.at(module);
  const std::string& any = parts.begin()->second.name;
  expect(shape && shape->size() == 2, any, "an adapter of a matrix of this ", model_text(), ", found one of ",
         shown(module), ".weight, which ", instead);
  const auto part = [&](AdapterPart kind) {
    const auto at = parts.find(kind);
    return at == parts.end() ? nullptr : &at->second;
  };
  const auto pair = [&](AdapterPart first, AdapterPart second) {
    const bool both = parts.contains(first) && parts.contains(second);
    expect(both && parts.size() == 2, any, "A and B and nothing else for ", shown(module), ", found ",
           both ? "another kind of adapter too" : "one of them");
  };
  if (part(AdapterPart::lora_a) || part(AdapterPart::lora_b)) {
    pair(AdapterPart::lora_a, AdapterPart::lora_b);
    return low_rank(module, *shape, *part(AdapterPart::lora_a), *part(AdapterPart::lora_b));
  }
  if (part(AdapterPart::embedding_a) || part(AdapterPart::embedding_b)) {
    pair(AdapterPart::embedding_a, AdapterPart::embedding_b);
    return of_table(module, *shape, *part(AdapterPart::embedding_a), *part(AdapterPart::embedding_b));
  }
  expect(parts.size() == 1, any, "one kind of adapter for ", shown(module), ", found several");
  return blocks(module, *shape, parts.begin()->second, parts.begin()->first);
}

std::vector<float> AdapterReader::numbers(const TensorInfo& t) const {
  const int64_t count = t.count();
  std::vector<float> values(static_cast<size_t>(count));
  for (int64_t at = 0; at < count; at += kPiece) {
    if (poll_) poll_();
    read_floats(adapter_.file, t, at, std::min(kPiece, count - at), values.data() + at);
  }
  expect_finite_numbers(spec_.path, t.name, values);
  return values;
}

// Before anything is read: a rank that no training has would let a small file ask for much memory.
void AdapterReader::expect_rank(const std::string& module, const std::string& name, int64_t rank, int64_t most) const {
  expect(rank > 0 && rank <= most, name, "a rank from 1 to ", most, ", found ", rank);
  if (!adapter_.config) return;
  const double said = adapter_.config->rank_of(module);
  expect(said == double(rank), name, "the rank ", said, ", as adapter_config.json says, found ", rank);
}

void AdapterReader::expect_type(const std::string& name, bool lora) const {
  if (!adapter_.config) return;
  const std::string& type = adapter_.config->type;
  expect(lora == (type == "LORA"), name, "the parts of ", type, ", as adapter_config.json says, found another kind");
}

// Beyond it products with weights, and sums of them, would be no numbers.
float AdapterReader::finite(double strength, const std::string& module) const {
  constexpr double kMost = 1e9;
  expect(std::fabs(strength) <= kMost, module, "a strength (alpha / rank, times scale) of at most ", kMost, ", found ",
         strength);
  return float(strength);
}

float AdapterReader::strength(const std::string& module, int64_t rank) const {
  const auto& config = adapter_.config;
  const double alpha = config ? config->alpha_of(module) : *spec_.alpha;
  const double by = config && config->root_of_rank ? std::sqrt(double(rank)) : double(rank);
  return finite(spec_.scale * alpha / by, module);
}

LowRankChange AdapterReader::low_rank(const std::string& module, const Shape& shape, const TensorInfo& a,
                                      const TensorInfo& b) const {
  expect_type(a.name, true);
  expect(a.shape.size() == 2 && a.shape[1] == shape[1], a.name, "(rank, ", shape[1], "), found ", shape_text(a.shape));
  const int64_t rank = a.shape[0];
  expect(b.shape == Shape{shape[0], rank}, b.name, shape_text({shape[0], rank}), ", found ", shape_text(b.shape));
  expect_rank(module, a.name, rank, std::max(shape[0], shape[1]));
  std::vector<float> out = numbers(b);
  const float factor = strength(module, rank);
  for (float& v : out) v *= factor;
  return {numbers(a), std::move(out), rank};
}

// The same of a table, turned: what is added to row v is column v of A times the turned B.
LowRankChange AdapterReader::of_table(const std::string& module, const Shape& shape, const TensorInfo& a,
                                      const TensorInfo& b) const {
  expect_type(a.name, true);
  expect(a.shape.size() == 2 && a.shape[1] == shape[0], a.name, "(rank, ", shape[0], "), found ", shape_text(a.shape));
  const int64_t rank = a.shape[0];
  expect(b.shape == Shape{shape[1], rank}, b.name, shape_text({shape[1], rank}), ", found ", shape_text(b.shape));
  expect_rank(module, a.name, rank, std::max(shape[0], shape[1]));
  const auto turned = [](const std::vector<float>& from, int64_t rows, int64_t cols, float factor) {
    std::vector<float> to(from.size());
    for (int64_t r = 0; r < rows; r++)
      for (int64_t c = 0; c < cols; c++) to[size_t(c * rows + r)] = factor * from[size_t(r * cols + c)];
    return to;
  };
  return {turned(numbers(b), shape[1], rank, 1), turned(numbers(a), rank, shape[0], strength(module, rank)), rank};
}

AdapterChange AdapterReader::blocks(const std::string& module, const Shape& shape, const TensorInfo& t,
                                    AdapterPart part) const {
  expect_type(t.name, false);
  const auto& config = adapter_.config;
  const int64_t out = shape[0], in = shape[1];
  const float scale = finite(spec_.scale, module);
  const bool squares = t.shape.size() == 3, of_peft = part == AdapterPart::miss;
  if (config) {
    expect(squares == (config->init == "bat"), t.name, config->init == "bat" ? "three" : "two",
           " dimensions, as adapter_config.json says, found ", shape_text(t.shape));
  }
  if (squares) {
    const int64_t side = t.shape[2];
    expect(side > 0 && in % side == 0 && out % side == 0, t.name, "squares whose side divides ", shape_text(shape),
           ", found ", shape_text(t.shape));
    const Shape wanted = {(of_peft ? out : in) / side, side, side};
    expect(t.shape == wanted, t.name, shape_text(wanted), ", found ", shape_text(t.shape));
    expect_rank(module, t.name, side, in);
    return BlockChange{numbers(t), side, of_peft ? BlockOf::row : BlockOf::column, scale};
  }
  const bool small = config && config->init == "mini";
  const int64_t width = small ? int64_t(std::min(config->mini_rank, double(out))) : out;
  expect(width > 0 && out % width == 0, t.name, "a mini_r that divides ", out, ", found ", width);
  expect(t.shape.size() == 2 && t.shape[1] == width, t.name, "(rank, ", width, "), found ", shape_text(t.shape));
  expect_rank(module, t.name, t.shape[0], in);
  return ShardChange{numbers(t), t.shape[0], width, scale};
}

}  // namespace rwkv
