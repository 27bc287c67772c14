# The kernels of csrc/cpu/kernels, compiled once for every instruction set of the target processor.

set(CODEGEN_FAST_ISA_NAMES portable)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  list(APPEND CODEGEN_FAST_ISA_NAMES avx2)
endif()
set(CODEGEN_FAST_ISA_FLAGS_portable "")
set(CODEGEN_FAST_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c)

function(codegen_fast_add_isas target)
  foreach(isa IN LISTS CODEGEN_FAST_ISA_NAMES)
    add_library(kernels_${isa} OBJECT csrc/cpu/kernels/kernels.cpp)
    target_compile_options(kernels_${isa} PRIVATE -O3 ${CODEGEN_FAST_ISA_FLAGS_${isa}})
    target_compile_definitions(kernels_${isa} PRIVATE CODEGEN_FAST_ISA=${isa})
    target_link_libraries(${target} PRIVATE kernels_${isa})
    string(TOUPPER ${isa} upper)
    target_compile_definitions(${target} PRIVATE CODEGEN_FAST_HAVE_${upper})
  endforeach()
endfunction()
