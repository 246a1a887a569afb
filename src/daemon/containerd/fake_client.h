#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "src/daemon/containerd/client.h"

namespace magnetar::daemon {

// A containerd in memory, for tests. Its maps are filled before it is used; keys are ids
// ("<snapshotter>/<key>" for snapshots), whatever the namespace. Not thread-safe.
class FakeContainerdClient : public ContainerdClient {
 public:
  struct Event {
    std::string ns;
    std::string topic;
    std::string type_url;
    std::string event;
  };

  std::map<std::string, containerd::services::containers::v1::Container> containers;
  std::map<std::string, std::vector<containerd::types::Mount>> snapshots;
  std::map<std::string, std::vector<containerd::types::Mount>> activated;
  std::vector<std::string> sandboxes;
  std::vector<Event> events;
  // Answered to every call unless OK.
  absl::Status failure;

  Co<absl::StatusOr<containerd::services::containers::v1::Container>> GetContainer(
      std::string, std::string id) override {
    co_return Find(containers, "container", id);
  }
  Co<absl::StatusOr<std::vector<containerd::types::Mount>>> SnapshotMounts(
      std::string, std::string snapshotter, std::string key) override {
    co_return Find(snapshots, "snapshot", absl::StrCat(snapshotter, "/", key));
  }
  Co<absl::StatusOr<std::vector<containerd::types::Mount>>> ActivatedMounts(
      std::string, std::string container_id) override {
    co_return Find(activated, "activation", container_id);
  }
  Co<absl::StatusOr<std::vector<std::string>>> ListSandboxes(std::string) override {
    if (!failure.ok()) co_return failure;
    co_return sandboxes;
  }
  Co<absl::Status> PublishEvent(std::string ns, std::string topic, std::string type_url,
                                std::string event) override {
    if (failure.ok()) {
      events.push_back({std::move(ns), std::move(topic), std::move(type_url), std::move(event)});
    }
    co_return failure;
  }

 private:
  template <typename T>
  absl::StatusOr<T> Find(const std::map<std::string, T>& map, const char* kind,
                         const std::string& key) const {
    if (!failure.ok()) return failure;
    const auto it = map.find(key);
    if (it == map.end()) return absl::NotFoundError(absl::StrCat(kind, " ", key, ": not found"));
    return it->second;
  }
};

}  // namespace magnetar::daemon
