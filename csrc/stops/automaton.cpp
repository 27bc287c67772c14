#include "automaton.h"

namespace codegen_fast::stops {

Automaton::Automaton(const std::vector<std::string>& literals) {
  // 255 classes are enough for any set: if every byte occurs, the last one shares class 0, which then stands for it.
  std::array<bool, 256> occurs{};
  for (const std::string& literal : literals)
    for (const char c : literal) occurs[static_cast<unsigned char>(c)] = true;
  for (int byte = 0; byte < 256; ++byte)
    if (occurs[byte] && num_classes_ < 256) class_of_[byte] = static_cast<uint8_t>(num_classes_++);

  constexpr int32_t kNone = -1;
  const auto add_state = [&] {
    next_.insert(next_.end(), num_classes_, kNone);
    begun_.emplace_back();
    return static_cast<int32_t>(begun_.size() - 1);
  };
  add_state();
  for (size_t i = 0; i < literals.size(); ++i) {
    length_.push_back(static_cast<int32_t>(literals[i].size()));
    int32_t state = kStart;
    int32_t length = 0;
    for (const char c : literals[i]) {
      const size_t edge = static_cast<size_t>(state) * num_classes_ + class_of_[static_cast<unsigned char>(c)];
      int32_t to = next_[edge];
      if (to == kNone) {
        to = add_state();
        next_[edge] = to;
      }
      state = to;
      begun_[state].push_back({static_cast<int32_t>(i), ++length});
    }
  }

  // States in the order of their depth: a state's suffix is always ready before the state.
  suffix_.assign(begun_.size(), kStart);
  completes_any_.assign(begun_.size(), false);
  std::vector<int32_t> order{kStart};
  for (size_t at = 0; at < order.size(); ++at) {
    const int32_t state = order[at];
    for (const Begun& b : begun_[state])
      if (b.length == length_[b.literal]) completes_any_[state] = true;
    if (completes_any_[suffix_[state]]) completes_any_[state] = true;
    for (size_t c = 0; c < num_classes_; ++c) {
      int32_t& to = next_[static_cast<size_t>(state) * num_classes_ + c];
      const int32_t from_suffix =
          state == kStart ? kStart : next_[static_cast<size_t>(suffix_[state]) * num_classes_ + c];
      if (to == kNone) {
        to = from_suffix;
      } else {
        suffix_[to] = from_suffix;
        order.push_back(to);
      }
    }
  }
}

}  // namespace codegen_fast::stops
