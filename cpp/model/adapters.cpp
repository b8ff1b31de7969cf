// A changed tensor is one that is made while it is read: whole rows of what it was before, as float32, and then what is
// added to them. So nothing that reads weights knows of adapters, and no second copy of a matrix is ever made.
#include "model/adapters.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "core/bounds.h"
#include "core/error.h"
#include "core/text.h"
#include "model/adapter_file.h"
#include "model/config.h"
#include "model/merge.h"
#include "model/names.h"
#include "model/packed.h"
#include "model/tuned_state.h"

namespace rwkv {
namespace {

constexpr int64_t kBlock = int64_t(1) << 18;  // elements of rows that are made at a time

using Shape = std::vector<int64_t>;

// Elements [first, first + count) as float32.
void read_floats(const Checkpoint& file, const TensorInfo& t, int64_t first, int64_t count, float* to) {
  if (t.dtype == DType::f32) return file.read(t, first, count, to);
  std::vector<std::byte> raw(size_t(count) * size_of(t.dtype));
  file.read(t, first, count, raw.data());
  to_f32(raw.data(), t.dtype, size_t(count), to);
}

void check_finite(const std::string& path, const std::string& name, std::span<const float> values) {
  const auto odd = std::ranges::find_if(values, [](float v) { return !std::isfinite(v); });
  RWKV_CHECK(ModelFormatError, odd == values.end(), path, ": ", shown(name), ": expected finite numbers, found ", *odd);
}

DType stored_as(const TensorInfo& t) { return t.derived ? t.derived->stored : t.dtype; }

TensorInfo derived(const TensorInfo& t, DType stored, decltype(Derived::read) read) {
  return {.name = t.name,
          .dtype = DType::f32,
          .shape = t.shape,
          .stride = dense_strides(t.shape),
          .derived = std::make_shared<const Derived>(Derived{stored, std::move(read)})};
}

// A matrix with something added to every row.
TensorInfo changed(std::shared_ptr<const Checkpoint> file, const TensorInfo& t, RowChange change) {
  const int64_t cols = t.shape[1];
  return derived(
      t, stored_as(t),
      [file = std::move(file), t, cols, change = std::move(change)](int64_t first, int64_t count, float* to) {
        std::vector<float> rows;
        const int64_t step = std::max<int64_t>(1, kBlock / cols), end = first + count;
        for (int64_t row = first / cols; row * cols < end; row += step) {
          const int64_t some = std::min(step, (end + cols - 1) / cols - row);
          rows.resize(size_t(some * cols));
          read_floats(*file, t, row * cols, some * cols, rows.data());
          for (int64_t i = 0; i < some; i++) change(row + i, std::span(rows).subspan(size_t(i * cols), size_t(cols)));
          const int64_t from = std::max(first, row * cols), until = std::min(end, (row + some) * cols);
          std::copy(rows.begin() + (from - row * cols), rows.begin() + (until - row * cols), to + (from - first));
        }
      });
}

class Merger {
 public:
  Merger(const Checkpoint& model, const AdapterSpec& spec)
      : model_(std::make_shared<const Checkpoint>(model)),
        spec_(spec),
        adapter_(open_adapter(spec.path)),
        source_(std::make_shared<const Checkpoint>(adapter_.file)),
        config_(read_config(model)),
        tensors_(model.tensors()) {
    for (size_t i = 0; i < tensors_.size(); i++) index_[tensors_[i].name] = i;
  }

  std::vector<TensorInfo> merge() {
    check_alpha();
    for (const TensorInfo& t : adapter_.replacements) replace(t);
    for (const auto& [module, parts] : adapter_.additions) add(module, parts);
    return std::move(tensors_);
  }

 private:
  template <class... Parts>
  void expect(bool condition, const std::string& name, const Parts&... message) const {
    RWKV_CHECK(ModelFormatError, condition, spec_.path, ": ", shown(name), ": expected ", message...);
  }

