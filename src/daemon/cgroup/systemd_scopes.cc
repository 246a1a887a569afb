#include "src/daemon/cgroup/systemd_scopes.h"

#include <systemd/sd-bus.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "magnetar/status.h"

namespace magnetar::daemon {
namespace {

using Clock = std::chrono::steady_clock;

constexpr char kService[] = "org.freedesktop.systemd1";
constexpr char kPath[] = "/org/freedesktop/systemd1";
constexpr char kManager[] = "org.freedesktop.systemd1.Manager";
constexpr std::chrono::seconds kLimit(10);

struct BusCloser {
  void operator()(sd_bus* bus) const { ::sd_bus_flush_close_unref(bus); }
};
struct MessageCloser {
  void operator()(sd_bus_message* message) const { ::sd_bus_message_unref(message); }
};
struct SlotCloser {
  void operator()(sd_bus_slot* slot) const { ::sd_bus_slot_unref(slot); }
};
using Bus = std::unique_ptr<sd_bus, BusCloser>;
using Message = std::unique_ptr<sd_bus_message, MessageCloser>;
using Slot = std::unique_ptr<sd_bus_slot, SlotCloser>;

struct BusError {
  sd_bus_error error = SD_BUS_ERROR_NULL;
  ~BusError() { ::sd_bus_error_free(&error); }
  bool Is(const char* name) const { return ::sd_bus_error_has_name(&error, name) > 0; }
};

absl::Status BusStatus(int result, const std::string& what, const BusError* error = nullptr) {
  if (result >= 0) return absl::OkStatus();
  const char* text = error != nullptr && error->error.message != nullptr ? error->error.message
                                                                         : std::strerror(-result);
  return absl::UnavailableError(absl::StrCat("systemd: ", what, ": ", text));
}

// The job whose end is awaited, and how it ended.
struct Job {
  std::string path;
  std::string result;
};

int OnJobRemoved(sd_bus_message* message, void* data, sd_bus_error*) {
  Job& job = *static_cast<Job*>(data);
  uint32_t id = 0;
  const char* path = nullptr;
  const char* unit = nullptr;
  const char* result = nullptr;
  if (::sd_bus_message_read(message, "uoss", &id, &path, &unit, &result) < 0) return 0;
  if (job.path == path) job.result = result;
  return 0;
}

class DBusScopes final : public SystemdScopes {
 public:
  explicit DBusScopes(int (*open)(sd_bus**)) : open_(open) {}

  absl::Status Start(const std::string& scope, const std::string& slice, pid_t pid) override {
    bool exists = false;
    absl::Status status = TryStart(scope, slice, pid, exists);
    if (!exists) return status;
    MAGNETAR_RETURN_IF_ERROR(Stop(scope));
    return TryStart(scope, slice, pid, exists);
  }

  absl::Status Stop(const std::string& scope) override {
    return Run(absl::StrCat("stop ", scope), [&scope](sd_bus* bus, BusError& error,
                                                      Message& reply) {
      sd_bus_message* raw = nullptr;
      const int result = ::sd_bus_call_method(bus, kService, kPath, kManager, "StopUnit",
                                              &error.error, &raw, "ss", scope.c_str(), "replace");
      reply.reset(raw);
      // Nothing to wait for.
      return error.Is("org.freedesktop.systemd1.NoSuchUnit") ? 0 : result;
    });
  }

 private:
  absl::Status TryStart(const std::string& scope, const std::string& slice, pid_t pid,
                        bool& exists) const {
    return Run(absl::StrCat("start ", scope), [&](sd_bus* bus, BusError& error, Message& reply) {
      sd_bus_message* raw = nullptr;
      int result = ::sd_bus_message_new_method_call(bus, &raw, kService, kPath, kManager,
                                                    "StartTransientUnit");
      Message call(raw);
      if (result >= 0) {
        result = ::sd_bus_message_append(raw, "ssa(sv)a(sa(sv))", scope.c_str(), "fail", 7,      //
                                         "Description", "s", "Magnetar microVM",                 //
                                         "Slice", "s", slice.c_str(),                            //
                                         "Delegate", "b", 1,                                     //
                                         "DefaultDependencies", "b", 0,                          //
                                         "CollectMode", "s", "inactive-or-failed",               //
                                         "TasksMax", "t", std::numeric_limits<uint64_t>::max(),  //
                                         "PIDs", "au", 1, static_cast<uint32_t>(pid),            //
                                         0);
      }
      if (result < 0) return result;
      sd_bus_message* answer = nullptr;
      result = ::sd_bus_call(bus, raw, 0, &error.error, &answer);
      reply.reset(answer);
      exists = error.Is("org.freedesktop.systemd1.UnitExists");
      return result;
    });
  }

  // Makes a call that answers with a job, and waits until the job is done.
  template <typename F>
  absl::Status Run(const std::string& what, F call) const {
    sd_bus* raw = nullptr;
    MAGNETAR_RETURN_IF_ERROR(BusStatus(open_(&raw), "connect"));
    const Bus bus(raw);
    Job job;
    sd_bus_slot* slot = nullptr;
    MAGNETAR_RETURN_IF_ERROR(BusStatus(::sd_bus_match_signal(raw, &slot, kService, kPath, kManager,
                                                             "JobRemoved", &OnJobRemoved, &job),
                                       "match"));
    const Slot match(slot);
    BusError error;
    Message reply;
    MAGNETAR_RETURN_IF_ERROR(BusStatus(call(raw, error, reply), what, &error));
    if (reply == nullptr) return absl::OkStatus();
    const char* path = nullptr;
    MAGNETAR_RETURN_IF_ERROR(BusStatus(::sd_bus_message_read(reply.get(), "o", &path), what));
    job.path = path;
    const auto end = Clock::now() + kLimit;
    while (job.result.empty()) {
      const int handled = ::sd_bus_process(raw, nullptr);
      MAGNETAR_RETURN_IF_ERROR(BusStatus(handled, what));
      if (handled > 0) continue;
      const auto left = std::chrono::duration_cast<std::chrono::microseconds>(end - Clock::now());
      if (left.count() <= 0) {
        return absl::DeadlineExceededError(absl::StrCat("systemd: ", what, ": no answer"));
      }
      MAGNETAR_RETURN_IF_ERROR(
          BusStatus(::sd_bus_wait(raw, static_cast<uint64_t>(left.count())), what));
    }
    if (job.result == "done") return absl::OkStatus();
    return absl::UnavailableError(absl::StrCat("systemd: ", what, ": job ", job.result));
  }

  int (*const open_)(sd_bus**);
};

}  // namespace

std::unique_ptr<SystemdScopes> CreateSystemdScopes(int (*open)(sd_bus**)) {
  return std::make_unique<DBusScopes>(open != nullptr ? open : &::sd_bus_open_system);
}

}  // namespace magnetar::daemon
