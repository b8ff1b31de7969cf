// The files of a model in a folder, as the Hugging Face libraries lay them out.
#pragma once
#include <cstddef>
#include <map>
#include <string>
#include <vector>

namespace rwkv {

struct FolderIndex {
  std::vector<std::string> files;         // names inside the folder, each once
  std::map<std::string, size_t> tensors;  // which file has a tensor, where the folder has an index that says so
};

// The numbers, booleans and nulls of the folder's config.json as text, each key behind this word.
inline constexpr const char* kFolderConfig = "config.json: ";
std::map<std::string, std::string> read_folder_config(const std::string& folder);  // empty where there is none

bool is_folder(const std::string& path);
bool is_file(const std::string& path);  // a regular one

// model.safetensors or its shards, else pytorch_model.bin or its shards, else the one model file there. Throws
// ModelFormatError naming what it found instead.
FolderIndex find_model(const std::string& folder);

}  // namespace rwkv