  void check_alpha() const {
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

  TensorInfo* find(const std::string& name) {
    const auto at = index_.find(name);
    return at == index_.end() ? nullptr : &tensors_[at->second];
  }
  std::string model_text() const { return join("RWKV-", config_.version, " model of ", config_.n_layer, " layers"); }

  void replace(const TensorInfo& t) {
    TensorInfo* of = find(t.name);
    if (!of && is_tuned_state(t.name) && config_.n_head > 0) {  // the loader knows whether it fits
      index_[t.name] = tensors_.size();
      tensors_.push_back(t);
      of = &tensors_.back();
    }
    expect(of, t.name, "a weight of this ", model_text(), ", found none of that name in it");
    const auto squeezed = [](Shape shape) {
      std::erase(shape, 1);
      return shape;
    };
    expect(squeezed(of->shape) == squeezed(t.shape), t.name, shape_text(of->shape), ", found ", shape_text(t.shape));
    *of =
        derived(*of, stored_as(*of), [source = source_, t, path = spec_.path](int64_t first, int64_t count, float* to) {
          read_floats(*source, t, first, count, to);
          check_finite(path, t.name, {to, size_t(count)});
        });
  }

  std::vector<float> numbers(const TensorInfo& t) const {
    std::vector<float> values(size_t(t.count()));
    read_floats(adapter_.file, t, 0, t.count(), values.data());
    check_finite(spec_.path, t.name, values);
    return values;
  }

  void add(const std::string& module, const AdapterFile::Parts& parts) {
    const std::string& any = parts.begin()->second.name;
    TensorInfo* const weight = find(module + ".weight");
    expect(weight && weight->shape.size() == 2, any, "an adapter of a matrix of this ", model_text(), ", found one of ",
           shown(module), ".weight, which ", weight ? "is none" : "it has not");
    const Shape& shape = weight->shape;
    RowChange change;
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
      change = low_rank(module, shape, *part(AdapterPart::lora_a), *part(AdapterPart::lora_b));
    } else if (part(AdapterPart::embedding_a) || part(AdapterPart::embedding_b)) {
      pair(AdapterPart::embedding_a, AdapterPart::embedding_b);
      change = of_table(module, shape, *part(AdapterPart::embedding_a), *part(AdapterPart::embedding_b));
    } else {
      expect(parts.size() == 1, any, "one kind of adapter for ", shown(module), ", found several");
      change = blocks(module, shape, parts.begin()->second, parts.begin()->first);
    }
    *weight = changed(model_, *weight, std::move(change));
  }

  // Before anything is read: a rank that no training has would let a small file ask for much memory.
  void expect_rank(const std::string& module, const std::string& name, int64_t rank, int64_t most) const {
    expect(rank > 0 && rank <= most, name, "a rank from 1 to ", most, ", found ", rank);
    if (!adapter_.config) return;
    const double said = adapter_.config->rank_of(module);
    expect(said == double(rank), name, "the rank ", said, ", as adapter_config.json says, found ", rank);
  }
  void expect_type(const std::string& name, bool lora) const {
    if (!adapter_.config) return;
    const std::string& type = adapter_.config->type;
    expect(lora == (type == "LORA"), name, "the parts of ", type, ", as adapter_config.json says, found another kind");
  }

  // Beyond it products with weights, and sums of them, would be no numbers.
  float finite(double strength, const std::string& module) const {
    constexpr double kMost = 1e9;
    expect(std::fabs(strength) <= kMost, module, "a strength (alpha / rank, times scale) of at most ", kMost,
           ", found ", strength);
    return float(strength);
  }

  float strength(const std::string& module, int64_t rank) const {
    const auto& config = adapter_.config;
    const double alpha = config ? config->alpha_of(module) : *spec_.alpha;
    const double by = config && config->root_of_rank ? std::sqrt(double(rank)) : double(rank);
    return finite(spec_.scale * alpha / by, module);
  }

