// The vocabulary's parser, greedy matching against a plain search, and UTF-8 against its definition.
#include "engine/tokenizer.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <unordered_map>

#include "check.h"
#include "core/error.h"
#include "engine/trie.h"
#include "engine/utf8.h"
#include "engine/vocabulary.h"

using namespace rwkv;

namespace {

std::shared_ptr<const Tokenizer> parse(std::string_view text) { return Tokenizer::parse(text, "v.txt"); }

// A line for any bytes, written as a bytes literal.
std::string line_of(int id, std::string_view bytes) {
  std::string line = join(id, " b'");
  for (char c : bytes) {
    char escape[5];
    std::snprintf(escape, sizeof escape, "\\x%02x", static_cast<unsigned char>(c));
    line += escape;
  }
  return line + join("' ", bytes.size(), "\n");
}

std::string all_bytes() {
  std::string text;
  for (int i = 0; i < 256; ++i) text += line_of(i + 1, std::string(1, static_cast<char>(i)));
  return text;
}

std::string random_bytes(std::mt19937& random, size_t n, std::string_view alphabet) {
  std::string out;
  for (size_t i = 0; i < n; ++i) out += alphabet[random() % alphabet.size()];
  return out;
}

// "replace" by the definition: the longest beginning that some character has, whole or as U+FFFD; else one byte.
class Definition {
 public:
  Definition() {
    beginnings_.reserve(3'000'000);
    for (char32_t c = 0; c <= 0x10FFFF; ++c) {
      if (c == 0xD800) c = 0xE000;
      std::string bytes;
      append_code_point(c, bytes);
      for (size_t n = 1; n <= bytes.size(); ++n) beginnings_[key({bytes.data(), n})] = n == bytes.size();
    }
  }
  std::string replace(std::string_view bytes) const {
    std::string out;
    while (!bytes.empty()) {
      size_t n = std::min<size_t>(4, bytes.size());
      auto found = beginnings_.find(key(bytes.substr(0, n)));
      while (found == beginnings_.end() && n > 1) found = beginnings_.find(key(bytes.substr(0, --n)));
      out += found != beginnings_.end() && found->second ? bytes.substr(0, n) : kReplacement;
      bytes.remove_prefix(n);
    }
    return out;
  }

 private:
  static uint64_t key(std::string_view bytes) {
    uint64_t key = 1;
    for (char c : bytes) key = key << 8 | static_cast<uint8_t>(c);
    return key;
  }
  std::unordered_map<uint64_t, bool> beginnings_;  // true: a whole character
};

// Bytes at which the rules of UTF-8 change.
constexpr std::string_view kBorders{
    "\x00\x41\x7f\x80\x8f\x90\x9f\xa0\xbf\xc0\xc1\xc2\xdf\xe0\xe1\xec\xed\xee\xef\xf0\xf1\xf3\xf4\xf5\xff", 25};

}  // namespace

TEST(literals_mean_what_they_mean_in_python) {
  const auto tokenizer = parse(
      "1 'a' 1\n2 \"it's\" 4\r\n3 'say \"' 5\n4 'it\\'s ' 5\n5 '\\x00' 1\n6 '\\xe9' 2\n7 '\xc3\xa8' 2\n8 '\\u4e16' 3\n"
      "9 '\\U0001F600' 4\n10 '\xf0\x9f\x98\x81' 4\n11 b'\\xe4' 1\n12 b\"a\\x62'\" 3\n13 '\\n\\t\\r\\\\\\'\\\"' 6\n"
      "14 b'\\a\\b\\f\\v' 4\n15 '\\0011' 2\n16 '\\377' 2\n17 b'\\377' 1\n18 '\\n1' 2\n19 b'b' 1\n20 ' ' 1");
  const std::pair<int, std::string_view> expected[] = {
      {1, "a"},
      {2, "it's"},
      {3, "say \""},
      {4, "it's "},
      {5, {"\0", 1}},
      {6, "\xc3\xa9"},
      {7, "\xc3\xa8"},
      {8, "\xe4\xb8\x96"},
      {9, "\xf0\x9f\x98\x80"},
      {10, "\xf0\x9f\x98\x81"},
      {11, "\xe4"},
      {12, "ab'"},
      {13, "\n\t\r\\'\""},
      {14, "\a\b\f\v"},
      {15, "\0011"},
      {16, "\xc3\xbf"},
      {17, "\xff"},
      {18, "\n1"},
      {19, "b"},
      {20, " "},
      {0, ""},
      {21, ""},
      {1 << 30, ""},
  };
  for (const auto& [id, bytes] : expected) CHECK(tokenizer->bytes_of(id) == bytes);
  CHECK(tokenizer->size() == 21);
  CHECK_THROWS(tokenizer->bytes_of(-1), Error, "token id: expected 0 or more, found -1");
}

