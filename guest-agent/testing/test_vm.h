#pragma once

#include <sys/types.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/use_future.hpp>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "containerd/task.pb.h"
#include "magnetar/agent.pb.h"
#include "magnetar/mux.h"
#include "magnetar/ttrpc/ttrpc.h"

namespace magnetar::guest::testing {

inline constexpr uint32_t kVmmPid = 4242;

// A real VM of the built guest with a shared directory and a multiplexed channel,
// and this process in the parts of containerd and of the daemon. For tests that
// need root, QEMU and virtiofsd.
class TestVm {
 public:
  // `guest`: folder with vmlinux, initrd.img and root.erofs. Aborts if the VM does not come up.
  TestVm(const std::string& guest, std::string extra_command_line);
  ~TestVm();
  TestVm(const TestVm&) = delete;
  TestVm& operator=(const TestVm&) = delete;

  // Directory that the guest sees as /run/magnetar/shared.
  const std::string& shared() const { return shared_; }
  std::string Console() const;
  pid_t qemu_pid() const { return qemu_; }
  // Whether the VM is gone within the time.
  bool WaitExit(std::chrono::seconds timeout);
  asio::io_context& context() { return context_; }

  // Runs a coroutine on the client's thread and waits for it.
  template <typename T>
  T Run(Co<T> work) {
    return asio::co_spawn(context_, std::move(work), asio::use_future).get();
  }

  std::shared_ptr<ttrpc::Client> Dial(uint32_t port);
  UniqueFd DialRaw(uint32_t port);

  // Calls of the Task service on a connection; aborts on no error of its own.
  template <typename Response, typename Request>
  absl::StatusOr<Response> Call(const std::shared_ptr<ttrpc::Client>& client, std::string service,
                                std::string method, Request request) {
    return Run(client->Call<Response>(std::move(service), std::move(method), std::move(request),
                                      std::chrono::seconds(60)));
  }
  template <typename Response, typename Request>
  absl::StatusOr<Response> Task(const std::shared_ptr<ttrpc::Client>& client, std::string method,
                                Request request) {
    return Call<Response>(client, "containerd.task.v3.Task", std::move(method), std::move(request));
  }

  // The daemon: what PrepareContainer answers, per container; and what was asked.
  std::map<std::string, agent::v1::PreparedContainer> prepared;
  std::vector<std::string> released;
  std::vector<agent::v1::GuestEvent> events;
  // Connects as a daemon does: Hello, SetupSandbox, HostRequests.
  void ConnectDaemon();
  void DisconnectDaemon();
  std::shared_ptr<ttrpc::Client> agent() { return agent_; }

 private:
  static Co<void> AnswerHostRequests(TestVm* self, std::shared_ptr<ttrpc::Stream> stream);
  void StartVirtiofsd(UniqueFd listener);

  std::string directory_;
  std::string shared_;
  pid_t virtiofsd_ = -1;
  pid_t qemu_ = -1;
  asio::io_context context_{1};
  std::thread thread_;
  std::shared_ptr<mux::Host> mux_;
  std::shared_ptr<ttrpc::Client> agent_;
};

// What is at the other end of a stdio stream: a containerd.
class TestStream {
 public:
  TestStream(TestVm& vm, const std::string& id);
  // Grants windows and collects until the end.
  std::string ReadAll();
  // At least `n` bytes.
  std::string ReadSome(size_t n);
  // Sends within the window, then the end.
  absl::Status WriteAll(const std::string& data, bool end);
  void Drop() { client_->Close(); }

 private:
  Co<std::string> Collect(size_t at_least);
  Co<absl::Status> Send(std::string data, bool end);

  TestVm& vm_;
  std::shared_ptr<ttrpc::Client> client_;
  std::shared_ptr<ttrpc::Stream> stream_;
  int64_t window_ = 0;
  std::string rest_;
};

// An OCI spec for a busybox container.
std::string BusyboxSpec(const std::string& id, const std::vector<std::string>& args, bool terminal);
// The "process" of it alone, for Exec.
std::string BusyboxProcess(const std::vector<std::string>& args, bool terminal);
// Makes a root file system of busybox at `path`.
void MakeBusyboxRoot(const std::string& path);
std::string StreamUri(const std::string& id);

}  // namespace magnetar::guest::testing
