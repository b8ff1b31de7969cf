// What an adapter changes of each matrix of a model, read and checked against the model's shapes.
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/error.h"
#include "core/text.h"
#include "model/adapter_file.h"
#include "model/adapters.h"
#include "model/config.h"
#include "model/merge.h"

namespace rwkv {

// W += B A, with A (rank, cols) and B (rows, rank), which has the adapter's strength.
struct LowRankChange {
  std::vector<float> a, b;
  int64_t rank;
};

// MiSS, see add_shards.
struct ShardChange {
  std::vector<float> block;  // (rank, width)
  int64_t rank, width;
  float scale;
};

// Bat, see add_blocks.
struct BlockChange {
  std::vector<float> blocks;
  int64_t side;
  BlockOf kind;
  float scale;
};

using AdapterChange = std::variant<LowRankChange, ShardChange, BlockChange>;

// Throws ModelFormatError, naming the tensor, for what does not fit, and what `poll` throws, which is called while
// numbers are read.
class AdapterReader {
 public:
  AdapterReader(const AdapterSpec& spec, const Config& config, std::function<void()> poll = {});

  const AdapterFile& adapter() const { return adapter_; }
  std::string model_text() const;  // "RWKV-7 model of 12 layers"

  // Of a module of the adapter, whose weight has this shape. Where that is none of a matrix, or null, `instead` says
  // what is the matter with the weight.
  AdapterChange change(const std::string& module, const std::vector<int64_t>* shape, std::string_view instead) const;

  template <class... Parts>
  void expect(bool condition, const std::string& name, const Parts&... message) const {
    RWKV_CHECK(ModelFormatError, condition, spec_.path, ": ", shown(name), ": expected ", message...);
  }

 private:
  using Shape = std::vector<int64_t>;
  void check_alpha() const;
  std::vector<float> numbers(const TensorInfo& t) const;
  void expect_rank(const std::string& module, const std::string& name, int64_t rank, int64_t most) const;
  void expect_type(const std::string& name, bool lora) const;
  float finite(double strength, const std::string& module) const;
  float strength(const std::string& module, int64_t rank) const;
  LowRankChange low_rank(const std::string& module, const Shape& shape, const TensorInfo& a, const TensorInfo& b) const;
  LowRankChange of_table(const std::string& module, const Shape& shape, const TensorInfo& a, const TensorInfo& b) const;
  AdapterChange blocks(const std::string& module, const Shape& shape, const TensorInfo& t, AdapterPart part) const;

  const AdapterSpec spec_;
  const Config config_;
  const AdapterFile adapter_;
  const std::function<void()> poll_;
};

// Elements [first, first + count) as float32.
void read_floats(const Checkpoint& file, const TensorInfo& t, int64_t first, int64_t count, float* to);
void expect_finite_numbers(const std::string& path, const std::string& name, std::span<const float> values);

}  // namespace rwkv
