// A checkpoint is a zip archive: data.pkl describes the tensors, data/0, data/1, ... are their storages.
#include "core/pth.h"

#include <algorithm>
#include <string_view>

#include "core/bounds.h"
#include "core/error.h"
#include "core/pickle.h"
#include "core/strided_read.h"
#include "core/text.h"
#include "core/zip.h"

namespace rwkv {
namespace {

constexpr uint64_t kMaxPickle = uint64_t(64) << 20;
// Tensors may share storages, but a small file must not describe memory without end.
constexpr uint64_t kMaxSharing = 8;

const ZipEntry* find(const std::vector<ZipEntry>& entries, const std::string& name) {
  const auto at =
      std::lower_bound(entries.begin(), entries.end(), name,
                       [](const ZipEntry& entry, const std::string& wanted) { return entry.name < wanted; });
  return at != entries.end() && at->name == name ? &*at : nullptr;
}

std::string read_entry(const File& file, const ZipEntry& entry, uint64_t most) {
  RWKV_CHECK(ModelFormatError, entry.size <= most, shown(entry.name), ": expected at most ", most, " bytes, found ",
             entry.size);
  std::string bytes(size_t(entry.size), '\0');
  file.read(entry.offset, bytes.data(), bytes.size());
  return bytes;
}

const ZipEntry& find_pickle(const std::vector<ZipEntry>& entries) {
  const ZipEntry* found = nullptr;
  for (const ZipEntry& entry : entries) {
    if (!entry.name.ends_with("/data.pkl")) continue;
    RWKV_CHECK(ModelFormatError, !found, "expected one data.pkl in the zip archive, found ", shown(found->name),
               " and ", shown(entry.name));
    found = &entry;
  }
  RWKV_CHECK(ModelFormatError, found, "expected a data.pkl in the zip archive, as torch.save writes it, found none");
  return *found;
}

// One more than the largest element index that the tensor reaches in its storage; nothing when that overflows.
std::optional<uint64_t> reach(const PickledTensor& tensor, uint64_t count) {
  uint64_t last = uint64_t(tensor.storage_offset);
  if (count == 0) return last;
  for (size_t i = 0; i < tensor.shape.size(); ++i) {
    const auto step = checked_product(uint64_t(tensor.shape[i] - 1), uint64_t(tensor.stride[i]));
    if (!step || *step > UINT64_MAX - 1 - last) return std::nullopt;
    last += *step;
  }
  return last + 1;
}

// `budget` is what all tensors together may still describe.
TensorInfo locate(PickledTensor&& tensor, const std::string& root, const std::vector<ZipEntry>& entries,
                  uint64_t& budget) {
  const std::string name = shown(tensor.name);
  const ZipEntry* entry = find(entries, root + "data/" + tensor.storage);
  RWKV_CHECK(ModelFormatError, entry, name, ": expected its storage as ", shown(root + "data/" + tensor.storage),
             " in the zip archive, found none");
  const uint64_t elements = uint64_t(tensor.storage_elements);
  const auto storage_bytes = checked_product(elements, size_of(tensor.dtype));
  RWKV_CHECK(ModelFormatError, storage_bytes && *storage_bytes <= entry->size, name, ": expected a storage of ",
             elements, " ", name_of(tensor.dtype), " values, found ", entry->size, " bytes in ", shown(entry->name));
  RWKV_CHECK(ModelFormatError, tensor.shape.size() == tensor.stride.size(), name, ": expected as many strides as the ",
             tensor.shape.size(), " dimensions, found ", tensor.stride.size());
  const auto count = checked_count(tensor.shape);
  const auto end = count ? reach(tensor, *count) : std::nullopt;
  RWKV_CHECK(ModelFormatError, end && *end <= elements, name, ": the shape ", shape_text(tensor.shape),
             " with strides ", shape_text(tensor.stride), " from element ", tensor.storage_offset,
             " reaches outside its storage of ", elements, " elements");
  RWKV_CHECK(ModelFormatError, *count <= elements, name, ": expected a tensor within its storage of ", elements,
             " elements, found ", shape_text(tensor.shape), " repeating them");
  const uint64_t bytes = *count * size_of(tensor.dtype);
  RWKV_CHECK(ModelFormatError, bytes <= budget, name, ": the tensors up to this one are more than ", kMaxSharing,
             " times as large as the file");
  budget -= bytes;
  const uint64_t offset = entry->offset + uint64_t(tensor.storage_offset) * size_of(tensor.dtype);

  TensorInfo info;
  info.name = std::move(tensor.name);
  info.dtype = tensor.dtype;
  info.shape = std::move(tensor.shape);
  info.stride = std::move(tensor.stride);
  info.offset = offset;
  return info;
}

template <class Unpickle>
std::vector<TensorInfo> read_tensors(const File& file, const Unpickle& unpickle, std::string_view what) {
  const std::vector<ZipEntry> entries = read_zip_directory(file);
  const ZipEntry& pickle = find_pickle(entries);
  const std::string root = pickle.name.substr(0, pickle.name.size() - std::string_view("data.pkl").size());
  if (const ZipEntry* order = find(entries, root + "byteorder")) {
    const std::string found = read_entry(file, *order, 64);
    RWKV_CHECK(ModelFormatError, found == "little", "expected little-endian values, found the byte order '",
               shown(found), "'");
  }
  std::vector<PickledTensor> pickled = unpickle(read_entry(file, pickle, kMaxPickle));
  RWKV_CHECK(ModelFormatError, !pickled.empty(), "expected a ", what, " of tensors in data.pkl, found no tensor in it");

  uint64_t budget = checked_product(file.size(), kMaxSharing).value_or(UINT64_MAX);
  std::vector<TensorInfo> tensors;
  for (PickledTensor& tensor : pickled) tensors.push_back(locate(std::move(tensor), root, entries, budget));
  return tensors;
}

}  // namespace

std::vector<TensorInfo> read_pth_index(const File& file) { return read_tensors(file, read_pickled_state_dict, "dict"); }

PthList::PthList(const std::string& path) : file_(path) {
  try {
    tensors_ = read_tensors(file_, read_pickled_list, "list");
  } catch (const ModelFormatError& e) {
    throw ModelFormatError(join(path, ": ", e.what()));
  }
}

std::vector<float> PthList::read(size_t i) const {
  const TensorInfo& t = tensors_.at(i);
  const auto count = size_t(t.count());
  std::vector<std::byte> stored(count * size_of(t.dtype));
  read_strided(file_, t, 0, t.count(), stored.data());
  std::vector<float> values(count);
  to_f32(stored.data(), t.dtype, count, values.data());
  return values;
}

}  // namespace rwkv
