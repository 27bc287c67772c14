#include "code_scanner.h"

#include <algorithm>

#include "characters.h"

namespace codegen_fast::stops {
namespace {

constexpr size_t kLongestWord = 16;  // longer than any keyword; of longer words the rest is dropped

bool is_word(unsigned char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c >= 0x80;
}

}  // namespace

unsigned CodeScanner::step(unsigned char c) {
  const bool goes_on = c == '\n' && after_cr_;
  after_cr_ = c == '\r';
  if (goes_on) return kBreakGoesOn;
  switch (mode_) {
    case Mode::indentation:
      if (c == ' ') ++column_;
      else if (c == '\t') column_ = (column_ / 8 + 1) * 8;
      else if (c == '\f') column_ = 0;
      else if (is_line_end(c)) return line_break();
      else if (c == '#') {
        mode_ = Mode::comment;
        line_has_text_ = true;
        return kCommentBegins;
      } else {
        mode_ = Mode::code;
        in_logical_line_ = reading_head_ = line_has_text_ = true;
        head_.clear();
        first_ = c;
        last_ = 0;
        return kLineBegins | code(c);
      }
      return 0;
    case Mode::code:
      return code(c);
    case Mode::comment:
      return is_line_end(c) ? line_break() : 0;
    case Mode::quotes:  // one or two quotes opened a string, or were one
      if (c == quote_) {
        if (++quotes_ == 3) {
          mode_ = Mode::string;
          triple_ = true;
          quotes_ = 0;
        }
        return 0;
      }
      if (quotes_ == 2) {
        mode_ = Mode::code;
        return code(c);
      }
      mode_ = Mode::string;
      triple_ = false;
      return string(c);
    case Mode::string:
      return string(c);
  }
  return 0;
}

unsigned CodeScanner::code(unsigned char c) {
  if (is_line_end(c)) {
    const unsigned head = end_head_at(c);
    return head | line_break();
  }
  const unsigned events = end_head_at(c);
  escaped_ = c == '\\';
  if (is_blank(c)) return events;
  if (c == '#') {
    mode_ = Mode::comment;
    return events;
  }
  last_ = c;
  if (c == '"' || c == '\'') {
    mode_ = Mode::quotes;
    quote_ = c;
    quotes_ = 1;
  } else if (c == '(' || c == '[' || c == '{') {
    ++depth_;
  } else if (c == ')' || c == ']' || c == '}') {
    depth_ = std::max(depth_ - 1, 0);
  }
  return events;
}

// Adds a byte of code to the first word, or ends the word.
unsigned CodeScanner::end_head_at(unsigned char c) {
  if (!reading_head_) return 0;
  if (is_word(c)) {
    if (head_.size() < kLongestWord) head_.push_back(static_cast<char>(c));
    return 0;
  }
  if (is_blank(c) && head_ == "async") head_.clear();
  if (is_blank(c) && head_.empty()) return 0;  // what stands behind `async` is the head
  reading_head_ = false;
  return kHeadKnown;
}

unsigned CodeScanner::string(unsigned char c) {
  if (escaped_) {
    escaped_ = false;
    quotes_ = 0;
    if (!is_line_end(c)) return 0;
    end_line(true);
    return kLineBreak;
  }
  if (c == '\\') {
    escaped_ = true;
    quotes_ = 0;
    return 0;
  }
  if (c == quote_) {
    if (triple_ && ++quotes_ < 3) return 0;
    mode_ = Mode::code;
    return 0;
  }
  quotes_ = 0;
  if (!is_line_end(c)) return 0;
  if (!triple_) return line_break();
  end_line(true);
  return kLineBreak;
}

// A line's end outside strings, or of a string that ends with its line.
unsigned CodeScanner::line_break() {
  const bool goes_on = in_logical_line_ && (depth_ > 0 || (mode_ == Mode::code && escaped_));
  escaped_ = false;
  end_line(goes_on);
  if (goes_on) {
    mode_ = Mode::code;
    return kLineBreak;
  }
  mode_ = Mode::indentation;
  column_ = 0;
  if (!in_logical_line_) return kLineBreak;
  in_logical_line_ = false;
  return kLogicalLineEnds | kLineBreak;
}

void CodeScanner::end_line(bool goes_on) {
  line_had_text_ = line_has_text_;
  line_has_text_ = goes_on;
}

}  // namespace codegen_fast::stops
