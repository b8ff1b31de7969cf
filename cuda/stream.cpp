#include "cuda/stream.h"

#include <cstring>

namespace rwkv::cuda {

LayerStream::LayerStream(std::shared_ptr<Context> context, Tape& tape, int layers, size_t bytes)
    : context_(std::move(context)), tape_(tape) {
  for (Memory& place : places_) place = context_->allocate(bytes);
  for (int i = 0; i < layers; i++) layers_.push_back(context_->pin(bytes));
}

// The layer that has been loaded there before must leave nothing.
Memory LayerStream::place(int layer) {
  const Memory &zeros = layers_[size_t(layer)], &place = places_[size_t(layer) % 2];
  std::memset(zeros.data.get(), 0, zeros.size);
  context_->upload(place.data.get(), zeros.data.get(), zeros.size);
  context_->synchronise();
  return place;
}

void LayerStream::loaded(int layer) {
  const Memory& from = places_[size_t(layer) % 2];
  context_->download(layers_[size_t(layer)].data.get(), from.data.get(), from.size);
  context_->synchronise();
  holds_[size_t(layer) % 2] = layer;
}

// What is computed with the layer that was there before has been asked for already, so the copy begins behind it.
void LayerStream::fetch(int layer) {
  const size_t at = size_t(layer) % 2;
  if (holds_[at] == layer) return;
  holds_[at] = layer;
  context_->stage(places_[at].data.get(), layers_[size_t(layer)].data.get(), places_[at].size, int(at));
}

void LayerStream::need(int layer) {
  tape_.flush();
  const int count = int(layers_.size()), next = (layer + 1) % count;
  fetch(layer);
  context_->await(layer % 2);
  // Behind the last comes the first, of the next step, unless this one is where that goes.
  if (next % 2 != layer % 2) fetch(next);
}

}  // namespace rwkv::cuda
