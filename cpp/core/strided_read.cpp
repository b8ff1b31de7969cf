// A range of elements is cut into boxes, and a box into smaller ones, until each is either one dense run, read in
// place, or lies in a window of the file small enough to read whole and pick from. Cutting where the file's strides
// are widest makes the windows of a transposed matrix consecutive: the file is read once, from front to back.
#include "core/strided_read.h"

#include <algorithm>
#include <cstring>

namespace rwkv {
namespace {

constexpr int64_t kWindow = int64_t(4) << 20;        // bytes
constexpr int64_t kCheapWindow = int64_t(64) << 10;  // worth reading whole for a few elements
constexpr int64_t kPacked = int64_t(256) << 10;      // bytes of blocks decoded at a time
constexpr int64_t kMaxWaste = 8;                     // a larger window holds at most this many times what is picked

struct Axis {
  int64_t size;
  int64_t src;  // elements from one index to the next, in the file
  int64_t dst;  // and in memory
};
using Box = std::vector<Axis>;  // at least one axis, no axis of size 0

// The same elements with as few axes as possible.
Box merged(const Box& box) {
  Box out;
  for (const Axis& axis : box) {
    if (axis.size == 1) continue;
    if (!out.empty() && out.back().src == axis.src * axis.size && out.back().dst == axis.dst * axis.size) {
      out.back() = {out.back().size * axis.size, axis.src, axis.dst};
    } else {
      out.push_back(axis);
    }
  }
  if (out.empty()) out.push_back({1, 1, 1});
  return out;
}

template <size_t kWidth>
void pick(const Axis* axis, size_t axes, const std::byte* src, std::byte* dst) {
  const int64_t from = axis->src * int64_t(kWidth), to = axis->dst * int64_t(kWidth);
  if (axes > 1) {
    for (int64_t i = 0; i < axis->size; ++i) pick<kWidth>(axis + 1, axes - 1, src + i * from, dst + i * to);
  } else if (axis->src == 1 && axis->dst == 1) {
    std::memcpy(dst, src, size_t(axis->size) * kWidth);
  } else {
    for (int64_t i = 0; i < axis->size; ++i) std::memcpy(dst + i * to, src + i * from, kWidth);
  }
}

class Reader {
 public:
  Reader(const File& file, const TensorInfo& tensor)
      : file_(file), tensor_(tensor), width_(int64_t(size_of(tensor.dtype))), inner_(tensor.shape.size() + 1, 1) {
    int64_t span = 1;
    for (size_t i = tensor.shape.size(); i-- > 0;) {
      inner_[i] = inner_[i + 1] * tensor.shape[i];
      span += (tensor.shape[i] - 1) * tensor.stride[i];
    }
    window_size_ = size_t(std::min(kWindow, span * width_));
  }

  // The elements [first, first + count) of the sub-tensor that has the axes from `axis` on and starts at element `src`.
  void range(size_t axis, int64_t src, int64_t first, int64_t count, std::byte* dst) {
    if (count == 0) return;
    if (axis == tensor_.shape.size()) return box({{1, 1, 1}}, src, dst);
    const int64_t inner = inner_[axis + 1];
    const int64_t step = tensor_.stride[axis];
    if (const int64_t skip = first % inner; skip > 0) {  // the rest of an index begun before
      const int64_t some = std::min(count, inner - skip);
      range(axis + 1, src + first / inner * step, skip, some, dst);
      first += some, count -= some, dst += some * width_;
    }
    if (const int64_t whole = count / inner; whole > 0) {
      Box axes{{whole, step, inner}};
      for (size_t i = axis + 1; i < tensor_.shape.size(); ++i) {
        axes.push_back({tensor_.shape[i], tensor_.stride[i], inner_[i + 1]});
      }
      box(merged(axes), src + first / inner * step, dst);
      first += whole * inner, count -= whole * inner, dst += whole * inner * width_;
    }
    if (count > 0) range(axis + 1, src + first / inner * step, 0, count, dst);
  }

 private:
  void box(const Box& axes, int64_t src, std::byte* dst) {
    if (axes.size() == 1 && axes[0].src == 1 && axes[0].dst == 1) {
      return fetch(src, axes[0].size, dst);
    }
    int64_t span = 1, count = 1;
    size_t widest = 0;
    for (size_t i = 0; i < axes.size(); ++i) {
      span += (axes[i].size - 1) * axes[i].src;
      count *= axes[i].size;
      if ((axes[i].size - 1) * axes[i].src > (axes[widest].size - 1) * axes[widest].src) widest = i;
    }
    const bool dense = span / kMaxWaste <= count;
    if (span <= (dense ? kWindow : kCheapWindow) / width_) {
      if (!window_) window_ = std::make_unique_for_overwrite<std::byte[]>(window_size_);
      fetch(src, span, window_.get());
      return pick(axes, dst);
    }
    // Not yet: two halves across the widest axis.
    const Axis& axis = axes[widest];
    const int64_t half = axis.size / 2;
    Box low = axes, high = axes;
    low[widest].size = half;
    high[widest].size -= half;
    box(merged(low), src, dst);
    box(merged(high), src + half * axis.src, dst + half * axis.dst * width_);
  }

  void pick(const Box& axes, std::byte* dst) const {
    const auto picked = width_ == 1   ? rwkv::pick<1>
                        : width_ == 2 ? rwkv::pick<2>
                        : width_ == 4 ? rwkv::pick<4>
                                      : rwkv::pick<8>;
    picked(axes.data(), axes.size(), window_.get(), dst);
  }

  // `count` elements that follow each other in the file, from the one `element` after the first of the tensor.
  void fetch(int64_t element, int64_t count, std::byte* dst) {
    if (tensor_.blocks == BlockType::none) {
      return file_.read(tensor_.offset + uint64_t(element) * uint64_t(width_), dst, size_t(count * width_));
    }
    const auto unit = int64_t(block_elements(tensor_.blocks)), bytes = int64_t(block_bytes(tensor_.blocks));
    const auto read_blocks = [&](int64_t first, int64_t some, float* to) {
      if (!packed_) packed_ = std::make_unique_for_overwrite<std::byte[]>(size_t(kPacked));
      file_.read(tensor_.offset + uint64_t(first * bytes), packed_.get(), size_t(some * bytes));
      decode_blocks(tensor_.blocks, packed_.get(), size_t(some), to);
    };
    while (count > 0) {
      const int64_t skip = element % unit;
      int64_t some = std::min(count / unit, kPacked / bytes) * unit;
      if (skip == 0 && some > 0) {
        read_blocks(element / unit, some / unit, reinterpret_cast<float*>(dst));
      } else {  // a part of one block
        float block[kMaxBlockElements];
        some = std::min(count, unit - skip);
        read_blocks(element / unit, 1, block);
        std::memcpy(dst, block + skip, size_t(some) * sizeof(float));
      }
      element += some, count -= some, dst += some * int64_t(sizeof(float));
    }
  }

  const File& file_;
  const TensorInfo& tensor_;
  int64_t width_;
  std::vector<int64_t> inner_;  // elements in one index of the axis before
  size_t window_size_ = 0;
  std::unique_ptr<std::byte[]> window_;
  std::unique_ptr<std::byte[]> packed_;  // blocks as the file has them
};

}  // namespace

void read_strided(const File& file, const TensorInfo& tensor, int64_t first, int64_t count, void* dst) {
  Reader(file, tensor).range(0, 0, first, count, static_cast<std::byte*>(dst));
}

}  // namespace rwkv
