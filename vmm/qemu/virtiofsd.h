#pragma once

#include <string>

#include "magnetar/supervisor.pb.h"

namespace magnetar::vmm::qemu {

// virtiofsd, serving `directory` on the listening socket that is descriptor
// `listener` of the caller. It runs as root, because it makes files for every uid of the
// guest's containers, but bounded to the capabilities that takes, and in namespaces of its own
// whose root is `directory`. Mounts made below later reach it if the directory is a shared mount.
supervisor::v1::Process VirtiofsdProcess(const std::string& program, const std::string& directory,
                                         int listener);

}  // namespace magnetar::vmm::qemu
