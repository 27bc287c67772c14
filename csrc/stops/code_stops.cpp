#include "code_stops.h"

#include <algorithm>
#include <span>

#include "characters.h"

namespace codegen_fast::stops {
namespace {

using Words = std::span<const std::string_view>;
constexpr std::string_view kWithClauses[] = {"if", "elif", "else", "for", "while", "try", "except"};
constexpr std::string_view kClauses[] = {"elif", "else", "except", "finally"};
constexpr std::string_view kCases[] = {"case"};

bool is_one_of(std::string_view word, Words words) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

bool begins_one_of(std::string_view part, Words words) {
  return std::any_of(words.begin(), words.end(), [&](std::string_view word) { return word.starts_with(part); });
}

}  // namespace

// ---- line ----

void LineStop::begin(std::string_view prompt) {
  for (const char each : prompt) {
    const unsigned char c = static_cast<unsigned char>(each);
    begun_ = !is_line_end(c) && (begun_ || !is_blank(c));
  }
}

bool LineStop::feed(std::string_view piece) {
  const int64_t start = length_;
  length_ += static_cast<int64_t>(piece.size());
  if (cut_) return false;
  for (size_t i = 0; i < piece.size(); ++i) {
    const unsigned char c = static_cast<unsigned char>(piece[i]);
    if (is_line_end(c)) {
      if (!begun_) continue;
      cut_ = start + static_cast<int64_t>(i);
      return true;
    }
    if (!is_blank(c)) begun_ = true;
  }
  return false;
}

// ---- blocks ----

void BlockStop::begin(std::string_view prompt) {
  for (const char c : prompt) see_prompt(scanner_.step(static_cast<unsigned char>(c)));
  end_prompt();
}

bool BlockStop::feed(std::string_view piece) {
  int64_t here = length_;
  length_ += static_cast<int64_t>(piece.size());
  if (cut_) return false;
  for (const char c : piece) {
    const unsigned events = scanner_.step(static_cast<unsigned char>(c));
    ++here;
    if (events & CodeScanner::kBreakGoesOn) {
      if (kept_just_now_) kept_ = here;
      kept_just_now_ = false;
    } else if (!over_) {
      const Verdict verdict = see(events);
      kept_just_now_ = (events & CodeScanner::kLineBreak) && scanner_.line_had_text() && verdict != Verdict::over &&
                       !is_doubtful();
      if (kept_just_now_) kept_ = here;
      over_ = verdict != Verdict::goes_on;
      if (verdict == Verdict::over_with_line && c == '\r') continue;  // a "\n" may follow
    }
    if (over_) {
      cut_ = kept_;
      return true;
    }
  }
  return false;
}

int64_t BlockStop::pending() const {
  if (cut_) return length_ - *cut_;
  return may_end() && (scanner_.at_indentation() || is_doubtful()) ? length_ - kept_ : 0;
}

// ---- function ----

void FunctionStop::see_prompt(unsigned events) {
  if (events & CodeScanner::kLineBegins) {
    close_from(scanner_.column());
    comment_column_ = -1;
  }
  if (events & CodeScanner::kCommentBegins)
    comment_column_ = comment_column_ < 0 ? scanner_.column() : std::min(comment_column_, scanner_.column());
  if (events & CodeScanner::kHeadKnown) indentation_ = scanner_.column();
  if (events & CodeScanner::kLogicalLineEnds && scanner_.head() == "def" && scanner_.opens_block())
    open_.push_back(indentation_);
}

void FunctionStop::end_prompt() {
  if (scanner_.head_is_known() && scanner_.head() == "def") {
    place_ = Place::header;
    return;
  }
  if (comment_column_ >= 0) close_from(comment_column_);
  if (open_.empty()) return;
  place_ = Place::body;
  indentation_ = open_.back();
  is_open_which_ = scanner_.at_indentation();
  is_indented_ = is_open_which_ && scanner_.column() > 0;
}

// The completion's first line, where the prompt ended between lines, tells which of the open blocks goes on.
void FunctionStop::choose(int32_t column) {
  is_open_which_ = false;
  const int32_t innermost = open_.back();
  close_from(column);
  if (open_.empty() && !is_indented_) open_.push_back(innermost);
  if (open_.empty()) place_ = Place::before;
  else indentation_ = open_.back();
}

void FunctionStop::close_from(int32_t column) {
  while (!open_.empty() && open_.back() >= column) open_.pop_back();
}

BlockStop::Verdict FunctionStop::see(unsigned events) {
  const bool begins = events & (CodeScanner::kLineBegins | CodeScanner::kCommentBegins);
  if (begins && is_open_which_) choose(scanner_.column());
  if (place_ == Place::before && events & CodeScanner::kHeadKnown && scanner_.head() == "def") {
    place_ = Place::header;
    indentation_ = scanner_.column();
  }
  if (place_ == Place::header && events & CodeScanner::kLogicalLineEnds) {
    if (!scanner_.opens_block()) return Verdict::over_with_line;
    place_ = Place::body;
  }
  return place_ == Place::body && begins && scanner_.column() <= indentation_ ? Verdict::over : Verdict::goes_on;
}

// ---- statement ----

void StatementStop::end_prompt() {
  if (!scanner_.in_logical_line()) return;
  place_ = Place::line;
  indentation_ = scanner_.column();
}

BlockStop::Verdict StatementStop::see(unsigned events) {
  const int32_t column = scanner_.column();
  if (events & (CodeScanner::kLineBegins | CodeScanner::kCommentBegins)) in_doubtful_comment_ = false;
  if (events & CodeScanner::kLineBegins) {
    if (place_ == Place::before) {
      place_ = Place::line;
      indentation_ = column;
    } else if (place_ == Place::block && column == indentation_ && takes_clauses_) {
      place_ = Place::clause;
    } else if (place_ == Place::block && (column <= indentation_ || !has_block_)) {
      return Verdict::over;
    }
  }
  if (events & CodeScanner::kCommentBegins && place_ == Place::block && column <= indentation_) {
    if (!takes_clauses_) return Verdict::over;
    in_doubtful_comment_ = true;
  }
  if (place_ == Place::clause) {
    const Words clauses = is_case_ ? Words(kCases) : Words(kClauses);
    if (!begins_one_of(scanner_.head(), clauses)) return Verdict::over;
    if (events & CodeScanner::kHeadKnown) {
      if (!is_one_of(scanner_.head(), clauses)) return Verdict::over;
      place_ = Place::line;
    }
  }
  return events & CodeScanner::kLogicalLineEnds && place_ == Place::line ? end_logical_line() : Verdict::goes_on;
}

BlockStop::Verdict StatementStop::end_logical_line() {
  if (is_first_line_ && scanner_.first() == '@') {  // a decorator: the statement is what follows
    place_ = Place::before;
    return Verdict::goes_on;
  }
  has_block_ = scanner_.opens_block();
  if (is_first_line_) {
    is_first_line_ = false;
    is_case_ = scanner_.head() == "case" && has_block_;
    takes_clauses_ = is_case_ || is_one_of(scanner_.head(), kWithClauses);
  }
  if (!has_block_ && !takes_clauses_) return Verdict::over_with_line;
  place_ = Place::block;
  return Verdict::goes_on;
}

}  // namespace codegen_fast::stops
