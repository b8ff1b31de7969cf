// Engine's adapters that are applied to the states that are made with them.
#include <algorithm>

#include "engine/engine.h"
#include "model/adapter_weights.h"
#include "model/model.h"

namespace rwkv {

std::vector<Engine::AdapterRef> Engine::adapters() const {
  const std::lock_guard lock(loading_);
  std::vector<AdapterRef> found;
  for (const auto& adapter : adapters_)
    if (AdapterRef loaded = adapter.lock()) found.push_back(std::move(loaded));
  return found;
}

Engine::AdapterRef Engine::load_adapter(const AdapterSpec& spec, const Poll& poll) {
  check_process();
  const auto adapter = std::make_shared<AdapterWeights>(model_, spec, poll);
  const Turn::Hold hold(turn_, poll);  // also of those who load the same
  const auto loaded = adapters();
  const auto same = std::ranges::find(loaded, adapter->fingerprint(), &AdapterWeights::fingerprint);
  if (same != loaded.end()) return *same;
  adapter->pack(poll);
  const std::lock_guard lock(loading_);
  std::erase_if(adapters_, [](const auto& a) { return a.expired(); });
  adapters_.push_back(adapter);
  return adapter;
}

void Engine::check_mine(const AdapterRef& adapter) const {
  RWKV_CHECK(StateError, !adapter || adapter->belongs_to(*model_),
             "expected an adapter that load_adapter() of this engine gave, found one of another");
}

const std::string& Engine::fingerprint_of(const StateContents& contents) const {
  return contents.adapter ? contents.adapter->fingerprint() : fingerprint();
}

}  // namespace rwkv
