// RWKV-5 "Eagle" in its three forms. Per layer, with x the residual and prev the previous token's xn (0 at the start):
//   xn = LN1(x);  x_q = xn + (prev - xn) * mu_q                      for q in k v r g
//   r = R x_r;  k = K x_k;  v = V x_v;  5.1, 5.2: g = silu(G x_g);  5.0: g = 1
//   per head: y_j = sum_i r_i (u_i k_i v_j + S_ij);  S_ij = w_i S_ij + k_i v_j        i: key, j: value
//   x += O (GroupNorm(y) g)
// with w = exp(-exp(decay)); decay and u are one number per head in 5.0 and 5.1, one per channel in 5.2. Then the
// channel mix of channel_mix.h.
// Peng et al., "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence", 2024.
#pragma once
#include <vector>

#include "model/channel_mix.h"
#include "model/config.h"
#include "model/loader.h"
#include "model/scratch.h"
#include "model/state_layout.h"

namespace rwkv::v5 {

enum Part { kShiftAtt, kWkv, kShiftFfn };  // of a layer's state, in the order of its parts

struct TimeMix {
  Norm norm;                                    // ln1
  Tensor mu_k, mu_v, mu_r, mu_g;                // (1, C); 5.0: no mu_g
  Linear receptance, key, value, gate, output;  // (A, C) and (C, A); 5.0: no gate
  Tensor decay, bonus;                          // (1, A)
  Norm out;                                     // ln_x, one group per head
};

struct Scratch;
struct Layer {
  using Scratch = v5::Scratch;  // what a step over such layers needs
  TimeMix time_mix;
  ChannelMix channel_mix;

  static std::vector<StatePart> state_parts(const Config& config);
  static Layer load(Loader& loader, const Config& config, int index, Formats formats);
};

// Activations of one step over T rows, carved anew for every step: only pointers move.
struct Scratch {
  Tensor r, k, v, g, partial;  // (T, A) and (T, C)
  Operand mixed_k, mixed_v, mixed_r, mixed_g, y;
  ChannelMixScratch channel_mix;

  Scratch(Arena& arena, const Backend& backend, const Config& config, const std::vector<Layer>& layers, int rows);
  void set_formats(Formats formats);
};

void time_mix(Verbs& verbs, const TimeMix& p, const Config& config, size_t shift, StatePlace wkv, const Batch& batch,
              Scratch& s, const Tensor& x);

// Both halves of layer `index` of the states over the batch, x (T, C) in place; calls `check` after each.
template <class Check>
void step(Verbs& verbs, const Layer& layer, const Config& config, const StateLayout& layout, int index,
          const Batch& batch, Scratch& s, const Tensor& x, const Check& check) {
  time_mix(verbs, layer.time_mix, config, layout.offset(index, kShiftAtt), layout.place(index, kWkv), batch, s, x);
  check();
  channel_mix(verbs, layer.channel_mix, layout.offset(index, kShiftFfn), batch, s.channel_mix, x);
  check();
}

}  // namespace rwkv::v5
