// Python's blanks and line ends.
#pragma once

namespace codegen_fast::stops {

inline bool is_blank(unsigned char c) { return c == ' ' || c == '\t' || c == '\f'; }
inline bool is_line_end(unsigned char c) { return c == '\n' || c == '\r'; }

}  // namespace codegen_fast::stops
