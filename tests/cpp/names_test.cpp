// Files of other projects under the official names: every element of a view is the one it must come from, also where a
// tensor is put together from parts, and in whatever pieces it is read.
#include "model/names.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>

#include "check.h"
#include "core/bounds.h"
#include "core/error.h"
#include "core/safetensors.h"

namespace fs = std::filesystem;
using namespace rwkv;

namespace {

struct Stored {
  std::string name;
  std::vector<int64_t> shape;
};

// A safetensors file whose tensors hold 0, 1, 2, ... as float32.
class Saved {
 public:
  explicit Saved(const std::vector<Stored>& tensors)
      : path_((fs::temp_directory_path() / join("rwkv-names-test-", process_id())).string()) {
    std::vector<TensorInfo> infos;
    std::string data;
    for (const Stored& t : tensors) {
      TensorInfo& info = infos.emplace_back();
      info.name = t.name, info.shape = t.shape, info.stride = dense_strides(t.shape);
      for (int64_t i = 0; i < info.count(); ++i) {
        const auto value = float(i);
        data.append(reinterpret_cast<const char*>(&value), sizeof value);
      }
    }
    std::ofstream(path_, std::ios::binary) << write_safetensors_header({}, infos) << data;
  }
  ~Saved() { fs::remove(path_); }
  Checkpoint named() const { return with_official_names(Checkpoint::open(path_)); }

 private:
  std::string path_;
};

std::vector<float> read(const Checkpoint& file, const TensorInfo& t, int64_t first, int64_t count) {
  std::vector<float> out(size_t(count), -1.0f);
  file.read(t, first, count, out.data());
  return out;
}

// The tensor of that official name has that shape, and element i is number at(i) of the stored one.
template <class At>
void expect(const Checkpoint& file, const std::string& name, const std::vector<int64_t>& shape, At at) {
  const TensorInfo* t = file.find(name);
  if (!t) return check::fail(__FILE__, __LINE__, "no " + name);
  if (t->shape != shape) return check::fail(__FILE__, __LINE__, name + ": " + shape_text(t->shape));
  const std::vector<float> values = read(file, *t, 0, t->count());
  for (size_t i = 0; i < values.size(); ++i)
    if (values[i] != float(at(int64_t(i))))
      return check::fail(__FILE__, __LINE__, join(name, "[", i, "] = ", values[i]));
}

const auto same = [](int64_t i) { return i; };
auto turned(int64_t rows, int64_t cols) {
  return [=](int64_t i) { return i % cols * rows + i / cols; };
}

}  // namespace

TEST(mixes_of_fla_come_into_the_official_order) {
  constexpr int64_t C = 7, D = 3, kWhere[] = {1, 2, 3, 0, 4};  // w k v r g in r w k v g
  const Checkpoint file = Saved({{"model.embeddings.weight", {2, C}},
                                 {"model.layers.1.attn.x_proj.0.linear.weight", {5 * D, C}},
                                 {"model.layers.1.attn.x_proj.2.weight", {C, 5 * D}},
                                 {"model.layers.1.attn.x_bias", {5, C}},
                                 {"model.layers.1.attn.w_proj.linear.lora.0.weight", {D, C}}})
                              .named();
  expect(file, "emb.weight", {2, C}, same);
  expect(file, "blocks.1.att.time_decay_w1", {C, D}, turned(C, D));
  for (int64_t q = 0; q < 5; ++q)
    expect(
        file, std::string("blocks.1.att.time_maa_") + "wkvrg" [q], { 1, 1, C },
        [&](int64_t i) { return kWhere[q] * C + i; });
  expect(file, "blocks.1.att.time_maa_w1", {C, 5 * D}, [&](int64_t i) {
    const int64_t row = i / (5 * D), col = i % (5 * D);
    return (kWhere[col / D] * D + col % D) * C + row;
  });
  expect(file, "blocks.1.att.time_maa_w2", {5, D, C}, [&](int64_t i) {
    const int64_t part = i / (D * C), rank = i / C % D, channel = i % C;
    return channel * 5 * D + kWhere[part] * D + rank;
  });
}

