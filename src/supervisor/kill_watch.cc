#include "src/supervisor/kill_watch.h"

#include <csignal>

#include "absl/strings/str_cat.h"
#include "containerd/task.pb.h"
#include "magnetar/ids.h"
#include "magnetar/ttrpc/overhear.h"

namespace magnetar::supervisor {
namespace {

constexpr char kTask[] = "containerd.task.v3.Task";

}  // namespace

class KillWatch::Listener : public RelayListener {
 public:
  explicit Listener(KillWatch& watch)
      : watch_(watch),
        requests_([&watch](const std::string& service, const std::string& method,
                           const std::string& payload) {
          watch.Heard(service, method, payload, Clock::now());
        }) {}

  void Heard(std::string_view bytes) override { requests_.Add(bytes); }
  std::chrono::seconds patience() const override { return watch_.patience_; }
  void Stalled() override {
    watch_.unkillable_(absl::StrCat("the guest has read none of containerd's calls for ",
                                    watch_.patience_.count(), " s"));
  }

 private:
  KillWatch& watch_;
  ttrpc::Overhear requests_;
};

std::unique_ptr<RelayListener> KillWatch::Listen() { return std::make_unique<Listener>(*this); }

void KillWatch::Heard(const std::string& service, const std::string& method,
                      const std::string& payload, Clock::time_point now) {
  if (service != kTask || patience_.count() == 0) return;
  if (method == "Kill") {
    containerd::task::v3::KillRequest request;
    const bool whole = request.ParseFromString(payload) && request.exec_id().empty();
    if (!whole || request.signal() != SIGKILL || !ValidateId(request.id(), "id").ok()) return;
    HeardKill(request.id(), now);
  } else if (method == "Delete") {
    containerd::task::v3::DeleteRequest request;
    if (!request.ParseFromString(payload) || !request.exec_id().empty()) return;
    // It has been seen to end. A new one by its name begins anew.
    if (killed_.erase(request.id()) > 0) std::erase(order_, request.id());
  }
}

void KillWatch::HeardKill(const std::string& id, Clock::time_point now) {
  const auto [entry, first] = killed_.emplace(id, now);
  if (first) {
    order_.push_back(id);
    if (order_.size() <= kMaxContainers) return;
    killed_.erase(order_.front());
    order_.pop_front();
    return;
  }
  const auto age = std::chrono::duration_cast<std::chrono::seconds>(now - entry->second);
  if (age < patience_) return;
  unkillable_(absl::StrCat("the guest does not end container ", id, ": it was sent SIGKILL ",
                           age.count(), " s ago and is sent it again"));
}

}  // namespace magnetar::supervisor
