// RWKV-6 "Finch". Per layer, with x the residual and prev the previous token's xn (0 at the start):
//   xn = LN1(x);  z = tanh(W1 (xn + (prev - xn) * mu_x)), in five parts z_q
//   x_q = xn + (prev - xn) * (mu_q + W2_q z_q)                       for q in w k v r g
//   r = R x_r;  k = K x_k;  v = V x_v;  g = silu(G x_g);  w = exp(-exp(w0 + tanh(x_w D1) D2))
//   per head: y_j = sum_i r_i (u_i k_i v_j + S_ij);  S_ij = w_i S_ij + k_i v_j        i: key, j: value
//   x += O (GroupNorm(y) g)
// and the channel mix of channel_mix.h.
// Peng et al., "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence", 2024.
#pragma once
#include <array>
#include <vector>

#include "model/channel_mix.h"
#include "model/config.h"
#include "model/loader.h"
#include "model/scratch.h"
#include "model/state_layout.h"

namespace rwkv::v6 {

enum Part { kShiftAtt, kWkv, kShiftFfn };  // of a layer's state, in the order of its parts

enum Mixed { kDecay, kKey, kValue, kReceptance, kGate, kMixed };  // the five x_q, in the order of the files
template <class T>
using Each = std::array<T, kMixed>;

struct TimeMix {
  Norm norm;                                    // ln1
  Tensor mu_x;                                  // (1, C)
  Each<Tensor> mu;                              // (1, C)
  Each<Linear> mix_in, mix_out;                 // (D, C), (C, D)
  Linear decay_in, decay_out;                   // (D, C), (A, D)
  Linear receptance, key, value, gate, output;  // (A, C) and (C, A)
  Tensor decay, bonus;                          // (1, A)
  Norm out;                                     // ln_x, one group per head
};

struct Scratch;
struct Layer {
  using Scratch = v6::Scratch;  // what a step over such layers needs
  TimeMix time_mix;
  ChannelMix channel_mix;

  static std::vector<StatePart> state_parts(const Config& config);
  static Layer load(Loader& loader, const Config& config, int index, Formats formats);
};

// Activations of one step over T rows, carved anew for every step: only pointers move.
struct Scratch {
  Tensor r, k, v, g, w, partial;  // (T, A) and (T, C)
  Each<Tensor> low, dynamic;      // (T, D) partial sums, (T, C)
  Tensor low_w;                   // (T, D) partial sums
  Operand mixed_x, rank_w, y;
  Each<Operand> rank, mixed;
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

}  // namespace rwkv::v6
