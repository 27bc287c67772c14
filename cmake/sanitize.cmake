# CODEGEN_FAST_SANITIZE=address,undefined or thread: everything is built with the compiler's sanitizers, the programs of
# tests/isa too. The first report ends the process. Python loads such a _C only where the sanitizer's library was loaded
# before it: reliability/sanitizers builds and runs them.
set(CODEGEN_FAST_SANITIZE "" CACHE STRING "see cmake/sanitize.cmake")
if(NOT CODEGEN_FAST_SANITIZE MATCHES "^(|address,undefined|thread)$")
  message(FATAL_ERROR "CODEGEN_FAST_SANITIZE: '${CODEGEN_FAST_SANITIZE}' is neither 'address,undefined' nor 'thread'")
endif()
if(CODEGEN_FAST_SANITIZE)
  # -O1: what a stronger optimiser leaves out no sanitizer sees.
  add_compile_options(-fsanitize=${CODEGEN_FAST_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1 -O1)
  add_link_options(-fsanitize=${CODEGEN_FAST_SANITIZE})
endif()
