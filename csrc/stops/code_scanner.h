// An incremental lexer of Python: of each byte it says whether a line begins or ends with it, and outside what.
//
// It knows strings of all kinds, comments, brackets, backslashes before a line's end, and indentation (a tab goes to
// the next multiple of 8, a form feed to 0, as in Python). "\n", "\r\n" and "\r" end a line. Broken code never stops
// it: a string in single quotes ends with its line, a closing bracket too many is ignored. An f-string is lexed as a
// string, so quotes of the same kind within its braces (Python 3.12) end it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace codegen_fast::stops {

class CodeScanner {
 public:
  // What happened with a byte, in this order.
  enum Event : unsigned {
    kLineBegins = 1,       // the first character of a logical line; column() is its indentation
    kCommentBegins = 2,    // the "#" of a line that holds a comment alone; column() is its indentation
    kHeadKnown = 4,        // head() is the logical line's first word
    kLogicalLineEnds = 8,  // a line's end that no string, bracket or backslash takes along
    kLineBreak = 16,       // every line's end
    kBreakGoesOn = 32,     // the "\n" of an "\r\n": a part of the line's end before it
  };

  // Takes the next byte and returns its events.
  unsigned step(unsigned char c);

  int32_t column() const { return column_; }
  // The logical line's first word, without an `async` in front; empty if it begins with something else.
  std::string_view head() const { return head_; }
  // The logical line's first byte.
  unsigned char first() const { return first_; }
  // Of a logical line that has just ended: its last token is a colon.
  bool opens_block() const { return last_ == ':'; }
  // The line has no character yet but indentation, and is no continuation: what it belongs to is open.
  bool at_indentation() const { return mode_ == Mode::indentation; }
  bool in_logical_line() const { return in_logical_line_; }
  // The logical line's first word is known.
  bool head_is_known() const { return in_logical_line_ && !reading_head_; }
  // The physical line has a character that is no blank, or began within a string, in brackets or after a backslash.
  bool line_has_text() const { return line_has_text_; }
  // The same of the line that the last kLineBreak ended.
  bool line_had_text() const { return line_had_text_; }

 private:
  enum class Mode : uint8_t { indentation, code, comment, quotes, string };

  unsigned code(unsigned char c);
  unsigned string(unsigned char c);
  unsigned line_break();
  unsigned end_head_at(unsigned char c);
  void end_line(bool goes_on);

  Mode mode_ = Mode::indentation;
  bool after_cr_ = false;
  bool escaped_ = false;  // the byte before was a backslash that counts
  bool line_has_text_ = false;
  bool line_had_text_ = false;
  bool in_logical_line_ = false;
  bool reading_head_ = false;
  bool triple_ = false;      // of a string
  unsigned char quote_ = 0;  // of a string
  int32_t quotes_ = 0;       // quotes of that kind in a row
  int32_t depth_ = 0;        // of brackets
  int32_t column_ = 0;
  unsigned char first_ = 0;
  unsigned char last_ = 0;  // the logical line's last character outside comments; a quote for a string
  std::string head_;
};

}  // namespace codegen_fast::stops
