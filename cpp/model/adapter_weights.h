// An adapter beside a model's weights, for those rows of a batch that ask for it: y = W x + B (A x). One copy of the
// weights, of whatever precision, serves all adapters and none.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "core/arena.h"
#include "model/adapter_reader.h"
#include "model/adapters.h"

namespace rwkv {

class Model;

// A (rank, cols) is multiplied with the operand that W is multiplied with, so it is stored as W is, but as int8 beside
// int4; B (rows, rank), with the adapter's strength in it, as bf16 beside both.
struct LowRank {
  Linear in, out;
};

// What adding it to some rows needs beside what their product needs.
struct LowRankRoom {
  Operand x;       // those rows alone, where there are others
  Tensor low;      // (n, rank)
  Operand rank;    // the same as an operand
  Tensor partial;  // (n, out) partial sums

  static constexpr size_t kPieces = 4;

  LowRankRoom(Arena& arena, const Backend& backend, const LowRank& pair, int rows);
};

class AdapterWeights {
 public:
  // Reads the adapter. Throws ModelFormatError as merging does and, naming the tensor, for what is no low-rank product:
  // Bat, adapters of the embedding, weights that were trained in full. DeviceError on a device that does not adapt().
  // What `poll` throws, which is called again and again meanwhile, ends it.
  using Poll = std::function<void()>;
  AdapterWeights(const std::shared_ptr<const Model>& model, const AdapterSpec& spec, const Poll& poll = {});
  // Brings it to the device, where nothing else may be computing; to be called once, before it is applied. What has
  // been ended by `poll` is of no use.
  void pack(const Poll& poll = {});

  // SHA-256 over the model's fingerprint and all numbers of the adapter: it names those who have made a state.
  const std::string& fingerprint() const { return fingerprint_; }
  size_t bytes() const { return bytes_; }  // on the device
  bool belongs_to(const Model& model) const { return model_.lock().get() == &model; }

  const LowRank* find(const Linear& w) const;  // what is added to a matrix of the model; null: nothing
  size_t scratch_bytes(int rows) const;        // that Adapted needs at most for so many rows that have it

 private:
  struct Part {
    Linear of;
    std::string layer;  // "blocks.0", or the matrix's own name
    int rank;
    AdapterChange change;
  };

  std::weak_ptr<const Model> model_;
  std::shared_ptr<Backend> backend_;
  std::vector<Part> parts_;  // until they are packed
  std::string fingerprint_;
  size_t bytes_ = 0;
  Memory memory_;
  std::vector<std::pair<const std::byte*, LowRank>> pairs_;  // by W's data, ascending
  std::map<std::string, std::vector<LowRank>> layers_;
};

}  // namespace rwkv
