#include "src/supervisor/kill_watch.h"

#include <csignal>
#include <cstdint>

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
        calls_({.request = [this](const ttrpc::Overhear::Call& call) { Request(call); },
                .response = [this](uint32_t stream_id) { Response(stream_id); }}) {}

  ~Listener() override {
    for (const auto& [stream_id, id] : waits_) watch_.Waited(id);
  }

  void FromA(std::string_view bytes) override { calls_.FromClient(bytes); }
  void FromB(std::string_view bytes) override { calls_.FromServer(bytes); }

 private:
  void Request(const ttrpc::Overhear::Call& call) {
    if (call.service != kTask) return;
    if (call.method == "Kill") {
      containerd::task::v3::KillRequest request;
      if (!request.ParseFromString(call.payload) || !request.exec_id().empty()) return;
      if (request.signal() == SIGKILL) watch_.Killed(request.id(), Clock::now());
    } else if (call.method == "Wait") {
      containerd::task::v3::WaitRequest request;
      if (!request.ParseFromString(call.payload) || !request.exec_id().empty()) return;
      if (!ValidateId(request.id(), "id").ok()) return;
      if (waits_.emplace(call.stream_id, request.id()).second) watch_.Waits(request.id());
    }
  }

  void Response(uint32_t stream_id) {
    const auto node = waits_.extract(stream_id);
    if (node.empty()) return;
    watch_.Ended(node.mapped());
    watch_.Waited(node.mapped());
  }

  KillWatch& watch_;
  ttrpc::Overhear calls_;
  // By the calls' streams.
  std::map<uint32_t, std::string> waits_;
};

std::unique_ptr<RelayListener> KillWatch::Listen() { return std::make_unique<Listener>(*this); }

void KillWatch::Waited(const std::string& id) {
  const auto it = waits_.find(id);
  if (it == waits_.end() || --it->second > 0) return;
  waits_.erase(it);
  killed_.erase(id);
}

void KillWatch::Killed(const std::string& id, Clock::time_point now) {
  if (patience_.count() == 0 || !waits_.contains(id)) return;
  const auto [entry, first] = killed_.emplace(id, now);
  const auto age = std::chrono::duration_cast<std::chrono::seconds>(now - entry->second);
  if (first || age < patience_) return;
  unkillable_(absl::StrCat("the guest does not end container ", id, ": it was sent SIGKILL ",
                           age.count(), " s ago and is sent it again"));
}

}  // namespace magnetar::supervisor
