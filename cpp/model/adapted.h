// The verbs of a device for a batch of which some rows have adapters: every product that an adapter adds to is followed
// by what it adds, and no model knows of it.
//
// A x rides along in the region of W x; B (A x), which needs both, in the region of the next products if these do not
// read what it adds to, else in one of its own. Where an activation follows the product, W x waits in y until all is
// added: one region more. Rows of an operand lie interleaved, so those of an adapter are picked out of it first, unless
// all rows have the same. Every row goes through the same sums whatever its neighbours have.
#pragma once
#include <span>
#include <vector>

#include "backend/backend.h"
#include "core/arena.h"
#include "model/adapter_weights.h"

namespace rwkv {

// Rows one behind the other that have the same adapter.
struct AdaptedRows {
  int first = 0, count = 0;
  const AdapterWeights* adapter = nullptr;
};

// What such steps use again.
struct AdapterSpace {
  Arena arena;
  size_t size = 0;
  std::vector<LinearJob> jobs, added, after;
  std::vector<PickJob> picks;
  std::vector<const void*> targets;  // what `added` adds to
  std::vector<AdaptedRows> results;  // of those rows that want a result
};

class Adapted final : public Verbs {
 public:
  Adapted(Backend& backend, std::span<const AdaptedRows> rows, AdapterSpace& space);

  void flush();  // everything is added

  void mix(const Tensor& x, const Norm&, std::span<const MixJob>, size_t shift, const Batch&, Shift) override;
  void linear(std::span<const LinearJob>) override;
  void deep_embed(const DeepEmbed&, const Batch&, Operand y) override;
  void wkv4(const Wkv4&, const Batch&, Operand y) override;
  void wkv6(const Wkv6&, StatePlace state, const Batch&, Operand y) override;
  void wkv7(const Wkv7&, StatePlace state, const Batch&, Operand y) override;

 private:
  bool adapts(const LinearJob& job) const;
  bool waited_for(std::span<const LinearJob> jobs) const;
  void add(const LinearJob& job);

  Backend& backend_;
  const std::span<const AdaptedRows> rows_;
  AdapterSpace& s_;
};

// Those of results: `rows` are the rows of the batch that want one, ascending.
std::span<const AdaptedRows> adapted_results(std::span<const AdaptedRows> adapted, std::span<const int32_t> rows,
                                             AdapterSpace& space);

}  // namespace rwkv
