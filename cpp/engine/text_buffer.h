// The pieces of a text between the tokens and the caller: text is handed over as soon as it is certain, that is, when
// it is whole characters and no stop string can begin in it any more.
#pragma once
#include <deque>
#include <string>
#include <vector>

#include "engine/sampling.h"
#include "engine/state.h"
#include "engine/tokenizer.h"

namespace rwkv {

struct Piece {
  int32_t token = -1;  // -1: what was left of a broken character when the text ended
  float logprob = 0;   // of the model's own distribution, before penalties and truncation
  std::vector<TokenLogprob> top;
  std::string text;  // that has become certain; UTF-8
};

class TextBuffer {
 public:
  // A piece and the contents of the state behind it. Of many that wait only some keep theirs; without a slot they are
  // one step from those of the piece before.
  struct Step {
    Piece piece;
    StateContents after;
    size_t begin = 0;  // of its text in the window
    size_t end = 0;    // the text up to here must be certain before it is handed over
  };
  // What one more token, or the end of the text, would bring.
  struct Addition {
    StreamDecoder decoder;
    std::string text;
    size_t stop;  // where in the window a stop string begins that is complete with it, or npos
    bool stops() const { return stop != std::string::npos; }
  };

  // `stop` outlives the buffer. The text goes on from where `sampler` says.
  TextBuffer(std::shared_ptr<const Tokenizer> tokenizer, const std::vector<std::string>& stop,
             const SamplerState& sampler);

  Addition consider(int32_t token) const;
  Addition consider_end() const;
  // Whether some of its text stands before the stop string.
  bool begins_before_stop(const Addition& addition) const { return addition.stop > window_.size(); }

  // Appends a piece, whose text is the addition's. At a stop string the text ends: pieces from there on are dropped.
  void add(Addition&& addition, Piece&& piece, StateContents after);
  void cut(size_t stop);  // without a piece of its own
  void flush();           // everything is certain: no more tokens come

  bool empty() const { return certain_ == 0; }
  Step& front() { return steps_.front(); }  // the next piece that is certain
  Step take();                              // and takes it out

 private:
  void release(size_t open);
  void remember(Step& step, size_t begin, size_t end) const;

  StreamDecoder decoder_;
  StopStrings stops_;
  std::string window_;      // text from the first piece that waits, or from where a stop string may have begun
  std::deque<Step> steps_;  // not yet taken
  size_t certain_ = 0;      // how many of them, from the front, may be
};

}  // namespace rwkv
