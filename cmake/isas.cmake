# The kernels of csrc/cpu/kernels, compiled once for every instruction set of the target processor.

set(CODEGEN_FAST_ISA_NAMES portable)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  list(APPEND CODEGEN_FAST_ISA_NAMES avx2 avx2_vnni avx512)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  list(APPEND CODEGEN_FAST_ISA_NAMES neon neon_dotprod)
endif()
set(CODEGEN_FAST_ISA_FLAGS_portable "")
set(CODEGEN_FAST_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c)
set(CODEGEN_FAST_ISA_FLAGS_avx2_vnni ${CODEGEN_FAST_ISA_FLAGS_avx2} -mavxvnni)
set(CODEGEN_FAST_ISA_FLAGS_avx512 ${CODEGEN_FAST_ISA_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni
    $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)  # GCC 12: _mm512_undefined_* in its own headers
# NEON itself belongs to every aarch64: the name tells the two builds without dot products apart.
set(CODEGEN_FAST_ISA_FLAGS_neon -DCODEGEN_FAST_NEON)
set(CODEGEN_FAST_ISA_FLAGS_neon_dotprod -DCODEGEN_FAST_NEON -march=armv8.2-a+dotprod)

# GCC gathers the prefetches of an unrolled loop at its beginning, where they wait for each other: -fno-schedule-insns2
# leaves them where the source has them (int8 in groups, one row, 2 cores of Zen 4, best passes: 50 GB/s and 53 so).
set(CODEGEN_FAST_KERNEL_FLAGS -O3 $<$<CXX_COMPILER_ID:GNU>:-fno-schedule-insns2>)
if(CODEGEN_FAST_SANITIZE)
  set(CODEGEN_FAST_KERNEL_FLAGS "")
endif()

set(CODEGEN_FAST_KERNELS ${CMAKE_CURRENT_LIST_DIR}/../csrc/cpu/kernels/kernels.cpp)

function(codegen_fast_add_isas target)
  foreach(isa IN LISTS CODEGEN_FAST_ISA_NAMES)
    add_library(kernels_${isa} OBJECT ${CODEGEN_FAST_KERNELS})
    target_compile_options(kernels_${isa} PRIVATE ${CODEGEN_FAST_KERNEL_FLAGS} ${CODEGEN_FAST_ISA_FLAGS_${isa}})
    target_compile_definitions(kernels_${isa} PRIVATE CODEGEN_FAST_ISA=${isa})
    target_link_libraries(${target} PRIVATE kernels_${isa})
    string(TOUPPER ${isa} upper)
    target_compile_definitions(${target} PRIVATE CODEGEN_FAST_HAVE_${upper})
  endforeach()
endfunction()
