// Stops at literals: patterns that cut the completion, and stop strings that end a row and cut nothing.
#pragma once

#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "automaton.h"
#include "row_stop.h"

namespace codegen_fast::stops {

struct Pattern {
  std::string text;
  bool at_line_start = false;  // as ^ of a multi-line regular expression: at the completion's start or after a "\n"
  int32_t occurrence = 1;      // the completion is cut at this one, counted from 1, overlapping ones left out
};

// Patterns and their automaton, in which a line's start is a "\n" in front.
class Patterns {
 public:
  // No text may be empty, and occurrences are positive.
  explicit Patterns(std::vector<Pattern> patterns);

  const Automaton& automaton() const { return automaton_; }
  const Pattern& operator[](int32_t i) const { return patterns_[i]; }
  size_t size() const { return patterns_.size(); }

 private:
  std::vector<Pattern> patterns_;
  Automaton automaton_;
};

// Cuts the completion where the first of all patterns begins, as a search in the whole text would: a pattern that has
// begun earlier is waited for.
class PatternStop final : public RowStop {
 public:
  explicit PatternStop(std::shared_ptr<const Patterns> patterns);
  void begin(std::string_view) override {}  // the prompt is no part of what is cut
  bool feed(std::string_view piece) override;
  std::optional<int64_t> cut() const override;
  int64_t pending() const override;

 private:
  static constexpr int64_t kNowhere = std::numeric_limits<int64_t>::max();
  struct Seen {
    int32_t count = 0;
    int64_t end = 0;  // of the occurrence counted last
  };

  int64_t start_of(int32_t pattern, int32_t length) const;
  void complete(int32_t pattern);
  int64_t first_begun() const;

  std::shared_ptr<const Patterns> patterns_;
  std::vector<Seen> seen_;  // by pattern
  int32_t state_;
  int64_t length_ = 0;  // of the completion so far
  int64_t cut_ = kNowhere;
  bool ended_ = false;
};

// Ends a row with the token that completes one of the strings, which may begin in the prompt. Each piece is a token;
// one without text breaks a string in two. A row that has ended can be fed further and may end again.
class StringStop final : public RowStop {
 public:
  explicit StringStop(std::shared_ptr<const Automaton> strings) : strings_(std::move(strings)) {}
  void begin(std::string_view prompt) override { state_ = strings_->run(Automaton::kStart, prompt); }
  bool feed(std::string_view piece) override;
  std::optional<int64_t> cut() const override { return std::nullopt; }
  int64_t pending() const override { return 0; }

 private:
  std::shared_ptr<const Automaton> strings_;
  int32_t state_ = Automaton::kStart;
};

}  // namespace codegen_fast::stops
