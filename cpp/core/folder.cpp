#include "core/folder.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <string_view>
#include <system_error>

#include "core/bounds.h"
#include "core/error.h"
#include "core/json.h"
#include "core/platform.h"
#include "core/text.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxIndex = uint64_t(64) << 20;  // bytes
constexpr size_t kMaxFiles = 4096;
constexpr size_t kListed = 8;
constexpr std::array<std::string_view, 2> kNames = {"model.safetensors", "pytorch_model.bin"};
constexpr std::array<std::string_view, 4> kSuffixes = {".safetensors", ".st", ".pth", ".gguf"};

// The file that an index names must lie beside it.
bool is_plain_name(std::string_view name) {
  return !name.empty() && name.front() != '.' && name.find_first_of(std::string_view("/\\\0", 3)) == name.npos;
}

std::string read_text(const std::string& path) {
  const File file(path);
  RWKV_CHECK(ModelFormatError, file.size() <= kMaxIndex, "expected at most ", kMaxIndex, " bytes, found ", file.size());
  std::string text(size_t(file.size()), '\0');
  file.read(0, text.data(), text.size());
  return text;
}

FolderIndex read_index(const std::string& path) try {
  const std::string text = read_text(path);
  FolderIndex index;
  std::map<std::string, size_t> numbers;
  bool found = false;
  JsonReader json(text);
  json.object([&](std::string&& key) {
    if (key != "weight_map") return json.skip();
    found = true;
    json.object([&](std::string&& tensor) {
      const std::string name = json.string();
      RWKV_CHECK(ModelFormatError, is_plain_name(name), shown(tensor),
                 ": expected the name of a file beside it, found '", shown(name), "'");
      const auto [number, added] = numbers.emplace(name, index.files.size());
      if (added) index.files.push_back(name);
      RWKV_CHECK(ModelFormatError, index.files.size() <= kMaxFiles && index.tensors.size() < kMaxTensors,
                 "expected at most ", kMaxFiles, " files and ", kMaxTensors, " tensors, found more");
      index.tensors.emplace(std::move(tensor), number->second);
    });
  });
  json.finish();
  RWKV_CHECK(ModelFormatError, found && !index.files.empty(),
             "expected a weight_map of tensors and their files, found none");
  return index;
} catch (const ModelFormatError& error) {
  throw ModelFormatError(join(path, ": ", error.what()));
}

// Of the whole folder, sorted.
std::vector<std::string> files_with_suffix(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    std::string name = it->path().filename().string();
    const auto fits = [&](std::string_view suffix) { return name.ends_with(suffix); };
    if (name.front() != '.' && std::ranges::any_of(kSuffixes, fits) && is_file(it->path().string()))
      names.push_back(std::move(name));
  }
  RWKV_CHECK(Error, !error, "cannot list ", folder, ": ", error.message());
  std::ranges::sort(names);
  return names;
}

}  // namespace

bool is_folder(const std::string& path) {
  std::error_code ignored;
  return path.find('\0') == path.npos && fs::is_directory(path, ignored);
}

bool is_file(const std::string& path) {
  std::error_code ignored;
  return path.find('\0') == path.npos && fs::is_regular_file(path, ignored);
}

std::map<std::string, std::string> read_folder_config(const std::string& folder) {
  std::map<std::string, std::string> found;
  const std::string path = folder + "/config.json";
  if (!is_file(path)) return found;
  try {
    const std::string text = read_text(path);
    JsonReader json(text);
    json.object([&](std::string&& key) {
      std::string value = json.plain();
      if (!value.empty() && key.size() <= kMaxName) found.emplace(kFolderConfig + key, std::move(value));
    });
    json.finish();
  } catch (const ModelFormatError& error) {
    throw ModelFormatError(join(path, ": ", error.what()));
  }
  return found;
}

FolderIndex find_model(const std::string& folder) {
  for (const std::string_view name : kNames) {
    const std::string path = join(folder, "/", name);
    if (is_file(path)) return {{std::string(name)}, {}};
    if (is_file(path + ".index.json")) return read_index(path + ".index.json");
  }
  const std::vector<std::string> names = files_with_suffix(folder);
  RWKV_CHECK(ModelFormatError, !names.empty(), folder,
             ": expected a folder with a model (such as model.safetensors), found none in it");
  std::string list;
  for (size_t i = 0; i < std::min(names.size(), kListed); ++i) list += (i ? ", " : "") + shown(names[i]);
  RWKV_CHECK(ModelFormatError, names.size() == 1, folder, ": expected one model in the folder, found ", names.size(),
             ": ", list, names.size() > kListed ? ", ..." : "", "; pass the path of one of them");
  return {names, {}};
}

}  // namespace rwkv
