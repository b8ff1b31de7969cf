#pragma once
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "backend/backend.h"
#include "core/arena.h"
#include "core/checkpoint.h"
#include "model/fingerprint.h"
#include "model/strategy.h"

namespace rwkv {

using LoadProgress = std::function<void(int64_t bytes_done, int64_t bytes_total)>;

// Carries tensors from a file into the weights arena, packed for the device. Used twice over the same code: with a
// counting arena it checks names and shapes and measures, with a real one it reads.
class Loader {
 public:
  explicit Loader(const Checkpoint& file) : file_(file) {}
  // For a file that is packed: no fingerprint is made, and matrices stay in `mapping`, the whole file, if there is one.
  void trust(std::shared_ptr<const std::byte> mapping) {
    sampling_ = false;
    whole_file_ = std::move(mapping);
    if (whole_file_) mappings_.push_back(whole_file_);
  }
  void enter(Backend& backend, Arena& arena) { backend_ = &backend, arena_ = &arena; }  // where the next tensors go
  // Called on this thread alone, now and then; `tell` calls it at once.
  void report(const LoadProgress& progress, int64_t bytes_total) { progress_ = progress, bytes_total_ = bytes_total; }
  void tell();
  // Packed matrices have columns too, although it takes the time to make them.
  void make_columns_of_packed(bool wanted) { columns_of_packed_ = wanted; }

  bool has(const std::string& name) const { return file_.find(name) != nullptr; }
  int64_t dimension(const std::string& name, size_t index) const;  // of a tensor that must be there

  // A (rows, cols) matrix to multiply with; `transposed`: the file holds it as (cols, rows).
  Linear matrix(const std::string& name, int rows, int cols, Format format, bool transposed = false);
  // One whose inputs are mostly zero: with columns, if the device keeps some.
  Linear matrix_of_sparse(const std::string& name, int rows, int cols, Format format);
  // Low-rank factors that lie together in one small tensor of that shape, each (rows, cols): element (row, col) of
  // factor p is the tensor's number p * part + row * row + col * col.
  struct Strides {
    int64_t part, row, col;
  };
  std::vector<Linear> factors(const std::string& name, const std::vector<int64_t>& shape, int parts, int rows, int cols,
                              Strides strides, Format format);
  // (1, count * repeat) float32, each number `repeat` times and as `map` makes it; the file's shape may have dimensions
  // of one beside those given.
  Tensor vector(const std::string& name, const std::vector<int64_t>& shape, float (*map)(float) = nullptr,
                int repeat = 1);
  // Numbers that stay in the host's memory; none while the arena counts. Throws for NaN and infinity.
  std::vector<float> host_numbers(const std::string& name, const std::vector<int64_t>& shape);
  Norm norm(const std::string& name, int64_t count, float eps);       // name.weight and name.bias
  Tensor table(const std::string& name, int64_t rows, int64_t cols);  // row by row in the file's own precision
  // The same, left in the file and mapped where it lies there row by row, if the device reads it there; keeps it so.
  Tensor mapped_table(const std::string& name, int64_t rows, int64_t cols);
  Tensor zeros(int64_t count) { return arena_->take(DType::f32, 1, count); }  // as memory is from the beginning
  void skip(const std::string& name) { skipped_.insert(name); }               // known, not used

  void check_all_used() const;  // throws ModelFormatError naming a tensor nobody asked for
  int64_t widest_table() const { return widest_table_; }
  int64_t bytes() const { return bytes_; }               // of the file's tensors asked for so far
  size_t column_bytes() const { return column_bytes_; }  // of Linear::columns
  const std::set<std::string>& used() const { return used_; }
  const Fingerprint& fingerprint() const { return fingerprint_; }
  // By name, what was made of those that were packed here and not only counted.
  struct Matrix {
    Format format;
    std::span<const std::byte> bytes;
  };
  using Matrices = std::map<std::string, Matrix>;
  Matrices take_matrices() { return std::move(matrices_); }
  // By name, where those lie that the file holds one by one as the model multiplies with them.
  using Linears = std::map<std::string, Linear>;
  Linears take_linears() { return std::move(linears_); }
  using Mappings = std::vector<std::shared_ptr<const std::byte>>;
  Mappings take_mappings() { return std::move(mappings_); }  // to be kept as long as what is mapped is used

 private:
  enum class Kind { numbers, matrix };  // a matrix may be packed
  const TensorInfo& find(const std::string& name, const std::vector<int64_t>& shape, Kind kind = Kind::numbers);
  const Linear& whole(const std::string& name, Linear shape);  // as the file holds it: `shape` gets its data
  // Those that lie one behind the other in a packed tensor.
  std::vector<Linear> packed(const TensorInfo& tensor, int parts, Linear shape);
  std::byte* where_it_lies(const TensorInfo& tensor, size_t bytes);
  RowSource rows_of_panels(const TensorInfo& tensor, size_t begin, Format found, const Linear& w);
  // Between the two of a tensor its elements are read, each once, in any order and by any threads.
  void begin(const TensorInfo& tensor);
  void finish(const TensorInfo& tensor);
  void read(const TensorInfo& tensor, int64_t first, int64_t count, std::byte* to);  // sampling on the way
  RowSource rows_of(const TensorInfo& tensor, int64_t cols, Format format);          // for a matrix of that format
  const std::byte* read_whole(const TensorInfo& tensor);  // begins and finishes it; valid until the next one

  const Checkpoint& file_;
  bool sampling_ = true;
  Backend* backend_ = nullptr;
  Arena* arena_ = nullptr;
  Fingerprint fingerprint_;
  LoadProgress progress_;
  std::set<std::string> used_, skipped_;
  std::vector<std::byte> staging_;
  std::vector<float> samples_, numbers_;
  Mappings mappings_;
  std::shared_ptr<const std::byte> whole_file_;
  Matrices matrices_;
  Linears linears_;
  const std::thread::id caller_ = std::this_thread::get_id();  // where progress is told
  std::atomic<int64_t> bytes_read_ = 0;
  bool columns_of_packed_ = false;
  size_t column_bytes_ = 0;
  int64_t bytes_ = 0, bytes_told_ = 0, bytes_total_ = 0, widest_table_ = 0;
};

}  // namespace rwkv
