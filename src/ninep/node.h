#pragma once

#include <sys/stat.h>

#include <string>
#include <string_view>

#include "magnetar/unique_fd.h"
#include "src/ninep/wire.h"

// Steps in the host's file systems. Each goes from a descriptor by one name and follows no link, so
// that what a guest names is what it gets, whatever others do meanwhile. Errors are errno's.
namespace magnetar::ninep {

// A name that a directory can hold: not empty, ".", ".." or with a '/' in it.
bool IsName(std::string_view name);

// The number of a file; one for the whole share, which spans file systems that each have their own.
Qid QidOf(const struct stat& st);

// O_PATH. -1 and errno on failure.
UniqueFd OpenEntry(int directory, const std::string& name);

// What descriptors are opened anew by: the entries of the process's own /proc/self/fd, as a path
// that ends in '/', or, with that directory as the current one, "". That way the guest's file is
// found also when its name is gone.
class Descriptors {
 public:
  explicit Descriptors(std::string prefix) : prefix_(std::move(prefix)) {}
  std::string PathOf(int fd) const { return prefix_ + std::to_string(fd); }
  // A regular file or a directory; ENXIO for what else a descriptor may be: to open that may do
  // something, and is the guest's kernel's affair.
  UniqueFd Open(int node, int flags) const;

 private:
  const std::string prefix_;
};

}  // namespace magnetar::ninep