TEST(malformed_vocabularies_are_refused_with_line_expected_and_found) {
  const std::pair<std::string_view, const char*> cases[] = {
      {"", "v.txt: expected a line `id literal length` per token, found an empty file"},
      {"1 'a' 1\n\n2 'b' 1\n", "v.txt:2: expected an id in decimal digits, found the end of the line"},
      {"-1 'a' 1\n", "v.txt:1: expected an id in decimal digits, found '-'"},
      {"\xef\xbb\xbf\x31 'a' 1\n", "v.txt:1: expected an id in decimal digits, found byte 0xef"},
      {"1048576 'a' 1\n", "v.txt:1: expected an id of at most 1048575, found 1048576"},
      {"99999999999999999999999 'a' 1\n", "v.txt:1: expected an id of at most 1048575, found 99999999999999999999"},
      {"1\t'a' 1\n", "v.txt:1: expected one space before the literal, found byte 0x09"},
      {"1  'a' 1\n", "v.txt:1: expected a str or bytes literal ('...', \"...\", b'...', b\"...\"), found ' '"},
      {"1 a 1\n", "v.txt:1: expected a str or bytes literal ('...', \"...\", b'...', b\"...\"), found 'a'"},
      {"1 r'a' 1\n", "expected a str or bytes literal"},
      {"1 f'{1}' 1\n", "expected a str or bytes literal"},
      {"1 'a 1\n", "v.txt:1: expected a closing ', found the end of the line"},
      {"1 'a\\' 1\n", "v.txt:1: expected a closing ', found the end of the line"},
      {"1 \"a' 1\n", "v.txt:1: expected a closing \", found the end of the line"},
      {"1 'a\\", "expected after \\ one of n t r a b f v \\ ' \" x u U or an octal digit, found the end of the line"},
      {"1 '\\q' 2\n", "expected after \\ one of n t r a b f v \\ ' \" x u U or an octal digit, found 'q'"},
      {"1 '\\N{BULLET}' 3\n", "v.txt:1: expected after \\ one of"},
      {"1 b'\\u0041' 1\n", "expected after \\ one of n t r a b f v \\ ' \" x or an octal digit, found 'u'"},
      {"1 '\\x4' 1\n", "v.txt:1: expected 2 hexadecimal digits after \\x, found '''"},
      {"1 '\\x+1' 1\n", "v.txt:1: expected 2 hexadecimal digits after \\x, found '+'"},
      {"1 '\\u004", "v.txt:1: expected 4 hexadecimal digits after \\u, found the end of the line"},
      {"1 '\\U00110000' 4\n", "expected a code point up to U+10FFFF that is no surrogate, found U+00110000"},
      {"1 '\\uD83D\\uDE00' 4\n", "expected a code point up to U+10FFFF that is no surrogate, found U+0000d83d"},
      {"1 '\\udfff' 3\n", "expected a code point up to U+10FFFF that is no surrogate, found U+0000dfff"},
      {"1 '\\400' 1\n", "v.txt:1: expected an octal escape of at most \\377, found value 256"},
      {"1 b'\xe9' 1\n", "v.txt:1: expected only ASCII in a bytes literal, found byte 0xe9"},
      {"1 '\xe9' 1\n", "v.txt:1: expected valid UTF-8 in a str literal, found byte 0xe9"},
      {"1 '\xed\xa0\x80' 3\n", "v.txt:1: expected valid UTF-8 in a str literal, found byte 0xed"},
      {"1 'a\rb' 3\n", "v.txt:1: expected an escape for this character in a literal, found byte 0x0d"},
      {{"1 'a\0' 2\n", 9}, "v.txt:1: expected an escape for this character in a literal, found byte 0x00"},
      {"1 'a'\n", "v.txt:1: expected one space before the length, found the end of the line"},
      {"1 'a' 'b' 2\n", "v.txt:1: expected a length in decimal digits, found '''"},
      {"1 'a' x\n", "v.txt:1: expected a length in decimal digits, found 'x'"},
      {"1 'a' -1\n", "v.txt:1: expected a length in decimal digits, found '-'"},
      {"1 'a' 1 \n", "v.txt:1: expected the line to end after the length, found ' '"},
      {"1 'a' 1.0\n", "v.txt:1: expected the line to end after the length, found '.'"},
      {"1 'a' 1\r\r\n", "v.txt:1: expected the line to end after the length, found byte 0x0d"},
      {"1 '' 0\n", "v.txt:1: expected a token of 1 to 1024 bytes, found 0"},
      {"1 'a' 2\n", "v.txt:1: expected length 1, as the literal has, found 2"},
      {"1 '\\xe9' 1\n", "v.txt:1: expected length 2, as the literal has, found 1"},
      {"1 'a' 18446744073709551617\n", "v.txt:1: expected a length of at most 16777216, found 18446744073709551617"},
      {"1 'a' 1\n2 'b' 1\n1 'c' 1\n", "v.txt:3: expected an id of its own, found 1, which line 1 has"},
      {"1 'a' 1\n2 'b' 1\n3 b'a' 1\n", "v.txt:3: expected a byte string of its own, found that of line 1"},
  };
  for (const auto& [text, message] : cases) CHECK_THROWS(parse(text), ModelFormatError, message);
  CHECK_THROWS(parse(line_of(1, std::string(1025, 'a'))), ModelFormatError, "of 1 to 1024 bytes, found 1025");
  CHECK(parse(line_of(1, std::string(1024, 'a')))->encode(std::string(2048, 'a')).size() == 2);
  CHECK_THROWS(parse(std::string((16 << 20) + 1, '1')), ModelFormatError, "of at most 16777216 bytes, found 16777217");
}

