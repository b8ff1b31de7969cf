// The safetensors container: 8-byte little-endian header length, JSON header, data.
#pragma once
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/checkpoint.h"

namespace rwkv {

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;  // offsets from the start of the file, ascending; no holes, no overlap
  std::vector<std::pair<std::string, std::string>> metadata;  // in the order of the file
};

// `head` is the start of the file: at least the 8 bytes and the header. Proves that the tensors fill [header end,
// file_size) exactly. Throws ModelFormatError. Caps the header at 100 MB before anything is allocated.
SafetensorsHeader parse_safetensors(std::span<const std::byte> head, uint64_t file_size);
uint64_t safetensors_header_end(std::span<const std::byte, 8> length_field, uint64_t file_size);

// 8-byte length + JSON, padded with spaces so that the data that follows is 64-byte aligned. Metadata keeps its order.
std::string write_safetensors_header(const std::vector<std::pair<std::string, std::string>>& metadata,
                                     const std::vector<TensorInfo>& tensors);  // offset is ignored: dense, in order

}  // namespace rwkv
