// The fingerprint is known when the last number has gone by; the header keeps its place until then.
#include "model/safetensors_write.h"

#include <algorithm>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "core/bounds.h"
#include "core/error.h"
#include "core/safetensors.h"
#include "core/text.h"
#include "model/encode.h"
#include "model/fingerprint.h"
#include "model/model.h"
#include "model/names.h"
#include "model/packed.h"

namespace rwkv {
namespace {

std::optional<DType> type_named(std::string_view name) {
  if (name.empty()) return std::nullopt;
  for (const DType type : {DType::f32, DType::f16, DType::bf16}) {
    if (name_of(type) == name) return type;
  }
  throw Error(join("type: expected f32, f16 or bf16, found '", name, "'"));
}

// Vectors over the channels are (1, 1, C) in official files; other containers have dropped the dimensions of one.
std::vector<int64_t> official_shape(const TensorInfo& t, const Config& config) {
  const std::string_view name = std::string_view(t.name).substr(t.name.rfind('.') + 1);
  const bool mix = name.starts_with("x_") || name.starts_with("time_mix_") || name.starts_with("time_maa_");
  const bool seven = config.version.starts_with("7") &&
                     (name == "w0" || name == "a0" || name == "v0" || name == "k_k" || name == "k_a");
  const bool six = config.version == "6" && name == "time_decay";
  return t.shape.size() == 1 && (mix || seven || six) ? std::vector<int64_t>{1, 1, t.count()} : t.shape;
}

}  // namespace

void write_safetensors(const Checkpoint& opened, const std::string& path, std::string_view type,
                       const std::function<void(int64_t, int64_t)>& progress) {
  const std::optional<DType> wanted = type_named(type);
  expect_unpacked(opened);
  const Checkpoint file = with_official_names(opened);
  const Config config = read_config(file);
  const std::set<std::string> used = Model::check(file);

  std::vector<TensorInfo> written = file.tensors();
  int64_t total = 0, done = 0;
  for (TensorInfo& t : written) {
    RWKV_CHECK(ModelFormatError, is_float(t.dtype) && t.dtype != DType::f64, file.path(), ": ", shown(t.name),
               ": expected numbers as f32, f16 or bf16, found ", name_of(t.dtype));
    // A half that is read as float32 because it is scaled on the way may not fit into its own type any more.
    t.dtype = wanted.value_or(t.dtype);
    t.shape = official_shape(t, config);
    total += t.count() * int64_t(size_of(t.dtype));
  }

  const std::string place(64, '0');
  const std::string header = write_safetensors_header({{kFingerprintKey, place}, {"format", "pt"}}, written);
  const size_t fingerprint_at = header.find(place);

  Fingerprint fingerprint;
  stream_atomically(path, Access::usual, [&](PieceWriter& out) {
    out.append(std::as_bytes(std::span(header)));
    for (size_t i = 0; i < written.size(); ++i) {
      const TensorInfo& t = written[i];
      std::vector<float> samples(size_t(Fingerprint::samples(t.count())));
      int64_t first = 0;
      encode_tensor(file, file.tensors()[i], {t.dtype}, [&](std::span<const std::byte> bytes) {
        const int64_t some = int64_t(bytes.size() / size_of(t.dtype));
        Fingerprint::take(samples, t.count(), first, some, bytes.data(), t.dtype);
        out.append(bytes);
        first += some;
        done += int64_t(bytes.size());
        if (progress) progress(done, total);
      });
      if (used.contains(t.name)) fingerprint.add(t.name, t.shape, samples);
    }
    const std::string hex = fingerprint.hex(config);
    out.overwrite(fingerprint_at, std::as_bytes(std::span(hex)));
  });
}

}  // namespace rwkv
