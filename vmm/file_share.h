#pragma once

#include <cstdint>
#include <string_view>

#include "magnetar/ports.h"

// How a sandbox's shared directory reaches its guest: two back-ends, and all that the rest needs to
// know of either. With both, a file server of the VM's own serves the directory from a mount
// namespace whose root that directory is, in which the daemon mounts what the sandbox shares.
namespace magnetar::vmm {

struct FileShare {
  const char* name;    // in the configuration and in records
  const char* server;  // the file server's process, in the Launch and in records
  // A vhost-user device: it needs guest memory that is mapped shared, which no clone can have.
  bool shares_memory = false;
  // How the guest finds it, one of the two: the device's tag, or the port at which it is handed the
  // stream.
  const char* tag;
  uint32_t port = 0;
  const char* guest_feature;  // of Hello that the agent must have; empty: none
};

inline constexpr FileShare kVirtiofs = {.name = "virtiofs",
                                        .server = "virtiofsd",
                                        .shares_memory = true,
                                        .tag = "shared",
                                        .port = 0,
                                        .guest_feature = ""};
inline constexpr FileShare kNinep = {.name = "9p",
                                     .server = "vmm-9p",
                                     .shares_memory = false,
                                     .tag = "",
                                     .port = kFileSharePort,
                                     .guest_feature = "9p"};

// nullptr: there is none of this name.
inline const FileShare* FindFileShare(std::string_view name) {
  for (const FileShare* share : {&kVirtiofs, &kNinep}) {
    if (name == share->name) return share;
  }
  return nullptr;
}

}  // namespace magnetar::vmm