TEST(every_truncation_is_refused_or_leaves_fewer_tokens) {
  const std::string text = "1 'a' 1\n2 '\\u00e9' 2\r\n3 b'\\xff' 1\n";
  int refused = 0;
  for (size_t n = 0; n < text.size(); ++n) {
    try {
      parse(text.substr(0, n));
    } catch (const ModelFormatError&) {
      ++refused;
    }
  }
  CHECK(refused == static_cast<int>(text.size()) - 6);  // all but those that end within or behind a line's end
}

TEST(a_trie_too_large_is_refused) {
  const Vocabulary vocabulary = parse_vocabulary(all_bytes(), "v.txt");
  CHECK_THROWS(Trie(vocabulary, "v.txt", 511), ModelFormatError,
               "v.txt: expected a vocabulary whose trie fits in 511 cells");
  const Trie trie(vocabulary, "v.txt", 512);
  const uint8_t text[] = {7};
  CHECK(trie.longest(text, text + 1).id == 8 && trie.longest(text, text).id == -1);
}

TEST(open_reads_files_and_names_them) {
  const std::string path = (std::filesystem::temp_directory_path() / "rwkv_tokenizer_test.txt").string();
  std::ofstream(path, std::ios::binary) << "1 'a' 1\n2 'b' 2\n";
  CHECK_THROWS(Tokenizer::open(path), ModelFormatError, "rwkv_tokenizer_test.txt:2: expected length 1");
  std::ofstream(path, std::ios::binary) << "1 'a' 1\r\n2 'ab' 2\r\n";
  CHECK((Tokenizer::open(path)->encode("aaba") == std::vector<int32_t>{1, 2, 1}));
  std::ofstream(path, std::ios::binary) << std::string((16 << 20) + 1, '1');
  CHECK_THROWS(Tokenizer::open(path), ModelFormatError, "of at most 16777216 bytes, found 16777217");
  std::filesystem::remove(path);
  CHECK_THROWS(Tokenizer::open(path), Error, "rwkv_tokenizer_test.txt");
}

TEST(encoding_is_greedy_longest_match) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    const std::string alphabet =
        round % 2 ? std::string("ab") : random_bytes(random, 40, std::string(kBorders) + "xyz");
    std::map<std::string, int> vocabulary;
    for (char c : alphabet) vocabulary.emplace(std::string(1, c), 0);
    for (int i = 0; i < 300; ++i) vocabulary.emplace(random_bytes(random, 1 + random() % 9, alphabet), 0);
    std::vector<int> ids(vocabulary.size());
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int>(i) * (1 + round) + 1;
    std::shuffle(ids.begin(), ids.end(), random);
    std::string file;
    size_t next = 0;
    for (auto& [bytes, id] : vocabulary) file += line_of(id = ids[next++], bytes);
    const auto tokenizer = parse(file);
    for (const auto& [bytes, id] : vocabulary) CHECK(tokenizer->bytes_of(id) == bytes);

    const std::string text = random_bytes(random, random() % 2000, alphabet);
    std::vector<int32_t> expected;
    for (size_t at = 0; at < text.size();) {
      size_t n = std::min<size_t>(9, text.size() - at);
      while (!vocabulary.contains(text.substr(at, n))) --n;
      expected.push_back(vocabulary[text.substr(at, n)]);
      at += n;
    }
    CHECK(tokenizer->encode(text) == expected);
    CHECK(tokenizer->decode_bytes(expected) == text);
  }
}

