#include "model/loader.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <optional>

#include "backend/panels.h"
#include "core/error.h"
#include "core/text.h"

namespace rwkv {

namespace {

constexpr size_t kPieceBytes = 256 << 10;    // to be read at a time: with what is packed of it, half a cache
constexpr size_t kStagingBytes = 2 << 20;    // where small pieces are dear
constexpr int64_t kProgressBytes = 4 << 20;  // read between two reports of progress

// True if `found` is `expected` up to dimensions of one.
bool same_shape(const std::vector<int64_t>& found, const std::vector<int64_t>& expected) {
  std::vector<int64_t> a, b;
  std::ranges::copy_if(found, std::back_inserter(a), [](int64_t d) { return d != 1; });
  std::ranges::copy_if(expected, std::back_inserter(b), [](int64_t d) { return d != 1; });
  return a == b;
}

// A half would make infinity of a number that is too large for it.
void check_range(const Checkpoint& file, const TensorInfo& t, DType dtype, const std::byte* data, int64_t count,
                 Format format) {
  constexpr float kTooLarge = 65520;  // half way from the largest half to the next, had there been one
  if (format != Format::f16 || dtype == DType::f16) return;
  float values[256];
  for (int64_t at = 0; at < count; at += std::ssize(values)) {
    const auto n = std::min<int64_t>(std::ssize(values), count - at);
    to_f32(data + at * int64_t(size_of(dtype)), dtype, size_t(n), values);
    const auto* odd =
        std::find_if(values, values + n, [](float v) { return std::fabs(v) >= kTooLarge && std::isfinite(v); });
    RWKV_CHECK(StrategyError, odd == values + n, file.path(), ": ", shown(t.name),
               ": expected numbers that fp16 can hold, up to 65504, found ", *odd, "; bf16 and fp32 can hold it");
  }
}

bool is_quantised(Format f) { return f == Format::i8 || f == Format::i4; }

// One that is not quantised, by its word.
std::optional<Format> plain_format(std::string_view word) {
  for (const Format f : {Format::f32, Format::f16, Format::bf16})
    if (word == word_of(f)) return f;
  return std::nullopt;
}

// `rows` rows of `cols` elements of so many bytes, whose strides in `from` are in elements.
template <size_t Bytes>
void pick(const std::byte* from, int64_t row, int64_t col, int64_t rows, int64_t cols, std::byte* to) {
  constexpr int64_t kBlock = 32;  // columns, so that lines of `from` stay in the cache from row to row
  for (int64_t c0 = 0; c0 < cols; c0 += kBlock)
    for (int64_t r = 0; r < rows; r++)
      for (int64_t c = c0; c < std::min(c0 + kBlock, cols); c++)
        std::memcpy(to + size_t(r * cols + c) * Bytes, from + (r * row + c * col) * int64_t(Bytes), Bytes);
}

}  // namespace

int64_t Loader::dimension(const std::string& name, size_t index) const {
  const TensorInfo* t = file_.find(name);
  RWKV_CHECK(ModelFormatError, t, file_.path(), ": expected the tensor ", name, ", found none of that name");
  RWKV_CHECK(ModelFormatError, index < t->shape.size() && t->shape[index] > 0 && t->shape[index] < (1 << 24),
             file_.path(), ": ", name, ": expected a matrix, found shape ", shape_text(t->shape));
  return t->shape[index];
}

const TensorInfo& Loader::find(const std::string& name, const std::vector<int64_t>& shape, Kind kind) {
  const TensorInfo* t = file_.find(name);
  RWKV_CHECK(ModelFormatError, t, file_.path(), ": expected the tensor ", name, ", found none of that name");
  RWKV_CHECK(ModelFormatError, same_shape(t->shape, shape), file_.path(), ": ", name, ": expected ", shape_text(shape),
             ", found ", shape_text(t->shape));
  used_.insert(name);
  if (kind == Kind::matrix && !t->packed.empty()) return *t;
  RWKV_CHECK(ModelFormatError, is_float(t->dtype) && t->dtype != DType::f64, file_.path(), ": ", name,
             ": expected numbers as f32, f16 or bf16, found ", name_of(t->dtype));
  bytes_ += t->count() * int64_t(size_of(t->dtype));
  return *t;
}

void Loader::begin(const TensorInfo& t) { samples_.assign(size_t(Fingerprint::samples(t.count())), 0); }

void Loader::read(const TensorInfo& t, int64_t first, int64_t count, std::byte* to) {
  file_.read(t, first, count, to);
  if (sampling_) Fingerprint::take(samples_, t.count(), first, count, to, t.dtype);
  const int64_t done = bytes_read_ += count * int64_t(size_of(t.dtype));
  const int64_t step = std::min(kProgressBytes, bytes_total_ / 256);
  if (std::this_thread::get_id() == caller_ && done - bytes_told_ >= step) tell();
}

void Loader::tell() {
  bytes_told_ = bytes_read_;
  if (progress_) progress_(bytes_told_, bytes_total_);
}

void Loader::finish(const TensorInfo& t) { fingerprint_.add(t.name, t.shape, samples_); }

const std::byte* Loader::read_whole(const TensorInfo& t) {
  begin(t);
  staging_.resize(std::max(staging_.size(), size_t(t.count()) * size_of(t.dtype)));
  read(t, 0, t.count(), staging_.data());
  finish(t);
  return staging_.data();
}

RowSource Loader::rows_of(const TensorInfo& t, int64_t cols, Format format) {
  // Whatever is not simply there costs more to read in small pieces.
  const bool plain = t.contiguous() && t.blocks == BlockType::none;
  return {t.dtype, plain ? kPieceBytes : kStagingBytes,
          [this, &t, cols, format](int64_t row, int64_t count, std::byte* to) {
            read(t, row * cols, count * cols, to);
            check_range(file_, t, t.dtype, to, count * cols, format);
          }};
}

Linear Loader::matrix(const std::string& name, int rows, int cols, Format format, bool transposed) {
  if (transposed) return factors(name, {cols, rows}, 1, rows, cols, {0, 1, rows}, format).front();
  return whole(name, {.format = format, .rows = rows, .cols = cols});
}

const Linear& Loader::whole(const std::string& name, Linear shape) {
  const TensorInfo& t = find(name, {shape.rows, shape.cols}, Kind::matrix);
  Linear& w = linears_[name] = shape;
  if (!t.packed.empty()) return w = packed(t, 1, w).front();
  const size_t bytes = backend_->linear_bytes(w);
  w.data = arena_->take(bytes);
  if (arena_->counting()) return w;
  begin(t);
  backend_->pack(w, rows_of(t, w.cols, w.format));
  finish(t);
  matrices_[name] = {w.format, {w.data, bytes}};
  return w;
}

// A device that wants another layout makes it of rows, and of bf16 as well fp16.
std::vector<Linear> Loader::packed(const TensorInfo& t, int parts, Linear w) {
  const bool as_it_is = backend_->reads_mapped();
  const auto found = as_it_is || is_quantised(w.format) ? std::optional(w.format) : plain_format(t.packed);
  RWKV_CHECK(ModelFormatError, found && t.packed == word_of(*found), file_.path(), ": ", t.name, ": expected it as ",
             word_of(w.format), ", found ", shown(t.packed));
  const size_t part = panels::matrix_bytes(*found, w.rows, w.cols), bytes = part * size_t(parts);
  RWKV_CHECK(ModelFormatError, t.packed_bytes == bytes, file_.path(), ": ", t.name, ": expected ", bytes, " bytes for ",
             shape_text(t.shape), " as ", t.packed, ", found ", t.packed_bytes);
  RWKV_CHECK(ModelFormatError, t.offset % Arena::kAlign == 0, file_.path(), ": ", t.name,
             ": expected it at a multiple of ", Arena::kAlign, " bytes, as it was written, found it at ", t.offset);
  bytes_ += int64_t(bytes);
  std::vector<Linear> matrices(size_t(parts), w);
  if (as_it_is) {
    std::byte* at = where_it_lies(t, bytes);
    for (int p = 0; at && p < parts; p++) matrices[size_t(p)].data = at + size_t(p) * part;
    return matrices;
  }
  for (Linear& matrix : matrices) matrix.data = arena_->take(backend_->linear_bytes(w));
  for (int p = 0; !arena_->counting() && p < parts; p++)
    backend_->pack(matrices[size_t(p)], rows_of_panels(t, size_t(p) * part, *found, w));
  return matrices;
}

// In the mapped file, or read from it.
std::byte* Loader::where_it_lies(const TensorInfo& t, size_t bytes) {
  const bool reading = !arena_->counting();
  std::byte* at = whole_file_ ? const_cast<std::byte*>(whole_file_.get()) + t.offset : arena_->take(bytes);
  if (reading && whole_file_) {
    fetch_pages(at, bytes);
    bytes_read_ += int64_t(bytes);
    tell();
  } else if (reading) {
    constexpr int64_t kRow = Arena::kAlign;  // the bytes as a table
    const TensorInfo raw = t.bytes();
    backend_->copy({at, DType::u8, int64_t(bytes) / kRow, kRow, kRow}, rows_of(raw, kRow, Format::f32));
  }
  return at;
}

RowSource Loader::rows_of_panels(const TensorInfo& t, size_t begin, Format found, const Linear& w) {
  const DType dtype = panels::dtype_of_rows(found);
  const size_t panel = panels::panel_bytes(found, panels::padded_k(found, w.cols));
  return {dtype, kPieceBytes,
          [=, this, raw = t.bytes(), &t, cols = w.cols, format = w.format](int64_t row, int64_t count, std::byte* to) {
            const auto bytes = std::make_unique_for_overwrite<std::byte[]>(panel);
            const size_t row_size = size_t(cols) * size_of(dtype);
            for (int64_t done = 0; done < count;) {
              const int64_t first = (row + done) % panels::kPanel,
                            some = std::min(panels::kPanel - first, count - done);
              const size_t at = begin + size_t((row + done) / panels::kPanel) * panel;
              read(raw, int64_t(at), int64_t(panel), bytes.get());
              panels::unpack(found, bytes.get(), cols, int(first), int(some), to + size_t(done) * row_size);
              done += some;
            }
            check_range(file_, t, dtype, to, count * cols, format);
          }};
}

Linear Loader::matrix_of_sparse(const std::string& name, int rows, int cols, Format format) {
  Linear w = whole(name, {.format = format, .rows = rows, .cols = cols, .mostly_zero_inputs = true});
  const size_t bytes = backend_->column_bytes(w);
  if (bytes == 0 || (!columns_of_packed_ && !file_.find(name)->packed.empty())) return w;
  column_bytes_ += bytes;
  w.columns = arena_->take(bytes);
  if (!arena_->counting()) backend_->pack_columns(w);
  return w;
}

std::vector<Linear> Loader::factors(const std::string& name, const std::vector<int64_t>& shape, int parts, int rows,
                                    int cols, Strides strides, Format format) {
  const TensorInfo& t = find(name, shape, Kind::matrix);
  const Linear factor{.format = format, .rows = rows, .cols = cols};
  if (!t.packed.empty()) return packed(t, parts, factor);
  const size_t bytes = backend_->linear_bytes(factor);
  std::vector<Linear> factors(size_t(parts), factor);
  for (Linear& w : factors) w.data = arena_->take(bytes);
  if (arena_->counting()) return factors;
  const std::byte* numbers = read_whole(t);
  check_range(file_, t, t.dtype, numbers, t.count(), format);
  const size_t element = size_of(t.dtype);
  for (int p = 0; p < parts; p++) {
    const auto turn = [&](int64_t row, int64_t count, std::byte* to) {
      const auto gather = element == 2 ? pick<2> : pick<4>;
      gather(numbers + size_t(p * strides.part + row * strides.row) * element, strides.row, strides.col, count, cols,
             to);
    };
    backend_->pack(factors[size_t(p)], {t.dtype, kPieceBytes, turn});
  }
  // One behind the other, as linear_bytes is a multiple of the arena's alignment.
  matrices_[name] = {format, {factors.front().data, bytes * size_t(parts)}};
  return factors;
}

Tensor Loader::vector(const std::string& name, const std::vector<int64_t>& shape, float (*map)(float), int repeat) {
  const TensorInfo& t = find(name, shape);
  const int64_t count = t.count();
  const Tensor v = arena_->take(DType::f32, 1, count * repeat);
  if (arena_->counting()) return v;
  numbers_.resize(size_t(count * repeat));
  float* out = numbers_.data();
  to_f32(read_whole(t), t.dtype, size_t(count), out);
  if (map) std::transform(out, out + count, out, map);
  for (int64_t i = count * repeat; repeat > 1 && i-- > 0;) out[i] = out[i / repeat];  // from the end: in place
  backend_->write(v, out);
  return v;
}

std::vector<float> Loader::host_numbers(const std::string& name, const std::vector<int64_t>& shape) {
  const TensorInfo& t = find(name, shape);
  if (arena_->counting()) return {};
  std::vector<float> values(size_t(t.count()));
  to_f32(read_whole(t), t.dtype, values.size(), values.data());
  const auto odd = std::ranges::find_if_not(values, [](float v) { return std::isfinite(v); });
  RWKV_CHECK(ModelFormatError, odd == values.end(), file_.path(), ": ", name, ": expected finite numbers, found ",
             *odd);
  return values;
}

Norm Loader::norm(const std::string& name, int64_t count, float eps) {
  return {vector(name + ".weight", {count}), vector(name + ".bias", {count}), eps};
}

Tensor Loader::table(const std::string& name, int64_t rows, int64_t cols) {
  const TensorInfo& t = find(name, {rows, cols});
  const Tensor table = arena_->take(t.dtype, rows, cols);
  if (arena_->counting()) return table;
  begin(t);
  backend_->copy(table, rows_of(t, cols, Format::f32));
  finish(t);
  return table;
}

Tensor Loader::mapped_table(const std::string& name, int64_t rows, int64_t cols) {
  const int64_t bytes = bytes_;
  const TensorInfo& t = find(name, {rows, cols});
  bytes_ = bytes;  // not read, unless below
  widest_table_ = std::max(widest_table_, cols);
  const auto mapping = backend_->reads_mapped() ? file_.map(t) : nullptr;
  if (!mapping) return table(name, rows, cols);
  if (arena_->counting()) return {};
  if (sampling_) {
    begin(t);
    Fingerprint::take(samples_, t.count(), 0, t.count(), mapping.get(), t.dtype);
    finish(t);
  }
  mappings_.push_back(mapping);
  return {const_cast<std::byte*>(mapping.get()), t.dtype, rows, cols, cols};
}

void Loader::check_all_used() const {
  for (const TensorInfo& t : file_.tensors())
    RWKV_CHECK(ModelFormatError, used_.contains(t.name) || skipped_.contains(t.name), file_.path(),
               ": expected only the tensors of this model, found ", shown(t.name), " ", shape_text(t.shape));
}

}  // namespace rwkv
