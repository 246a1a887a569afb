#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

// Where the host's cgroups are and where a sandbox's belongs in them; no system calls.
namespace magnetar::daemon {

struct Hierarchy {
  std::string path;  // mount point
  bool v2 = false;
  // v1: {"cpu", "cpuacct"} or {"name=systemd"}; v2: see AssignControllers.
  std::vector<std::string> controllers;

  bool Has(absl::string_view controller) const;
  bool operator==(const Hierarchy&) const = default;
};

// Hierarchies mounted at or below `mount_point`, from the text of /proc/<pid>/mountinfo: one with
// v2, several with v1, and v2's among them (without controllers of v1) on a hybrid host.
// FAILED_PRECONDITION if there are none.
absl::StatusOr<std::vector<Hierarchy>> ParseHierarchies(absl::string_view mountinfo,
                                                        absl::string_view mount_point);

// What a sandbox's cgroup needs for limits and counters, in v2's names.
const std::vector<std::string>& NeededControllers();

// Tells v2's hierarchy which of the needed controllers are its to limit and count, given the
// text of its root's cgroup.controllers. Alone it answers for all of them. Beside v1's hierarchies,
// each controller is in one of the two: where v2 has any of them (v1 may be there for net_cls or
// systemd alone), it answers for all that v1 has not mounted, else for none.
void AssignControllers(absl::string_view v2_controllers, std::vector<Hierarchy>& hierarchies);

// The path of a CRI cgroup_parent within a hierarchy, without slashes at its ends.
// systemd's form is expanded: "kubepods-burstable-pod1.slice" is
// "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice". Empty: "magnetar".
// INVALID_ARGUMENT for "..", empty components and names that systemd would refuse.
absl::StatusOr<std::string> ParentPath(absl::string_view cgroup_parent);

// Where a sandbox's processes belong, below each hierarchy's mount point.
struct SandboxPlace {
  std::string path;   // of their cgroup
  std::string top;    // what is the sandbox's alone: `path`, or the scope above it
  std::string scope;  // unit that systemd must start first; empty: none
  std::string slice;  // in which it starts it
};

// `<parent>/magnetar-<id>`. With systemd in charge, a slice (and an empty cgroup_parent, which
// becomes magnetar.slice) is its, and nobody else may make cgroups there: then it is
// `<slice>/magnetar-<id>.scope/vm`, in a scope that systemd delegates. Its own cgroup stays empty,
// since v2 allows processes in leaves only.
absl::StatusOr<SandboxPlace> PlaceSandbox(absl::string_view cgroup_parent,
                                          absl::string_view sandbox_id, bool systemd);

}  // namespace magnetar::daemon
