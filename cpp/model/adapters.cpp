// A changed tensor is one that is made while it is read: whole rows of what it was before, as float32, and then what is
// added to them. So nothing that reads weights knows of adapters, and no second copy of a matrix is ever made.
#include "model/adapters.h"

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "core/bounds.h"
#include "core/error.h"
#include "model/adapter_reader.h"
#include "model/config.h"
#include "model/merge.h"
#include "model/names.h"
#include "model/packed.h"
#include "model/tuned_state.h"

namespace rwkv {
namespace {

constexpr int64_t kBlock = int64_t(1) << 18;  // elements of rows that are made at a time

using Shape = std::vector<int64_t>;

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

RowChange change_of_rows(AdapterChange&& change) {
  if (auto* c = std::get_if<LowRankChange>(&change)) return add_low_rank(std::move(c->a), std::move(c->b));
  if (auto* c = std::get_if<ShardChange>(&change)) return add_shards(std::move(c->block), c->rank, c->scale);
  auto& c = std::get<BlockChange>(change);
  return add_blocks(std::move(c.blocks), c.side, c.kind, c.scale);
}

class Merger {
 public:
  Merger(const Checkpoint& model, const AdapterSpec& spec, const std::function<void()>& poll)
      : model_(std::make_shared<const Checkpoint>(model)),
        path_(spec.path),
        config_(read_config(model)),
        reader_(spec, config_, poll),
        source_(std::make_shared<const Checkpoint>(reader_.adapter().file)),
        tensors_(model.tensors()) {
    for (size_t i = 0; i < tensors_.size(); i++) index_[tensors_[i].name] = i;
  }

  std::vector<TensorInfo> merge() {
    for (const TensorInfo& t : reader_.adapter().replacements) replace(t);
    for (const auto& [module, parts] : reader_.adapter().additions) {
      TensorInfo* const weight = find(module + ".weight");
      auto change = reader_.change(module, weight ? &weight->shape : nullptr, weight ? "is none" : "it has not");
      *weight = changed(model_, *weight, change_of_rows(std::move(change)));
    }
    return std::move(tensors_);
  }

 private:
  TensorInfo* find(const std::string& name) {
    const auto at = index_.find(name);
    return at == index_.end() ? nullptr : &tensors_[at->second];
  }

  void replace(const TensorInfo& t) {
    TensorInfo* of = find(t.name);
    if (!of && is_tuned_state(t.name) && config_.n_head > 0) {  // the loader knows whether it fits
      index_[t.name] = tensors_.size();
      tensors_.push_back(t);
      of = &tensors_.back();
    }
    reader_.expect(of, t.name, "a weight of this ", reader_.model_text(), ", found none of that name in it");
    const auto squeezed = [](Shape shape) {
      std::erase(shape, 1);
      return shape;
    };
    reader_.expect(squeezed(of->shape) == squeezed(t.shape), t.name, shape_text(of->shape), ", found ",
                   shape_text(t.shape));
    *of = derived(*of, stored_as(*of), [source = source_, t, path = path_](int64_t first, int64_t count, float* to) {
      read_floats(*source, t, first, count, to);
      expect_finite_numbers(path, t.name, {to, size_t(count)});
    });
  }

  const std::shared_ptr<const Checkpoint> model_;
  const std::string path_;
  const Config config_;
  const AdapterReader reader_;
  const std::shared_ptr<const Checkpoint> source_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, size_t> index_;
};

}  // namespace

bool has_adapters(const Checkpoint& file) {
  return std::ranges::any_of(file.tensors(), [](const TensorInfo& t) { return t.derived != nullptr; });
}

Checkpoint with_adapters(const Checkpoint& opened, std::span<const AdapterSpec> adapters,
                         const std::function<void()>& poll) {
  if (adapters.empty()) return opened;
  RWKV_CHECK(ModelFormatError, !is_packed(opened), opened.path(),
             ": expected the original weights to merge adapters into, found a file that was quantised: merge first, ",
             "then quantise");
  Checkpoint file = with_official_names(opened);
  std::set<std::string> seen;
  for (const AdapterSpec& spec : adapters) {
    RWKV_CHECK(ModelFormatError, seen.insert(spec.path).second, spec.path,
               ": expected each adapter once, found it twice; scale changes how much is added");
    file = file.with(Merger(file, spec, poll).merge());
  }
  return file;
}

}  // namespace rwkv
