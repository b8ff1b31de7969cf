// Files whose matrices lie as the CPU multiplies with them, so that opening one there reads next to nothing; a GPU
// reads all of them and turns them on the way, to the numbers and scales that it would make of the original. It is a
// safetensors file: each matrix is a tensor of bytes, in panels (factors that share a tensor one behind the other); the
// embedding table, vectors and norms are as in the file that it was made of. Its metadata say, as JSON
// under "rwkv_packed",
//   {"layout":1, "precision":"int8", "small":"bf16", "matrices":{"head.weight":{"format":"int8","shape":[65536,2048]}}}
// where `layout` is that of backend/panels.h, precision and small (what low-rank matrices become) are what
// parse_precision takes. Beside them stands the fingerprint of the original weights, which these cannot give any more.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "core/checkpoint.h"
#include "model/strategy.h"

namespace rwkv {

struct Packed {
  std::string precision;  // "int8"
  Formats formats;
  std::string fingerprint;
};

// What a file says of its matrices; nothing for other files. Throws ModelFormatError.
std::optional<Packed> packed_in(const Checkpoint& file);
bool is_packed(const Checkpoint& file);
void expect_unpacked(const Checkpoint& file);  // throws ModelFormatError for such a file

// The same file with the shapes of the packed matrices. `file` is one of those.
Checkpoint with_packed_matrices(const Checkpoint& file);

// The whole file, mapped, if its pages are huge ones: in small pages its matrices are slower than in memory. Otherwise
// null. RWKV_MAP=1 in the environment takes any pages, RWKV_MAP=0 none.
std::shared_ptr<const std::byte> map_packed(const Checkpoint& file);

// Writes such a file of a model of any container. `progress` is called with a measure of the work done and of all.
void write_packed(const Checkpoint& model, const std::string& path, std::string_view precision,
                  const std::function<void(int64_t, int64_t)>& progress);

}  // namespace rwkv
