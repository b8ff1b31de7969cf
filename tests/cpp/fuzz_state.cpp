// Any bytes as a saved state, with a right digest so that what is behind it is looked at: refused with rwkv::Error, or
// read, and then it is the same state when it is written and read again.
#include "engine/state_file.h"
#include "fuzz_files.h"

namespace {

void require_same(const rwkv::StateFile& a, const rwkv::StateFile& b) {
  const auto p = a.parts(), q = b.parts();
  require(p.size() == q.size(), "as many parts");
  for (size_t i = 0; i < p.size(); ++i)
    require(p[i].name == q[i].name && p[i].shape == q[i].shape && p[i].values == q[i].values, "the same part");
  require(a.last_logits() == b.last_logits() && a.info().tokens_seen == b.info().tokens_seen, "the same position");
  require(a.info().weights() == b.info().weights() && a.model().fingerprint == b.model().fingerprint, "the same text");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<uint8_t> bytes(data, data + size);
  if (size > rwkv::kSnapshotHead) rwkv::seal_snapshot(std::as_writable_bytes(std::span(bytes)));
  with_input(bytes.data(), bytes.size(), true, [](const std::string& path) {
    const auto file = rwkv::StateFile::open(path);
    require_same(file, rwkv::StateFile(file.to_bytes(rwkv::DType::f32)));
    const rwkv::StateFile narrow(file.to_bytes(rwkv::DType::f16));  // unless a number is beyond a half
    require_same(narrow, rwkv::StateFile(narrow.to_bytes(rwkv::DType::f32)));
  });
  return 0;
}
