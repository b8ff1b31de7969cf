// Read from the end, as zip is meant to be: end record, directory, then each local header against its entry.
#include "core/zip.h"

#include <algorithm>
#include <string_view>

#include "core/error.h"
#include "core/text.h"

namespace rwkv {
namespace {

constexpr uint32_t kLocalHeader = 0x04034b50;
constexpr uint32_t kDirectoryEntry = 0x02014b50;
constexpr uint32_t kDirectoryEnd = 0x06054b50;
constexpr uint32_t kDirectoryEnd64 = 0x06064b50;
constexpr uint32_t kLocator64 = 0x07064b50;
constexpr size_t kMaxDirectory = size_t(64) << 20;
constexpr uint32_t kSee64 = 0xffffffff;  // the number is in the zip64 record instead

// Little-endian numbers at places that the caller has proven to exist.
class Bytes {
 public:
  explicit Bytes(std::string_view data) : data_(data) {}
  uint16_t u16(size_t at) const { return uint16_t(number(at, 2)); }
  uint32_t u32(size_t at) const { return uint32_t(number(at, 4)); }
  uint64_t u64(size_t at) const { return number(at, 8); }

 private:
  uint64_t number(size_t at, size_t width) const {
    uint64_t value = 0;
    for (size_t i = width; i-- > 0;) value = value << 8 | uint8_t(data_[at + i]);
    return value;
  }
  std::string_view data_;
};

std::string read_string(const File& file, uint64_t offset, size_t size) {
  std::string out(size, '\0');
  file.read(offset, out.data(), size);
  return out;
}

struct Directory {
  uint64_t offset = 0;
  uint64_t size = 0;
  uint64_t entries = 0;
};

// The end record lies at the very end, before a comment of at most 65535 bytes.
Directory find_directory(const File& file) {
  constexpr size_t kEnd = 22, kLocator = 20, kEnd64 = 56;
  RWKV_CHECK(ModelFormatError, file.size() >= kEnd, "expected a zip archive, found a file of ", file.size(), " bytes");
  const size_t tail_size = size_t(std::min<uint64_t>(file.size(), kEnd + 0xffff));
  const uint64_t tail_start = file.size() - tail_size;
  const std::string tail = read_string(file, tail_start, tail_size);
  const Bytes bytes(tail);
  size_t at = tail_size - kEnd;
  while (bytes.u32(at) != kDirectoryEnd || bytes.u16(at + 20) != tail_size - kEnd - at) {
    RWKV_CHECK(ModelFormatError, at > 0, "the zip archive has no directory at its end: it was cut short");
    --at;
  }
  RWKV_CHECK(ModelFormatError,
             bytes.u16(at + 4) == 0 && bytes.u16(at + 6) == 0 && bytes.u16(at + 8) == bytes.u16(at + 10),
             "expected a zip archive in one part, found part ", bytes.u16(at + 4), " of several");

  Directory directory{bytes.u32(at + 16), bytes.u32(at + 12), bytes.u16(at + 10)};
  uint64_t end = tail_start + at;
  if (at >= kLocator && bytes.u32(at - kLocator) == kLocator64) {
    const uint64_t place = bytes.u64(at - kLocator + 8);
    RWKV_CHECK(ModelFormatError, end >= kLocator + kEnd64 && place == end - kLocator - kEnd64,
               "expected the zip64 end record just before its locator, found it said to be at byte ", place);
    const std::string record = read_string(file, place, kEnd64);
    const Bytes wide(record);
    RWKV_CHECK(ModelFormatError, wide.u32(0) == kDirectoryEnd64 && wide.u64(4) == kEnd64 - 12,
               "expected a zip64 end record at byte ", place);
    const Directory wide_directory{wide.u64(48), wide.u64(40), wide.u64(32)};
    const bool agree = (directory.offset == kSee64 || directory.offset == wide_directory.offset) &&
                       (directory.size == kSee64 || directory.size == wide_directory.size) &&
                       (directory.entries == 0xffff || directory.entries == wide_directory.entries) &&
                       wide.u64(24) == wide_directory.entries && wide.u32(16) == 0 && wide.u32(20) == 0;
    RWKV_CHECK(ModelFormatError, agree, "the zip archive's two end records disagree");
    directory = wide_directory;
    end = place;
  }
  RWKV_CHECK(ModelFormatError, directory.size <= end && directory.offset == end - directory.size,
             "expected the zip directory to end at byte ", end, ", found ", directory.size, " bytes of it at byte ",
             directory.offset);
  RWKV_CHECK(ModelFormatError, directory.size <= kMaxDirectory, "expected a zip directory of at most ", kMaxDirectory,
             " bytes, found ", directory.size);
  return directory;
}

// An entry with the extent it occupies in the file, local header included.
struct Extent {
  ZipEntry entry;
  uint64_t start = 0;
};

// Replaces the numbers that stand in the zip64 extra field, which holds them in this order.
void read_extra64(std::string_view extra, std::string_view name, uint64_t& size, uint64_t& packed, uint64_t& start) {
  if (size != kSee64 && packed != kSee64 && start != kSee64) return;
  const Bytes bytes(extra);
  for (size_t at = 0; extra.size() - at >= 4;) {
    const size_t length = bytes.u16(at + 2);
    RWKV_CHECK(ModelFormatError, length <= extra.size() - at - 4, shown(name), ": its zip extra field is cut short");
    size_t field = at + 4;
    at = field + length;
    if (bytes.u16(field - 4) != 1) continue;
    for (uint64_t* number : {&size, &packed, &start}) {
      if (*number != kSee64) continue;
      RWKV_CHECK(ModelFormatError, at - field >= 8, shown(name), ": its zip64 field is cut short");
      *number = bytes.u64(field);
      field += 8;
    }
    return;
  }
  throw ModelFormatError(join(shown(name), ": expected a zip64 field, found none"));
}

void check_plain(std::string_view name, uint16_t flags, uint16_t method) {
  RWKV_CHECK(ModelFormatError, (flags & 0x2041) == 0, shown(name),
             ": expected a plain zip entry, found an encrypted one");
  RWKV_CHECK(ModelFormatError, method == 0, shown(name),
             ": expected a stored zip entry, found a compressed one (method ", method, ")");
}

Extent read_entry(const File& file, std::string_view directory, size_t& at, uint64_t directory_start) {
  constexpr size_t kEntry = 46, kLocal = 30;
  const Bytes bytes(directory);
  RWKV_CHECK(ModelFormatError, directory.size() - at >= kEntry && bytes.u32(at) == kDirectoryEntry,
             "expected a zip directory entry at byte ", directory_start + at);
  const size_t name_size = bytes.u16(at + 28), extra_size = bytes.u16(at + 30), comment_size = bytes.u16(at + 32);
  const size_t entry_size = kEntry + name_size + extra_size + comment_size;
  RWKV_CHECK(ModelFormatError, directory.size() - at >= entry_size, "the zip directory entry at byte ",
             directory_start + at, " is cut short");
  const std::string_view name = directory.substr(at + kEntry, name_size);
  check_plain(name, bytes.u16(at + 8), bytes.u16(at + 10));
  uint64_t packed = bytes.u32(at + 20), size = bytes.u32(at + 24), start = bytes.u32(at + 42);
  read_extra64(directory.substr(at + kEntry + name_size, extra_size), name, size, packed, start);
  RWKV_CHECK(ModelFormatError, packed == size, shown(name), ": expected a stored zip entry of ", size, " bytes, found ",
             packed);
  at += entry_size;

  const size_t head_size = kLocal + name_size;
  RWKV_CHECK(ModelFormatError, start <= directory_start && head_size <= directory_start - start, shown(name),
             ": expected its zip entry before byte ", directory_start, ", found it at byte ", start);
  const std::string head = read_string(file, start, head_size);
  const Bytes local(head);
  RWKV_CHECK(
      ModelFormatError,
      local.u32(0) == kLocalHeader && local.u16(26) == name_size && std::string_view(head).substr(kLocal) == name,
      shown(name), ": expected its local zip header at byte ", start, ", found another");
  check_plain(name, local.u16(6), local.u16(8));
  // Written as a stream, a local header has no sizes yet.
  const bool streamed = local.u16(6) & 8;
  for (const uint32_t local_size : {local.u32(18), local.u32(22)}) {
    RWKV_CHECK(ModelFormatError, streamed || local_size == kSee64 || local_size == size, shown(name), ": expected ",
               size, " bytes as in the zip directory, found ", local_size, " in its local header");
  }
  const uint64_t offset = start + head_size + local.u16(28);
  RWKV_CHECK(ModelFormatError, offset <= directory_start && size <= directory_start - offset, shown(name),
             ": expected ", size, " bytes at byte ", offset, ", found the zip directory at byte ", directory_start);
  return {{std::string(name), offset, size}, start};
}

}  // namespace

std::vector<ZipEntry> read_zip_directory(const File& file) {
  const Directory place = find_directory(file);
  const std::string directory = read_string(file, place.offset, size_t(place.size));
  std::vector<Extent> extents;
  for (size_t at = 0; at < directory.size();) extents.push_back(read_entry(file, directory, at, place.offset));
  RWKV_CHECK(ModelFormatError, extents.size() == place.entries, "expected ", place.entries,
             " entries in the zip directory, found ", extents.size());

  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) { return a.start < b.start; });
  for (size_t i = 1; i < extents.size(); ++i) {
    const ZipEntry& before = extents[i - 1].entry;
    RWKV_CHECK(ModelFormatError, before.offset + before.size <= extents[i].start, "the zip entries ",
               shown(before.name), " and ", shown(extents[i].entry.name), " overlap");
  }
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return a.entry.name < b.entry.name; });
  std::vector<ZipEntry> entries;
  for (Extent& extent : extents) {
    RWKV_CHECK(ModelFormatError, entries.empty() || entries.back().name != extent.entry.name,
               "expected different names in the zip directory, found ", shown(extent.entry.name), " twice");
    entries.push_back(std::move(extent.entry));
  }
  return entries;
}

}  // namespace rwkv
