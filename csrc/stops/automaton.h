// An Aho-Corasick automaton over bytes: which of many literals end at each byte of a text, in one table look-up a byte.
//
// The table has 4 bytes for every state (one a byte of the literals, at most, and one) and every class of bytes (the
// different bytes of the literals, and one): up to 1 KiB a byte, 64 MiB for the 64 KiB that the rules of
// codegen_fast/stops/rules.py allow.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace codegen_fast::stops {

class Automaton {
 public:
  // A literal of which the text so far ends with the first `length` bytes.
  struct Begun {
    int32_t literal;
    int32_t length;
  };

  static constexpr int32_t kStart = 0;

  // No literal may be empty.
  explicit Automaton(const std::vector<std::string>& literals);

  int32_t next(int32_t state, unsigned char byte) const {
    return next_[static_cast<size_t>(state) * num_classes_ + class_of_[byte]];
  }
  int32_t run(int32_t state, std::string_view bytes) const {
    for (const char c : bytes) state = next(state, static_cast<unsigned char>(c));
    return state;
  }
  bool completes_any(int32_t state) const { return completes_any_[state]; }

  // Calls visit(literal) for every literal that the text so far ends with.
  template <class Visit>
  void for_each_completed(int32_t state, Visit&& visit) const {
    for (; state != kStart; state = suffix_[state])
      for (const Begun& b : begun_[state])
        if (b.length == length_[b.literal]) visit(b.literal);
  }

  // Calls visit(Begun) for every literal that the text so far ends with a part of.
  template <class Visit>
  void for_each_begun(int32_t state, Visit&& visit) const {
    for (; state != kStart; state = suffix_[state])
      for (const Begun& b : begun_[state])
        if (b.length < length_[b.literal]) visit(b);
  }

 private:
  std::array<uint8_t, 256> class_of_{};  // class 0: bytes that are in no literal
  size_t num_classes_ = 1;
  std::vector<int32_t> next_;    // (states, classes)
  std::vector<int32_t> suffix_;  // the state of the longest other beginning that the text ends with
  std::vector<char> completes_any_;
  std::vector<std::vector<Begun>> begun_;  // the literals that begin with the state's own bytes
  std::vector<int32_t> length_;            // of each literal
};

}  // namespace codegen_fast::stops
