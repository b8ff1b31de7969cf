#include "model/rwkv4.h"

#include <cmath>

#include "core/error.h"

namespace rwkv::v4 {

std::vector<StatePart> Layer::state_parts(const Config& c) {
  return {{"att.shift", {c.n_embd}},
          {"att.aa", {c.n_att}},
          {"att.bb", {c.n_att}},
          {"att.pp", {c.n_att}, -1e30f},
          {"ffn.shift", {c.n_embd}}};
}

Layer Layer::load(Loader& loader, const Config& c, int index, Formats formats) {
  const std::string block = join("blocks.", index, "."), att = block + "att.";
  Layer layer;
  TimeMix& t = layer.time_mix;
  t.norm = loader.norm(block + "ln1", c.n_embd, 1e-5f);
  t.mu_k = load_mu(loader, c, att, 'k'), t.mu_v = load_mu(loader, c, att, 'v'), t.mu_r = load_mu(loader, c, att, 'r');
  const auto wide = [&](const char* name) { return loader.matrix(att + name, c.n_att, c.n_embd, formats.large); };
  t.receptance = wide("receptance.weight"), t.key = wide("key.weight"), t.value = wide("value.weight");
  t.output = loader.matrix(att + "output.weight", c.n_embd, c.n_att, formats.large);
  t.decay = loader.vector(att + "time_decay", {c.n_att}, [](float x) { return float(-std::exp(double(x))); });
  t.bonus = loader.vector(att + "time_first", {c.n_att});
  layer.channel_mix = load_channel_mix(loader, c, index, formats.large);
  return layer;
}

Scratch::Scratch(Arena& arena, const Backend& backend, const Config& c, const std::vector<Layer>&, int rows)
    : channel_mix({arena, backend, rows}, c) {
  const Carver carve{arena, backend, rows};
  for (Tensor* t : {&r, &k, &v}) *t = carve.tensor(c.n_att);
  partial = carve.tensor(c.n_embd);
  for (Operand* o : {&mixed_k, &mixed_v, &mixed_r}) *o = carve.operand(c.n_embd);
  y = carve.operand(c.n_att);
}

void Scratch::set_formats(Formats formats) {
  for (Operand* o : {&mixed_k, &mixed_v, &mixed_r, &y}) o->format = formats.large;
  channel_mix.set_format(formats.large);
}

void time_mix(Verbs& b, const TimeMix& p, const StateLayout& layout, int index, const Batch& batch, Scratch& s,
              const Tensor& x) {
  const MixJob mixes[] = {{p.mu_k, s.mixed_k}, {p.mu_v, s.mixed_v}, {p.mu_r, s.mixed_r}};
  const LinearJob in[] = {
      {s.mixed_k, p.key, s.k}, {s.mixed_v, p.value, s.v}, {s.mixed_r, p.receptance, s.r, Act::sigmoid}};
  b.mix_linear(x, p.norm, mixes, layout.offset(index, kShiftAtt), batch, in);

  b.wkv4({s.r, s.k, s.v, p.decay, p.bonus, layout.offset(index, kNumerator), layout.offset(index, kDenominator),
          layout.offset(index, kMaximum)},
         batch, s.y);

  const LinearJob residual[] = {{s.y, p.output, s.partial, Act::none, {}, x}};
  b.linear(residual);
}

}  // namespace rwkv::v4
