// The directory of a zip archive whose entries are stored as they are, as torch.save writes them.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/platform.h"

namespace rwkv {

struct ZipEntry {
  std::string name;
  uint64_t offset = 0;  // bytes from the start of the file to the payload
  uint64_t size = 0;
};

// Proven: every payload lies inside the file, none overlaps another, every local header agrees with the directory, no
// name occurs twice, nothing is compressed or encrypted. Throws ModelFormatError.
std::vector<ZipEntry> read_zip_directory(const File& file);

}  // namespace rwkv
