#include "model/rwkv5.h"

#include <cmath>

#include "core/error.h"

namespace rwkv::v5 {

namespace {

// One number per channel, of which 5.0 and 5.1 have one per head.
Tensor load_channels(Loader& loader, const Config& c, const std::string& name, float (*map)(float) = nullptr) {
  if (c.version == "5.2") return loader.vector(name, {c.n_head, c.head_size}, map);
  return loader.vector(name, {c.n_head}, map, c.head_size);
}

}  // namespace

std::vector<StatePart> Layer::state_parts(const Config& c) {
  return {{"att.shift", {c.n_embd}}, {"att.wkv", {c.n_head, c.head_size, c.head_size}}, {"ffn.shift", {c.n_embd}}};
}

Layer Layer::load(Loader& loader, const Config& c, int index, Formats formats) {
  const std::string block = join("blocks.", index, "."), att = block + "att.";
  const bool gated = c.version != "5.0";
  Layer layer;
  TimeMix& t = layer.time_mix;
  t.norm = loader.norm(block + "ln1", c.n_embd, 1e-5f);
  t.mu_k = load_mu(loader, c, att, 'k'), t.mu_v = load_mu(loader, c, att, 'v'), t.mu_r = load_mu(loader, c, att, 'r');
  if (gated) t.mu_g = load_mu(loader, c, att, 'g');

  const auto wide = [&](const char* name) { return loader.matrix(att + name, c.n_att, c.n_embd, formats.large); };
  t.receptance = wide("receptance.weight"), t.key = wide("key.weight"), t.value = wide("value.weight");
  if (gated) t.gate = wide("gate.weight");
  t.output = loader.matrix(att + "output.weight", c.n_embd, c.n_att, formats.large);

  t.decay = load_channels(loader, c, att + "time_decay");
  // Older files hold the logarithm of the bonus, under another name.
  if (c.version != "5.2" && loader.has(att + "time_first"))
    t.bonus = load_channels(loader, c, att + "time_first", [](float x) { return float(std::exp(double(x))); });
  else
    t.bonus = load_channels(loader, c, att + "time_faaaa");
  t.out = loader.norm(att + "ln_x", c.n_att, 64e-5f);
  layer.channel_mix = load_channel_mix(loader, c, index, formats.large);
  return layer;
}

Scratch::Scratch(Arena& arena, const Backend& backend, const Config& c, const std::vector<Layer>&, int rows)
    : channel_mix({arena, backend, rows}, c) {
  const Carver carve{arena, backend, rows};
  for (Tensor* t : {&r, &k, &v, &g}) *t = carve.tensor(c.n_att);
  partial = carve.tensor(c.n_embd);
  for (Operand* o : {&mixed_k, &mixed_v, &mixed_r, &mixed_g}) *o = carve.operand(c.n_embd);
  y = carve.operand(c.n_att);
}

void Scratch::set_formats(Formats formats) {
  for (Operand* o : {&mixed_k, &mixed_v, &mixed_r, &mixed_g, &y}) o->format = formats.large;
  channel_mix.set_format(formats.large);
}

void time_mix(Verbs& b, const TimeMix& p, const Config& config, size_t shift, StatePlace wkv, const Batch& batch,
              Scratch& s, const Tensor& x) {
  const size_t inputs = p.gate ? 4 : 3;
  const MixJob mixes[] = {{p.mu_r, s.mixed_r}, {p.mu_k, s.mixed_k}, {p.mu_v, s.mixed_v}, {p.mu_g, s.mixed_g}};
  const LinearJob in[] = {{s.mixed_r, p.receptance, s.r},
                          {s.mixed_k, p.key, s.k},
                          {s.mixed_v, p.value, s.v},
                          {s.mixed_g, p.gate, s.g, Act::silu}};
  b.mix_linear(x, p.norm, std::span(mixes).first(inputs), shift, batch, std::span(in).first(inputs));

  b.wkv6({s.r, s.k, s.v, p.gate ? s.g : Tensor{}, {}, p.decay, p.bonus, p.out, config.n_head, config.head_size}, wkv,
         batch, s.y);

  const LinearJob residual[] = {{s.y, p.output, s.partial, Act::none, {}, x}};
  b.linear(residual);
}

}  // namespace rwkv::v5