  RowChange low_rank(const std::string& module, const Shape& shape, const TensorInfo& a, const TensorInfo& b) const {
    expect_type(a.name, true);
    expect(a.shape.size() == 2 && a.shape[1] == shape[1], a.name, "(rank, ", shape[1], "), found ",
           shape_text(a.shape));
    const int64_t rank = a.shape[0];
    expect(b.shape == Shape{shape[0], rank}, b.name, shape_text({shape[0], rank}), ", found ", shape_text(b.shape));
    expect_rank(module, a.name, rank, std::max(shape[0], shape[1]));
    std::vector<float> out = numbers(b);
    const float factor = strength(module, rank);
    for (float& v : out) v *= factor;
    return add_low_rank(numbers(a), std::move(out));
  }

  // The same of a table, turned: what is added to row v is column v of A times the turned B.
  RowChange of_table(const std::string& module, const Shape& shape, const TensorInfo& a, const TensorInfo& b) const {
    expect_type(a.name, true);
    expect(a.shape.size() == 2 && a.shape[1] == shape[0], a.name, "(rank, ", shape[0], "), found ",
           shape_text(a.shape));
    const int64_t rank = a.shape[0];
    expect(b.shape == Shape{shape[1], rank}, b.name, shape_text({shape[1], rank}), ", found ", shape_text(b.shape));
    expect_rank(module, a.name, rank, std::max(shape[0], shape[1]));
    const auto turned = [](const std::vector<float>& from, int64_t rows, int64_t cols, float factor) {
      std::vector<float> to(from.size());
      for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) to[size_t(c * rows + r)] = factor * from[size_t(r * cols + c)];
      return to;
    };
    return add_low_rank(turned(numbers(b), shape[1], rank, 1),
                        turned(numbers(a), rank, shape[0], strength(module, rank)));
  }

  RowChange blocks(const std::string& module, const Shape& shape, const TensorInfo& t, AdapterPart part) const {
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
      return add_blocks(numbers(t), side, of_peft ? BlockOf::row : BlockOf::column, scale);
    }
    const bool small = config && config->init == "mini";
    const int64_t width = small ? int64_t(std::min(config->mini_rank, double(out))) : out;
    expect(width > 0 && out % width == 0, t.name, "a mini_r that divides ", out, ", found ", width);
    expect(t.shape.size() == 2 && t.shape[1] == width, t.name, "(rank, ", width, "), found ", shape_text(t.shape));
    expect_rank(module, t.name, t.shape[0], in);
    return add_shards(numbers(t), t.shape[0], scale);
  }

  const std::shared_ptr<const Checkpoint> model_;
  const AdapterSpec& spec_;
  const AdapterFile adapter_;
  const std::shared_ptr<const Checkpoint> source_;
  const Config config_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, size_t> index_;
};

}  // namespace

bool has_adapters(const Checkpoint& file) {
  return std::ranges::any_of(file.tensors(), [](const TensorInfo& t) { return t.derived != nullptr; });
}

Checkpoint with_adapters(const Checkpoint& opened, std::span<const AdapterSpec> adapters) {
  if (adapters.empty()) return opened;
  RWKV_CHECK(ModelFormatError, !is_packed(opened), opened.path(),
             ": expected the original weights to merge adapters into, found a file that was quantised: merge first, ",
             "then quantise");
  Checkpoint file = with_official_names(opened);
  std::set<std::string> seen;
  for (const AdapterSpec& spec : adapters) {
    RWKV_CHECK(ModelFormatError, seen.insert(spec.path).second, spec.path,
               ": expected each adapter once, found it twice; scale changes how much is added");
    RWKV_CHECK(ModelFormatError, std::isfinite(spec.scale) && std::isfinite(spec.alpha.value_or(1)), spec.path,
               ": expected a finite alpha and scale, found ", spec.alpha.value_or(1), " and ", spec.scale);
    file = file.with(Merger(file, spec).merge());
  }
  return file;
}

}  // namespace rwkv
