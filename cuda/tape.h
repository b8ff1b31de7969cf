// The launches of a step. Where graphs are asked for, a step that comes again (the same kernels in the same order with
// the same params) is one graph and one call: launches are compared with those of earlier steps as they come, and what
// differs is simply launched. So no pointer can be replayed that is not the one that was asked for.
#pragma once
#include <list>
#include <optional>
#include <vector>

#include "cuda/context.h"

namespace rwkv::cuda {

class Tape {
 public:
  Tape(Context& context, bool graphs) : context_(context), graphs_(graphs) {}
  ~Tape();
  Tape(const Tape&) = delete;

  void begin(bool repeats);  // a step, of which an earlier one may be the same; what an error has left is dropped
  void add(const Launch& launch);
  void flush();  // whatever has been added is on its way

 private:
  // Launches with their params, between two flushes.
  struct Segment {
    std::vector<Launch> launches;
    std::vector<std::byte> params;  // of all, one behind the other
    std::vector<size_t> at;
    void* graph = nullptr;
    int replayed = 0;

    void append(const Launch& launch);
    Launch launch(size_t i) const;
    bool has(size_t i, const Launch& launch) const;
    bool begins_as(const Segment& other, size_t count) const;
  };
  using Segments = std::list<Segment>;  // the one used last in front

  void launch_all(const Segment& segment, size_t count);
  void keep(Segment segment);
  void replay(Segment& segment);

  Context& context_;
  const bool graphs_;
  bool repeats_ = false;
  Segments segments_;
  Segments::iterator current_;  // what the launches so far are the beginning of, if there are any
  size_t matched_ = 0;
  std::optional<Segment> recording_;  // else
  std::vector<Launch> list_;
};

}  // namespace rwkv::cuda
