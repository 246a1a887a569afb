#include "src/daemon/cgroup/layout.h"

#include <algorithm>
#include <iterator>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "magnetar/ids.h"
#include "magnetar/status.h"

namespace magnetar::daemon {
namespace {

constexpr absl::string_view kDefaultParent = "magnetar";
constexpr absl::string_view kDefaultSlice = "magnetar.slice";
constexpr absl::string_view kSlice = ".slice";

// mountinfo writes space, tab, newline and backslash as \ and three octal digits.
std::string Unescape(absl::string_view text) {
  const auto is_octal = [](char c) { return c >= '0' && c <= '7'; };
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size() && is_octal(text[i + 1]) && is_octal(text[i + 2]) &&
        is_octal(text[i + 3])) {
      out.push_back(static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 +
                                      (text[i + 3] - '0')));
      i += 3;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

bool IsBelow(absl::string_view path, absl::string_view mount_point) {
  return absl::ConsumePrefix(&path, mount_point) && (path.empty() || path[0] == '/');
}

std::vector<std::string> ControllersOf(absl::string_view super_options) {
  // What a v1 hierarchy's options hold beside its controllers.
  static const std::set<absl::string_view> kOthers = {
      "rw",       "ro",           "noprefix",       "clone_children", "xattr",
      "seclabel", "favordynmods", "cpuset_v2_mode", "nsdelegate"};
  std::vector<std::string> out;
  for (absl::string_view option : absl::StrSplit(super_options, ',', absl::SkipEmpty())) {
    if (kOthers.contains(option) || absl::StartsWith(option, "release_agent=")) continue;
    out.emplace_back(option);
  }
  return out;
}

absl::StatusOr<std::string> ExpandSlice(absl::string_view slice) {
  absl::string_view name = slice;
  absl::ConsumeSuffix(&name, kSlice);
  if (name == "-") return std::string();
  std::vector<std::string> path;
  std::string prefix;
  for (absl::string_view part : absl::StrSplit(name, '-')) {
    if (part.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("cgroup_parent \"", slice, "\" is no name of a systemd slice"));
    }
    absl::StrAppend(&prefix, prefix.empty() ? "" : "-", part);
    path.push_back(absl::StrCat(prefix, kSlice));
  }
  return absl::StrJoin(path, "/");
}

}  // namespace

bool Hierarchy::Has(absl::string_view controller) const {
  return std::find(controllers.begin(), controllers.end(), controller) != controllers.end();
}

absl::StatusOr<std::vector<Hierarchy>> ParseHierarchies(absl::string_view mountinfo,
                                                        absl::string_view mount_point) {
  std::vector<Hierarchy> out;
  std::set<std::string> devices;
  for (absl::string_view line : absl::StrSplit(mountinfo, '\n', absl::SkipEmpty())) {
    const std::vector<absl::string_view> halves = absl::StrSplit(line, absl::MaxSplits(" - ", 1));
    if (halves.size() != 2) continue;
    const std::vector<absl::string_view> left = absl::StrSplit(halves[0], ' ', absl::SkipEmpty());
    const std::vector<absl::string_view> right = absl::StrSplit(halves[1], ' ', absl::SkipEmpty());
    if (left.size() < 5 || right.size() < 3) continue;
    Hierarchy hierarchy;
    hierarchy.path = Unescape(left[4]);
    hierarchy.v2 = right[0] == "cgroup2";
    if ((!hierarchy.v2 && right[0] != "cgroup") || !IsBelow(hierarchy.path, mount_point)) continue;
    // One hierarchy may be mounted twice ("cpu" and "cpu,cpuacct").
    if (!devices.insert(std::string(left[2])).second) continue;
    if (!hierarchy.v2) hierarchy.controllers = ControllersOf(right[2]);
    out.push_back(std::move(hierarchy));
  }
  if (out.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("no cgroup hierarchy is mounted at or below ", mount_point));
  }
  return out;
}

const std::vector<std::string>& NeededControllers() {
  static const auto* const kNeeded = new std::vector<std::string>{"cpu", "memory", "pids", "io"};
  return *kNeeded;
}

void AssignControllers(absl::string_view v2_controllers, std::vector<Hierarchy>& hierarchies) {
  const std::set<absl::string_view> listed =
      absl::StrSplit(v2_controllers, absl::ByAnyChar(" \n"), absl::SkipEmpty());
  const std::vector<std::string>& needed = NeededControllers();
  const bool governs = hierarchies.size() == 1 ||
                       std::any_of(needed.begin(), needed.end(),
                                   [&](const auto& name) { return listed.contains(name); });
  std::set<std::string> in_v1;
  for (const Hierarchy& hierarchy : hierarchies) {
    if (hierarchy.v2) continue;
    in_v1.insert(hierarchy.controllers.begin(), hierarchy.controllers.end());
    if (hierarchy.Has("blkio")) in_v1.insert("io");
  }
  for (Hierarchy& hierarchy : hierarchies) {
    if (!hierarchy.v2) continue;
    hierarchy.controllers.clear();
    if (!governs) continue;
    std::copy_if(needed.begin(), needed.end(), std::back_inserter(hierarchy.controllers),
                 [&in_v1](const std::string& name) { return !in_v1.contains(name); });
  }
}

absl::StatusOr<std::string> ParentPath(absl::string_view cgroup_parent) {
  absl::string_view trimmed = cgroup_parent;
  absl::ConsumePrefix(&trimmed, "/");
  absl::ConsumeSuffix(&trimmed, "/");
  if (trimmed.empty()) return std::string(kDefaultParent);
  const std::vector<absl::string_view> parts = absl::StrSplit(trimmed, '/');
  for (absl::string_view part : parts) {
    if (part.empty() || part == "." || part == ".." || part.size() > 255 ||
        part.find('\0') != absl::string_view::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("cgroup_parent \"", cgroup_parent, "\" is no plain path"));
    }
  }
  // The kubelet hands the expanded path over, other clients the slice's name.
  if (parts.size() == 1 && absl::EndsWith(trimmed, kSlice)) return ExpandSlice(trimmed);
  return std::string(trimmed);
}

absl::StatusOr<SandboxPlace> PlaceSandbox(absl::string_view cgroup_parent,
                                          absl::string_view sandbox_id, bool systemd) {
  const std::string id(sandbox_id);
  MAGNETAR_RETURN_IF_ERROR(ValidateId(id, "sandbox_id"));
  const bool none = cgroup_parent.empty() || cgroup_parent == "/";
  if (systemd && none) cgroup_parent = kDefaultSlice;
  auto parent = ParentPath(cgroup_parent);
  if (!parent.ok()) return parent.status();
  SandboxPlace place;
  place.top = absl::StrCat(*parent, parent->empty() ? "" : "/", "magnetar-", id);
  place.path = place.top;
  if (!systemd || !absl::EndsWith(cgroup_parent, kSlice)) return place;
  place.slice = parent->empty() ? "-.slice" : parent->substr(parent->rfind('/') + 1);
  place.scope = absl::StrCat("magnetar-", id, ".scope");
  absl::StrAppend(&place.top, ".scope");
  place.path = absl::StrCat(place.top, "/vm");
  return place;
}

}  // namespace magnetar::daemon