TEST(the_longest_match_may_end_before_the_walk_does) {
  const auto tokenizer = parse("1 'a' 1\n2 'abcd' 4\n3 'b' 1\n4 'c' 1\n5 'abcde' 5\n");
  CHECK((tokenizer->encode("abcabcdabcdea") == std::vector<int32_t>{1, 3, 4, 2, 5, 1}));
  CHECK(tokenizer->encode("").empty());
  CHECK_THROWS(tokenizer->encode("abcdd"), Error,
               "text, byte 4: expected a byte that a token begins with, found value 100");
}

TEST(id_0_ends_a_text_and_stands_for_no_bytes) {
  const auto tokenizer = parse("0 '\\x00' 1\n1 'a' 1\n");
  CHECK((tokenizer->encode(std::string_view("a\0a", 3)) == std::vector<int32_t>{1, 0, 1}));
  CHECK(tokenizer->bytes_of(0).empty());
  CHECK(tokenizer->decode(std::vector<int32_t>{1, 0, 1, 0, 2, 65535}) == "aa");
}

TEST(invalid_utf8_is_replaced_by_the_definition) {
  const Definition definition;
  const auto equal = [&](const std::string& bytes) { return replace_invalid_utf8(bytes) == definition.replace(bytes); };
  for (int i = 0; i < 1 << 16; ++i) CHECK(equal({static_cast<char>(i >> 8), static_cast<char>(i)}));
  for (char a : kBorders) {
    for (char b : kBorders) {
      for (char c : kBorders) {
        for (char d : kBorders) CHECK(equal({a, b, c, d}));
      }
    }
  }
  std::mt19937 random(2);
  for (int i = 0; i < 2000; ++i) CHECK(equal(random_bytes(random, random() % 64, kBorders)));
  std::string mostly_ascii(40, 'a');
  mostly_ascii += "\xe4\xb8\x96\xf0";
  for (int i = 0; i < 2000; ++i) CHECK(equal(random_bytes(random, random() % 64, mostly_ascii)));
}

TEST(a_stream_says_what_the_whole_says_and_never_breaks_a_character) {
  std::mt19937 random(3);
  std::map<std::string, int> more;
  while (more.size() < 200) more.emplace(random_bytes(random, 2 + random() % 5, kBorders), 0);
  std::string file = all_bytes();
  int id = 300;
  for (const auto& [bytes, unused] : more) file += line_of(id++, bytes);
  const auto tokenizer = parse(file);
  for (int round = 0; round < 3000; ++round) {
    std::vector<int32_t> ids(random() % 30);
    for (int32_t& token : ids) token = static_cast<int32_t>(random() % (round % 3 ? 520 : 257));
    StreamDecoder stream(tokenizer);
    std::string text;
    for (int32_t token : ids) {
      const std::string piece = stream.put(token);
      text += piece;
      CHECK(replace_invalid_utf8(piece) == piece);
      CHECK(stream.pending().size() < 4);
    }
    const std::string rest = stream.finish();
    CHECK(rest.empty() || rest == kReplacement);
    CHECK(text + rest == tokenizer->decode(ids));
    CHECK(stream.pending().empty() && stream.finish().empty());
  }
}

TEST(a_stream_speaks_as_soon_as_it_is_certain) {
  const auto tokenizer = parse(all_bytes());
  StreamDecoder stream(tokenizer);
  const auto put = [&](int byte) { return stream.put(byte + 1); };
  CHECK(put(0xf0).empty() && put(0x9f).empty() && put(0x98).empty() && put(0x80) == "\xf0\x9f\x98\x80");
  CHECK(put(0xe4).empty() && put('z') == "\xef\xbf\xbdz");
  CHECK(put(0xff) == kReplacement);
  CHECK(put(0xe4).empty() && put(0xe4) == kReplacement && stream.pending() == "\xe4");
  CHECK_THROWS(stream.put(-5), Error, "found -5");
  CHECK(stream.pending() == "\xe4" && stream.put(0).empty() && stream.finish() == kReplacement);
}

CHECK_MAIN
