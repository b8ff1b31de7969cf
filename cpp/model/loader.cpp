#include "model/loader.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "core/text.h"

namespace rwkv {

namespace {

constexpr int64_t kStagingBytes = 4 << 20;

// True if `found` is `expected` up to dimensions of one.
bool same_shape(const std::vector<int64_t>& found, const std::vector<int64_t>& expected) {
  std::vector<int64_t> a, b;
  std::ranges::copy_if(found, std::back_inserter(a), [](int64_t d) { return d != 1; });
  std::ranges::copy_if(expected, std::back_inserter(b), [](int64_t d) { return d != 1; });
  return a == b;
}

}  // namespace

int64_t Loader::dimension(const std::string& name, size_t index) const {
  const TensorInfo* t = file_.find(name);
  RWKV_CHECK(ModelFormatError, t, file_.path(), ": expected the tensor ", name, ", found none of that name");
  RWKV_CHECK(ModelFormatError, index < t->shape.size() && t->shape[index] > 0 && t->shape[index] < (1 << 24),
             file_.path(), ": ", name, ": expected a matrix, found shape ", shape_text(t->shape));
  return t->shape[index];
}

const TensorInfo& Loader::find(const std::string& name, const std::vector<int64_t>& shape) {
  const TensorInfo* t = file_.find(name);
  RWKV_CHECK(ModelFormatError, t, file_.path(), ": expected the tensor ", name, ", found none of that name");
  RWKV_CHECK(ModelFormatError, same_shape(t->shape, shape), file_.path(), ": ", name, ": expected ", shape_text(shape),
             ", found ", shape_text(t->shape));
  RWKV_CHECK(ModelFormatError, is_float(t->dtype) && t->dtype != DType::f64, file_.path(), ": ", name,
             ": expected numbers as f32, f16 or bf16, found ", name_of(t->dtype));
  used_.insert(name);
  bytes_ += t->count() * int64_t(size_of(t->dtype));
  return *t;
}

void Loader::read(const TensorInfo& t, int64_t first, int64_t count) {
  const size_t bytes = size_t(count) * size_of(t.dtype);
  if (staging_.size() < bytes) staging_.resize(bytes);
  file_.read(t, first, count, staging_.data());
  Fingerprint::take(samples_, t.count(), first, count, staging_.data(), t.dtype);
  bytes_read_ += int64_t(bytes);
  if (progress_) progress_(bytes_read_, bytes_total_);
}

void Loader::finish(const TensorInfo& t) {
  fingerprint_.add(t.name, t.shape, samples_);
  samples_.clear();
}

Linear Loader::matrix(const std::string& name, int rows, int cols, Format format, bool transposed) {
  if (transposed) return factors(name, {cols, rows}, 1, rows, cols, {0, 1, rows}, format).front();
  const TensorInfo& t = find(name, {rows, cols});
  const Linear w{arena_->take(backend_->linear_bytes(format, rows, cols)), format, rows, cols};
  if (arena_->counting()) return w;
  const int64_t row_bytes = cols * int64_t(size_of(t.dtype));
  const int64_t step = std::max<int64_t>(1, kStagingBytes / (row_bytes * Backend::kPackRows)) * Backend::kPackRows;
  for (int64_t row = 0; row < rows; row += step) {
    const int64_t count = std::min<int64_t>(step, rows - row);
    read(t, row * cols, count * cols);
    backend_->pack(w, int(row), int(count), staging_.data(), t.dtype);
  }
  finish(t);
  return w;
}

Linear Loader::matrix_of_sparse(const std::string& name, int rows, int cols, Format format) {
  Linear w = matrix(name, rows, cols, format);
  const size_t bytes = backend_->column_bytes(format, rows, cols);
  if (bytes == 0) return w;
  column_bytes_ += bytes;
  w.columns = arena_->take(bytes);
  if (!arena_->counting()) backend_->pack_columns(w);
  return w;
}

std::vector<Linear> Loader::factors(const std::string& name, const std::vector<int64_t>& shape, int parts, int rows,
                                    int cols, Strides strides, Format format) {
  const TensorInfo& t = find(name, shape);
  std::vector<Linear> factors;
  for (int p = 0; p < parts; p++)
    factors.push_back({arena_->take(backend_->linear_bytes(format, rows, cols)), format, rows, cols});
  if (arena_->counting()) return factors;
  read(t, 0, t.count());
  const size_t element = size_of(t.dtype);
  std::vector<std::byte> turned(size_t(rows) * size_t(cols) * element);
  for (int p = 0; p < parts; p++) {
    for (int64_t c = 0; c < cols; c++)
      for (int64_t r = 0; r < rows; r++)
        std::memcpy(&turned[size_t(r * cols + c) * element],
                    &staging_[size_t(p * strides.part + r * strides.row + c * strides.col) * element], element);
    backend_->pack(factors[size_t(p)], 0, rows, turned.data(), t.dtype);
  }
  finish(t);
  return factors;
}

Tensor Loader::vector(const std::string& name, const std::vector<int64_t>& shape, float (*map)(float), int repeat) {
  const TensorInfo& t = find(name, shape);
  const int64_t count = t.count();
  const Tensor v = arena_->take(DType::f32, 1, count * repeat);
  if (arena_->counting()) return v;
  read(t, 0, count);
  auto* out = v.as<float>();
  to_f32(staging_.data(), t.dtype, size_t(count), out);
  if (map) std::transform(out, out + count, out, map);
  for (int64_t i = count * repeat; repeat > 1 && i-- > 0;) out[i] = out[i / repeat];  // from the end: in place
  finish(t);
  return v;
}

Norm Loader::norm(const std::string& name, int64_t count, float eps) {
  return {vector(name + ".weight", {count}), vector(name + ".bias", {count}), eps};
}

Tensor Loader::table(const std::string& name, int64_t rows, int64_t cols) {
  const TensorInfo& t = find(name, {rows, cols});
  const Tensor table = arena_->take(t.dtype, rows, cols);
  if (arena_->counting()) return table;
  const int64_t element = int64_t(size_of(t.dtype)), step = std::max<int64_t>(1, kStagingBytes / (cols * element));
  for (int64_t row = 0; row < rows; row += step) {
    const int64_t count = std::min(step, rows - row);
    read(t, row * cols, count * cols);
    std::memcpy(table.as<std::byte>() + row * cols * element, staging_.data(), size_t(count * cols * element));
  }
  finish(t);
  return table;
}

Tensor Loader::mapped_table(const std::string& name, int64_t rows, int64_t cols) {
  const int64_t bytes = bytes_;
  const TensorInfo& t = find(name, {rows, cols});
  bytes_ = bytes;  // not read, unless below
  widest_table_ = std::max(widest_table_, cols);
  const auto mapping = file_.map(t);
  if (!mapping) return table(name, rows, cols);
  if (arena_->counting()) return {};
  Fingerprint::take(samples_, t.count(), 0, t.count(), mapping.get(), t.dtype);
  finish(t);
  mappings_.push_back(mapping);
  return {const_cast<std::byte*>(mapping.get()), t.dtype, rows, cols, cols};
}

void Loader::check_all_used() const {
  for (const TensorInfo& t : file_.tensors())
    RWKV_CHECK(ModelFormatError, used_.contains(t.name) || skipped_.contains(t.name), file_.path(),
               ": expected only the tensors of this model, found ", shown(t.name), " ", shape_text(t.shape));
}

}  // namespace rwkv
