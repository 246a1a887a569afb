#pragma once

#include <dirent.h>

namespace magnetar {

// For std::unique_ptr<DIR, DirectoryCloser>: owns what opendir(3) gave.
struct DirectoryCloser {
  void operator()(DIR* directory) const { ::closedir(directory); }
};

}  // namespace magnetar
