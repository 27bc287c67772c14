// Stops that know Python: where the function, the statement or the line under way is over.
#pragma once

#include <vector>

#include "code_scanner.h"
#include "row_stop.h"

namespace codegen_fast::stops {

// Ends with the line under way: before the first line's end that has a character other than a blank in front of it,
// in the completion or in the prompt's unfinished line. Strings and brackets make no difference.
class LineStop final : public RowStop {
 public:
  void begin(std::string_view prompt) override;
  bool feed(std::string_view piece) override;
  std::optional<int64_t> cut() const override { return cut_; }
  int64_t pending() const override { return cut_ ? length_ - *cut_ : 0; }

 private:
  bool begun_ = false;
  int64_t length_ = 0;  // of the completion so far
  std::optional<int64_t> cut_;
};

// What stops have in common that end with a block of whole lines: they see each byte's events, and keep the text up to
// the end of the last line that has text and belongs to the block.
class BlockStop : public RowStop {
 public:
  void begin(std::string_view prompt) final;
  bool feed(std::string_view piece) final;
  std::optional<int64_t> cut() const final { return cut_; }
  int64_t pending() const final;

 protected:
  enum class Verdict {
    goes_on,
    over,            // before the line under way, and the blank lines before it
    over_with_line,  // with the line that has just ended
  };

  virtual void see_prompt(unsigned events) = 0;  // the events of one byte
  virtual void end_prompt() = 0;
  virtual Verdict see(unsigned events) = 0;
  // The block has begun, so that text after its last line may be cut off.
  virtual bool may_end() const = 0;
  // It is open whether the line under way, which has text, belongs to the block.
  virtual bool is_doubtful() const { return false; }

  CodeScanner scanner_;

 private:
  int64_t length_ = 0;          // of the completion so far
  int64_t kept_ = 0;            // the end of the last line that has text and belongs to the block
  bool kept_just_now_ = false;  // kept_ moved with the byte before
  bool over_ = false;           // with the "\r" before; a "\n" after it is kept
  std::optional<int64_t> cut_;
};

// Ends with the function under way: the last `def` of the prompt whose block is open at the prompt's end, else the
// first one of the completion. It is over where a line begins, outside strings and brackets, whose first character
// stands at the def's indentation or left of it; a comment is such a line too. A def with its body in its own line ends
// with that line.
//
// Comments at the prompt's end that stand at a def's indentation or left of it close its block: they introduce what
// comes next. Where the prompt ends between lines, the completion's first line tells which of several open blocks goes
// on. If it is in none of them, the function is over and nothing is kept; but after a prompt that ends with an
// indentation it begins something new, and the first def of the completion is looked for.
class FunctionStop final : public BlockStop {
 protected:
  void see_prompt(unsigned events) override;
  void end_prompt() override;
  Verdict see(unsigned events) override;
  bool may_end() const override { return place_ == Place::body; }

 private:
  enum class Place { before, header, body };

  void close_from(int32_t column);
  void choose(int32_t column);

  Place place_ = Place::before;
  int32_t indentation_ = 0;      // of the def
  std::vector<int32_t> open_;    // indentations of the prompt's defs whose blocks are open
  int32_t comment_column_ = -1;  // of the leftmost comment since the last logical line; -1: none
  bool is_open_which_ = false;   // of the open blocks is the function's: the next line tells
  bool is_indented_ = false;     // the prompt's end
};

// Ends with the statement under way: the logical line that the prompt's end is in, or else the first one that begins in
// the completion, with its block if it has one, and with the clauses (elif, else, except, finally, case) that continue
// it. Decorators belong to what follows them. A comment that stands no deeper than the statement ends it, unless a
// clause may still come.
class StatementStop final : public BlockStop {
 protected:
  void see_prompt(unsigned) override {}
  void end_prompt() override;
  Verdict see(unsigned events) override;
  bool may_end() const override { return place_ == Place::block || place_ == Place::clause; }
  bool is_doubtful() const override { return place_ == Place::clause || in_doubtful_comment_; }

 private:
  enum class Place {
    before,
    line,    // in the statement's first line, or in that of a clause
    block,   // behind such a line
    clause,  // in the first word of a line that may be a clause
  };

  Verdict end_logical_line();  // the statement's first one, or a clause's

  Place place_ = Place::before;
  bool is_first_line_ = true;
  bool has_block_ = false;     // of the line before
  bool takes_clauses_ = false;
  bool is_case_ = false;
  bool in_doubtful_comment_ = false;
  int32_t indentation_ = 0;
};

}  // namespace codegen_fast::stops
