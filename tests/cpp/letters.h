// A vocabulary for the model of tiny_model.h.
#pragma once
#include <memory>
#include <string>

#include "core/error.h"
#include "engine/tokenizer.h"

// Ids 1 to 39: letters, a line end, the bytes of a euro sign, digits and a blank.
inline std::shared_ptr<const rwkv::Tokenizer> letters() {
  std::string text;
  for (int id = 1; id <= 26; id++) text += rwkv::join(id, " '", std::string(1, char('a' + id - 1)), "' 1\n");
  text += "27 '\\n' 1\n28 b'\\xe2' 1\n29 b'\\x82' 1\n30 b'\\xac' 1\n31 ' ' 1\n";
  for (int id = 32; id < 40; id++) text += rwkv::join(id, " '", std::string(1, char('0' + id - 32)), "' 1\n");
  return rwkv::Tokenizer::parse(text, "letters");
}
