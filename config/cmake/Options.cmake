# Compiler flags that every target shares.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
# Release is for machines that run pods by the dozen: small code over unrolled loops.
set(CMAKE_CXX_FLAGS_RELEASE "-Os -DNDEBUG")

# Most of a file's compilation is the headers of Asio, abseil and gRPC: several files of a library
# compile as one (preset `dev` switches that off, for whoever changes one of them again and again).
option(CMAKE_UNITY_BUILD "Compile several files of a library as one" ON)
set(CMAKE_UNITY_BUILD_BATCH_SIZE 10 CACHE STRING "How many files compile as one")

find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
endif()

add_library(magnetar_flags INTERFACE)
target_compile_options(magnetar_flags INTERFACE -Wall -Wextra -Werror -ffunction-sections -fdata-sections
  -fstack-protector-strong -D_GNU_SOURCE)
target_link_options(magnetar_flags INTERFACE -Wl,--gc-sections -Wl,-z,relro,-z,now)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    # Else -Os copies with `rep movsb`, of which an emulated CPU does one byte at a time.
    target_compile_options(magnetar_flags INTERFACE -mstringop-strategy=libcall)
  endif()
  # GCC 12 reports these in abseil's and Boost's inlined code.
  target_compile_options(magnetar_flags INTERFACE -Wno-maybe-uninitialized -Wno-restrict -Wno-mismatched-new-delete)
  if(CMAKE_UNITY_BUILD)
    # To GCC the files that make up a unit are headers, whose coroutines must not hold what is local to them.
    target_compile_options(magnetar_flags INTERFACE -Wno-subobject-linkage)
  endif()
endif()
if(MAGNETAR_SANITIZE)
  target_compile_options(magnetar_flags INTERFACE -fsanitize=${MAGNETAR_SANITIZE} -fno-omit-frame-pointer)
  target_link_options(magnetar_flags INTERFACE -fsanitize=${MAGNETAR_SANITIZE})
  if(MAGNETAR_SANITIZE MATCHES "thread" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # Asio's fences, which come on top of its mutexes; the sanitizer sees only those.
    target_compile_options(magnetar_flags INTERFACE -Wno-tsan)
  endif()
endif()
