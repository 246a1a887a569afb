#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace magnetar::shim {

// The command line with which containerd runs a shim, in the form of Go's flag package: "-id X",
// "--id=X", flags before the action. Facts: containerd v2.4 pkg/shim/shim.go parseFlags.
struct Arguments {
  std::string containerd_namespace;
  std::string id;
  std::string bundle;  // empty: the working directory
  std::string address;
  std::string publish_binary;
  std::string action;  // "start", "delete" or empty
  bool debug = false;
  bool info = false;
  bool version = false;
};

// INVALID_ARGUMENT for a flag that nobody knows, or one without its value.
absl::StatusOr<Arguments> ParseArguments(const std::vector<std::string>& words);

}  // namespace magnetar::shim