TEST(a_tensor_of_parts_is_read_in_any_pieces) {
  const Checkpoint file = Saved({{"model.embeddings.weight", {2, 7}},
                                 {"model.layers.0.attn.x_proj.0.linear.weight", {15, 7}},
                                 {"model.layers.0.attn.x_proj.2.weight", {7, 15}}})
                              .named();
  for (const char* name : {"blocks.0.att.time_maa_w1", "blocks.0.att.time_maa_w2"}) {
    const TensorInfo& t = *file.find(name);
    CHECK(!t.contiguous());
    const std::vector<float> whole = read(file, t, 0, t.count());
    for (int64_t first = 0; first <= t.count(); ++first)
      for (int64_t count = 0; count <= t.count() - first; ++count)
        CHECK(read(file, t, first, count) == std::vector<float>(whole.begin() + first, whole.begin() + first + count));
    CHECK_THROWS(read(file, t, t.count(), 1), Error, "within its 105 elements");
  }
}

TEST(parts_longer_than_a_block) {
  constexpr int64_t C = 300'000;
  const Checkpoint file = Saved({{"model.embeddings.weight", {1, C}},
                                 {"model.layers.0.attn.x_proj.0.linear.weight", {5, C}},
                                 {"model.layers.0.attn.x_proj.2.weight", {C, 5}}})
                              .named();
  constexpr int64_t kWhere[] = {1, 2, 3, 0, 4};
  expect(file, "blocks.0.att.time_maa_w1", {C, 5}, [&](int64_t i) { return kWhere[i % 5] * C + i / 5; });
  expect(file, "blocks.0.att.time_maa_w2", {5, 1, C}, [&](int64_t i) { return i % C * 5 + kWhere[i / C]; });
}

TEST(low_rank_matrices_of_st_files_are_turned_back) {
  const std::vector<Stored> tensors = {{"emb.weight", {2, 8}},
                                       {"blocks.0.att.key.weight", {8, 8}},
                                       {"blocks.0.att.w1", {3, 8}},
                                       {"blocks.0.att.a1", {8, 8}},
                                       {"blocks.0.att.w2", {8, 3}}};
  const Checkpoint file = Saved(tensors).named();
  expect(file, "blocks.0.att.w1", {8, 3}, turned(8, 3));
  expect(file, "blocks.0.att.w2", {3, 8}, turned(3, 8));
  expect(file, "blocks.0.att.a1", {8, 8}, turned(8, 8));
  expect(file, "blocks.0.att.key.weight", {8, 8}, same);

  auto official = tensors;
  std::swap(official[2].shape[0], official[2].shape[1]);
  std::swap(official[4].shape[0], official[4].shape[1]);
  const Checkpoint straight = Saved(official).named();
  expect(straight, "blocks.0.att.w1", {8, 3}, same);
  expect(straight, "blocks.0.att.a1", {8, 8}, same);
}

TEST(wrong_shapes_are_named) {
  CHECK_THROWS(Saved({{"layers.0.attn.x_bias", {4, 8}}}).named(), ModelFormatError,
               "x_bias: expected 5 rows, found (4, 8)");
  CHECK_THROWS(Saved({{"layers.0.attn.x_bias", {40}}}).named(), ModelFormatError, "expected 5 rows, found (40)");
  CHECK_THROWS(Saved({{"layers.0.attn.x_proj.2.weight", {8, 9}}}).named(), ModelFormatError, "five parts side by side");
  CHECK_THROWS(Saved({{"layers.0.attn.x_proj.0.linear.weight", {9, 8}}}).named(), ModelFormatError,
               "five parts, one below the other");
  CHECK_THROWS(Saved({{"layers.0.attn.w_lora.lora.0.weight", {9}}}).named(), ModelFormatError, "expected a matrix");
}

CHECK_MAIN
