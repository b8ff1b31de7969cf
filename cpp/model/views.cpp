#include "model/views.h"

#include <charconv>
#include <set>
#include <utility>

namespace rwkv {

TensorInfo& Views::same(const TensorInfo& t, std::string name) {
  out_.push_back(t);
  out_.back().name = std::move(name);
  return out_.back();
}

TensorInfo& Views::transposed(const TensorInfo& t, std::string name) {
  expect(t.shape.size() >= 2, t, "a matrix");
  TensorInfo& view = same(t, std::move(name));
  const size_t last = t.shape.size() - 1;
  std::swap(view.shape[last], view.shape[last - 1]);
  std::swap(view.stride[last], view.stride[last - 1]);
  return view;
}

TensorInfo& Views::heads(const TensorInfo& t, std::string name, int64_t head_size) {
  const int64_t count = t.count();
  expect(count % head_size == 0, t, "a multiple of the head size ", head_size);
  TensorInfo& view = same(t, std::move(name));
  view.shape = {count / head_size, head_size};
  view.stride = {head_size, 1};
  return view;
}

void Views::rows(const TensorInfo& t, const std::string& stem, std::string_view letters) {
  expect(t.shape.size() >= 2, t, letters.size(), " rows");
  const int64_t rows = t.shape.front(), cols = t.shape.back();
  expect(rows == int64_t(letters.size()) && t.count() == rows * cols && t.contiguous(), t, letters.size(), " rows");
  const bool plain = t.blocks == BlockType::none;
  const int64_t row_bytes = plain ? cols * int64_t(size_of(t.dtype))
                                  : cols / int64_t(block_elements(t.blocks)) * int64_t(block_bytes(t.blocks));
  for (size_t i = 0; i < letters.size(); ++i) {
    TensorInfo& view = same(t, stem + letters[i]);
    view.shape = {1, 1, cols};
    view.stride = {cols, cols, 1};
    view.offset += uint64_t(row_bytes) * i;
  }
}

std::vector<TensorInfo> Views::take() {
  std::set<std::string_view> names;
  for (const TensorInfo& t : out_)
    RWKV_CHECK(ModelFormatError, names.insert(t.name).second, file_.path(),
               ": expected each tensor once, found two that are ", shown(t.name));
  return std::exchange(out_, {});
}

std::optional<int> take_block(std::string_view& name) {
  int block = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), block);
  const size_t digits = size_t(end - name.data());
  if (error != std::errc() || block < 0 || digits == name.size() || *end != '.') return std::nullopt;
  name.remove_prefix(digits + 1);
  return block;
}

}  // namespace rwkv
