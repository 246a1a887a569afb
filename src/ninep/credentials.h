#pragma once

#include <sys/types.h>

#include "absl/status/status.h"

// In whose name the threads of the server act. They are root and check nothing: the guest's kernel
// has done that, with the groups and capabilities of whoever asked. What they make belongs to that
// one from its first moment.
namespace magnetar::ninep {

// Of the calling thread and those that it starts: capabilities stay when the user changes, and a
// write takes the set-uid and set-gid bits away, whoever writes (no CAP_FSETID). Without root it
// does nothing, and all is done as the user that runs this.
absl::Status PrepareCredentials();

// Gives up for good all capabilities but those that serving files takes.
absl::Status DropToServing();

// Owner of what the calling thread makes.
class MakingFor {
 public:
  MakingFor(uid_t uid, gid_t gid);
  ~MakingFor();
  MakingFor(const MakingFor&) = delete;
  MakingFor& operator=(const MakingFor&) = delete;

  // False: the kernel knows no such user.
  bool ok() const { return ok_; }

 private:
  bool ok_ = true;
};

// Lets a change of modes set the bits that it names.
class SettingBits {
 public:
  SettingBits();
  ~SettingBits();
  SettingBits(const SettingBits&) = delete;
  SettingBits& operator=(const SettingBits&) = delete;
};

}  // namespace magnetar::ninep
