# magnetar_library(NAME SOURCES... LINK libs...): one room of the house.
function(magnetar_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PUBLIC magnetar_flags ${ARG_LINK})
endfunction()

# magnetar_test(NAME [FULL_PROTOBUF] [ONE_AT_A_TIME] SOURCES... LINK libs...): a GoogleTest program,
# run without root or VM. FULL_PROTOBUF: it links gRPC. ONE_AT_A_TIME: its tests share something of
# the machine's, as its free loop devices.
function(magnetar_test name)
  if(NOT BUILD_TESTING)
    return()
  endif()
  cmake_parse_arguments(ARG "FULL_PROTOBUF;ONE_AT_A_TIME" "" "SOURCES;LINK" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  set_target_properties(${name} PROPERTIES MAGNETAR_FULL_PROTOBUF "${ARG_FULL_PROTOBUF}")
  target_link_libraries(${name} PRIVATE ${ARG_LINK} GTest::gmock GTest::gtest_main)
  set(properties TIMEOUT 120)
  if(ARG_ONE_AT_A_TIME)
    list(APPEND properties RESOURCE_LOCK ${name})
  endif()
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60 PROPERTIES ${properties})
endfunction()

# magnetar_install_by_digest(TARGET): under its digest, so that an upgrade takes nothing away from a
# daemon that still runs, and by a link with its name.
function(magnetar_install_by_digest target)
  install(CODE "
    include(\"${PROJECT_SOURCE_DIR}/config/lib/install.cmake\")
    set(folder \"\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_LIBEXECDIR}/magnetar\")
    file(SHA256 \"$<TARGET_FILE:${target}>\" digest)
    string(SUBSTRING \"\${digest}\" 0 16 digest)
    magnetar_place(\"\${folder}\" \"\${digest}\" \"$<TARGET_FILE:${target}>\")
    magnetar_point(\"\${folder}/${target}\" \"\${digest}/${target}\")")
endfunction()
