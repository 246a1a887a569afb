#pragma once

#include <memory>
#include <string>

#include "guest-agent/init/reaper.h"
#include "guest-agent/task/oci_runtime.h"

namespace magnetar::guest {

struct CrunPaths {
  std::string binary = "/usr/bin/crun";
  std::string root = "/run/crun";
  // Private directory for pid files and logs; must exist.
  std::string scratch = "/run/magnetar/crun";
};

// crun as a child process per call. `reaper` outlives it.
std::unique_ptr<OciRuntime> MakeCrun(Reaper& reaper, CrunPaths paths);

// The reason in crun's log (`--log-format=json`, one object per line): the
// messages of level error, oldest first, joined by ": ". Empty if there is none.
std::string CrunLogReason(const std::string& log);

}  // namespace magnetar::guest
