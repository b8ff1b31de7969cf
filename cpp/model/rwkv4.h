// RWKV-4. Per layer, with x the residual and prev the previous token's xn (0 at the start):
//   xn = LN1(x);  x_q = xn + (prev - xn) * mu_q                      for q in k v r
//   r = sigmoid(R x_r);  k = K x_k;  v = V x_v
//   per channel, the mean of all values so far, each weighted with e^k and faded by e^w per token since, with u = the
//   bonus of the token itself:  y = (a + e^(u + k) v) / (b + e^(u + k));  a = e^w a + e^k v;  b = e^w b + e^k
//   x += O (r y)
// with w = -exp(decay) < 0. The state holds a and b divided by e^m, m the greatest exponent so far, and m, at first
// -1e30. Then the channel mix of channel_mix.h.
// Peng et al., "RWKV: Reinventing RNNs for the Transformer Era", 2023.
#pragma once
#include <vector>

#include "model/channel_mix.h"
#include "model/config.h"
#include "model/loader.h"
#include "model/scratch.h"
#include "model/state_layout.h"

namespace rwkv::v4 {

enum Part {
  kShiftAtt,
  kNumerator,
  kDenominator,
  kMaximum,
  kShiftFfn
};  // of a layer's state, in the order of its parts

struct TimeMix {
  Norm norm;                              // ln1
  Tensor mu_k, mu_v, mu_r;                // (1, C)
  Linear receptance, key, value, output;  // (A, C) and (C, A)
  Tensor decay, bonus;                    // (1, A): w and u
};

struct Scratch;
struct Layer {
  using Scratch = v4::Scratch;  // what a step over such layers needs
  TimeMix time_mix;
  ChannelMix channel_mix;

  static std::vector<StatePart> state_parts(const Config& config);
  static Layer load(Loader& loader, const Config& config, int index, Formats formats);
};

// Activations of one step over T rows, carved anew for every step: only pointers move.
struct Scratch {
  Tensor r, k, v, partial;  // (T, A) and (T, C)
  Operand mixed_k, mixed_v, mixed_r, y;
  ChannelMixScratch channel_mix;

  Scratch(Arena& arena, const Backend& backend, const Config& config, const std::vector<Layer>& layers, int rows);
  void set_formats(Formats formats);
};

void time_mix(Verbs& verbs, const TimeMix& p, const StateLayout& layout, int index, const Batch& batch, Scratch& s,
              const Tensor& x);

// Both halves of layer `index` of the states over the batch, x (T, C) in place; calls `check` after each.
template <class Check>
void step(Verbs& verbs, const Layer& layer, const Config&, const StateLayout& layout, int index, const Batch& batch,
          Scratch& s, const Tensor& x, const Check& check) {
  time_mix(verbs, layer.time_mix, layout, index, batch, s, x);
  check();
  channel_mix(verbs, layer.channel_mix, layout.offset(index, kShiftFfn), batch, s.channel_mix, x);
  check();
}

}  // namespace rwkv::v4
