#include "bind.h"

PYBIND11_MODULE(_core, m) {
  bind_errors(m);
  bind_tokenizer(m);
  bind_checkpoint(m);
  bind_device(m);
  bind_state(m);
  bind_state_file(m);
  bind_engine(m);
  bind_generation(m);
  bind_exit(m);
}
