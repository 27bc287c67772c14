#include "literal_stops.h"

#include <algorithm>

namespace codegen_fast::stops {
namespace {

std::vector<std::string> literals_of(const std::vector<Pattern>& patterns) {
  std::vector<std::string> literals;
  for (const Pattern& p : patterns) literals.push_back(p.at_line_start ? "\n" + p.text : p.text);
  return literals;
}

}  // namespace

Patterns::Patterns(std::vector<Pattern> patterns)
    : patterns_(std::move(patterns)), automaton_(literals_of(patterns_)) {}

PatternStop::PatternStop(std::shared_ptr<const Patterns> patterns)
    : patterns_(std::move(patterns)),
      seen_(patterns_->size()),
      state_(patterns_->automaton().next(Automaton::kStart, '\n')) {}  // a line begins where the completion does

// Where the pattern begins of which the completion ends with `length` bytes of its literal. Negative: the literal lies
// over the "\n" before the completion, which counts for nothing but the start of a line.
int64_t PatternStop::start_of(int32_t pattern, int32_t length) const {
  return length_ - length + ((*patterns_)[pattern].at_line_start ? 1 : 0);
}

void PatternStop::complete(int32_t pattern) {
  const Pattern& p = (*patterns_)[pattern];
  const int64_t start = length_ - static_cast<int64_t>(p.text.size());
  Seen& seen = seen_[pattern];
  if (start < seen.end) return;
  seen.end = length_;
  if (++seen.count == p.occurrence) cut_ = std::min(cut_, start);
}

// Where the first pattern begins that has begun and would cut the completion.
int64_t PatternStop::first_begun() const {
  int64_t first = kNowhere;
  patterns_->automaton().for_each_begun(state_, [&](Automaton::Begun b) {
    const int64_t start = start_of(b.literal, b.length);
    const Seen& seen = seen_[b.literal];
    if (start >= seen.end && seen.count == (*patterns_)[b.literal].occurrence - 1) first = std::min(first, start);
  });
  return first;
}

bool PatternStop::feed(std::string_view piece) {
  if (ended_) {
    length_ += static_cast<int64_t>(piece.size());
    return false;
  }
  const Automaton& automaton = patterns_->automaton();
  for (size_t i = 0; i < piece.size(); ++i) {
    state_ = automaton.next(state_, static_cast<unsigned char>(piece[i]));
    ++length_;
    if (automaton.completes_any(state_))
      automaton.for_each_completed(state_, [&](int32_t pattern) { complete(pattern); });
    if (cut_ != kNowhere && first_begun() >= cut_) {
      length_ += static_cast<int64_t>(piece.size() - i - 1);
      return ended_ = true;
    }
  }
  return false;
}

std::optional<int64_t> PatternStop::cut() const {
  return cut_ == kNowhere ? std::nullopt : std::optional(cut_);
}

int64_t PatternStop::pending() const {
  const int64_t shown = ended_ ? cut_ : std::min(cut_, first_begun());
  return shown == kNowhere ? 0 : length_ - shown;
}

bool StringStop::feed(std::string_view piece) {
  if (piece.empty()) {
    state_ = Automaton::kStart;
    return false;
  }
  bool completed = false;
  for (const char c : piece) {
    state_ = strings_->next(state_, static_cast<unsigned char>(c));
    completed |= strings_->completes_any(state_);
  }
  return completed;
}

}  // namespace codegen_fast::stops
