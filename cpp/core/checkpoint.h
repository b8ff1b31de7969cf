#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/ggml_blocks.h"
#include "core/platform.h"

namespace rwkv {

// Numbers that are made, while they are read, of those of files.
struct Derived {
  DType stored;                                                       // what the file has them as
  std::function<void(int64_t first, int64_t count, float* to)> read;  // of the elements in row-major order
};

// Where a tensor of a file lies. Proven by the reader: every element is inside the file.
struct TensorInfo {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  std::vector<int64_t> stride;  // elements; torch views may be strided
  uint64_t offset = 0;          // bytes from the start of the file to the first element
  // Blocks are decoded when read; dtype is then f32, and the first element begins a block.
  BlockType blocks = BlockType::none;
  int exponent = 0;  // what is read are the file's values times 2^exponent; for f32 and bf16 only
  size_t file = 0;   // which of the checkpoint's files
  // Not empty: the tensor is these, one after the other along the axis `joined`; stride and offset mean nothing.
  std::vector<TensorInfo> parts = {};
  size_t joined = 0;
  // If there, the numbers are what it makes; dtype is then f32, and stride and offset mean nothing.
  std::shared_ptr<const Derived> derived = {};
  // Not empty: what lies there are so many bytes that a device has made of the numbers, in its format of that name, and
  // no numbers to read; dtype and stride mean nothing.
  std::string packed = {};
  uint64_t packed_bytes = 0;

  TensorInfo bytes() const;  // those of a packed tensor, as one
  int64_t count() const;     // elements
  bool contiguous() const;
};
std::string shape_text(const std::vector<int64_t>& shape);  // "(2048, 96)"

// An opened model of any known container: names and places of its tensors. Nothing of the payload is read.
class Checkpoint {
 public:
  // A file, recognised by content, not by suffix, or the folder of a model, whose tensors may lie in several files.
  // Throws ModelFormatError.
  static Checkpoint open(const std::string& path);

  const std::string& path() const { return path_; }
  const std::string& container() const { return container_; }  // "pth", "safetensors", "gguf"
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  const TensorInfo* find(const std::string& name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  // The same file seen through other names and views, which lie inside its tensors.
  Checkpoint with(std::vector<TensorInfo> tensors) const;

  // Elements [first, first + count) in row-major order of the tensor's shape, in its dtype. Never needs more
  // than a few MiB of its own, whatever the strides.
  void read(const TensorInfo& tensor, int64_t first, int64_t count, void* dst) const;
  // The tensor as it lies in the file, mapped; null where it does not lie there in the order of its shape, as numbers
  // that can be read in place.
  std::shared_ptr<const std::byte> map(const TensorInfo& tensor) const;
  // The whole file that the tensor lies in, to be read from one end to the other again and again.
  std::shared_ptr<const std::byte> map_file(const TensorInfo& tensor) const;

 private:
  Checkpoint(std::string path, std::vector<File> files, std::string container, std::vector<TensorInfo> tensors,
             std::map<std::string, std::string> metadata);
  static Checkpoint open_file(const std::string& path);
  static Checkpoint open_folder(const std::string& path);
  void read_joined(const TensorInfo& tensor, int64_t first, int64_t count, std::byte* dst) const;

  std::string path_;
  std::vector<File> files_;
  std::string container_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, size_t> index_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace rwkv
