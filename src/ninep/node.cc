#include "src/ninep/node.h"

#include <fcntl.h>

#include <cerrno>
#include <climits>

namespace magnetar::ninep {
namespace {

constexpr uint8_t kDirectory = 0x80;
constexpr uint8_t kSymlink = 0x02;

// Turns every bit of a number over many of the result's, and no two numbers into the same.
uint64_t Mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9;
  x ^= x >> 27;
  x *= 0x94d049bb133111eb;
  return x ^ x >> 31;
}

}  // namespace

bool IsName(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.size() <= NAME_MAX &&
         name.find('/') == name.npos && name.find('\0') == name.npos;
}

Qid QidOf(const struct stat& st) {
  uint8_t type = 0;
  if (S_ISDIR(st.st_mode)) type = kDirectory;
  if (S_ISLNK(st.st_mode)) type = kSymlink;
  return {.type = type, .path = Mix(st.st_ino ^ Mix(st.st_dev))};
}

UniqueFd OpenEntry(int directory, const std::string& name) {
  return UniqueFd(::openat(directory, name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
}

UniqueFd Descriptors::Open(int node, int flags) const {
  struct stat st = {};
  if (::fstat(node, &st) != 0) return UniqueFd();
  if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode)) {
    errno = ENXIO;
    return UniqueFd();
  }
  return UniqueFd(::open(PathOf(node).c_str(), flags | O_CLOEXEC | O_NOCTTY));
}

}  // namespace magnetar::ninep
