# How the extension is linked so that a wheel built on a recent Linux loads on older ones, those that torch's own wheels
# serve (manylinux_2_28): the C++ runtime goes in, and newer versions of the C library's functions are kept out
# (csrc/bind/old_glibc.cpp). Sanitizers need the shared runtime, and some systems have no other.

include(CheckCXXSourceCompiles)

option(CODEGEN_FAST_PORTABLE_LINK "Link for Linux systems as old as manylinux_2_28, where that can be done" ON)

function(codegen_fast_link_portably target)
  set(decision "off")
  get_directory_property(options COMPILE_OPTIONS)
  if(CODEGEN_FAST_PORTABLE_LINK AND CMAKE_SYSTEM_NAME STREQUAL Linux
     AND NOT "${CMAKE_CXX_FLAGS};${options}" MATCHES "-fsanitize")
    set(CMAKE_REQUIRED_LINK_OPTIONS -static-libstdc++)
    check_cxx_source_compiles("
      #include <string>
      #include <features.h>
      #ifndef __GLIBC__
      #error no glibc
      #endif
      int main(int n, char** v) { return static_cast<int>(std::string(v[n - 1]).size()); }" CODEGEN_FAST_HAVE_STATIC_LIBSTDCXX)
    if(CODEGEN_FAST_HAVE_STATIC_LIBSTDCXX)
      set(decision "on")
      target_sources(${target} PRIVATE csrc/bind/old_glibc.cpp)
      # A C++ runtime of one's own must not be mixed with another library's: nothing of it is exported.
      set(exports ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/exports.map)
      target_link_options(${target} PRIVATE -static-libstdc++ LINKER:--version-script=${exports} LINKER:--gc-sections)
      set_property(TARGET ${target} APPEND PROPERTY LINK_DEPENDS ${exports})
      foreach(name exp log pow pthread_create pthread_detach pthread_join pthread_mutex_trylock)
        target_link_options(${target} PRIVATE LINKER:--wrap=${name})
      endforeach()
    endif()
  endif()
  set(CODEGEN_FAST_PORTABLE_DECISION ${decision} PARENT_SCOPE)
endfunction()
