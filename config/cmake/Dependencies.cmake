# Everything comes from Debian 12's packages.
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(Protobuf REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(Boost 1.81 REQUIRED)
pkg_check_modules(NGHTTP2 REQUIRED libnghttp2)
pkg_check_modules(LIBSECCOMP REQUIRED libseccomp)
if(MAGNETAR_BUILD_DAEMON)
  find_package(gRPC REQUIRED CONFIG)
  pkg_check_modules(LIBSYSTEMD REQUIRED IMPORTED_TARGET libsystemd)
  pkg_check_modules(LIBNL_ROUTE REQUIRED IMPORTED_TARGET libnl-route-3.0)
  pkg_check_modules(PROMETHEUS REQUIRED IMPORTED_TARGET prometheus-cpp-core)
  pkg_check_modules(LIBNFTABLES REQUIRED IMPORTED_TARGET libnftables)
endif()
if(BUILD_TESTING)
  find_package(GTest REQUIRED)
  include(GoogleTest)
endif()

# Asio is header-only; it is used with coroutines and without its deprecated parts.
add_library(magnetar_asio INTERFACE)
target_compile_definitions(magnetar_asio INTERFACE BOOST_ASIO_NO_DEPRECATED BOOST_ASIO_DISABLE_BOOST_REGEX
  BOOST_ASIO_HAS_STD_INVOKE_RESULT)
target_link_libraries(magnetar_asio INTERFACE Boost::headers Threads::Threads)

# abseil and protobuf by name rather than by path, so that the static programs
# (vmm-task, vmm-supervisor) take the archives and the others the shared ones.
pkg_check_modules(ABSL REQUIRED absl_status absl_statusor absl_strings absl_str_format absl_time absl_flat_hash_map)
add_library(magnetar_absl INTERFACE)
target_link_libraries(magnetar_absl INTERFACE ${ABSL_STATIC_LIBRARIES})

# A program links exactly one protobuf runtime: the full one where gRPC brings it
# in (property MAGNETAR_FULL_PROTOBUF), else the lite one.
add_library(magnetar_protobuf INTERFACE)
target_link_libraries(magnetar_protobuf INTERFACE
  $<IF:$<BOOL:$<TARGET_PROPERTY:MAGNETAR_FULL_PROTOBUF>>,protobuf,protobuf-lite>)
