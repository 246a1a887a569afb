#pragma once

#include <gtest/gtest.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/use_future.hpp>
#include <memory>
#include <optional>
#include <string>

#include "magnetar/child_process.h"
#include "magnetar/supervisor.pb.h"
#include "magnetar/ttrpc/ttrpc.h"
#include "vmm/vmm.h"

namespace magnetar::vmm {

// A real VM under a real supervisor. Needs root and the environment: MAGNETAR_GUEST (a
// directory with vmlinux, initrd.img and root.erofs) and MAGNETAR_SUPERVISOR (the program); tests
// are skipped without.
class VmFixture : public testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override;

  // Starts the machine and connects to its supervisor.
  void Boot();
  void WaitReady();

  template <typename Response, typename Request>
  absl::StatusOr<Response> Supervisor(const std::string& method, Request request) {
    auto call = client_->Call<Response>("magnetar.supervisor.v1.Supervisor", method,
                                        std::move(request), std::chrono::seconds(60));
    return Await(std::move(call));
  }

  // Runs a coroutine to its end on this thread.
  template <typename T>
  T Await(Co<T> coroutine) {
    std::optional<T> result;
    asio::co_spawn(context_, std::move(coroutine), [&](std::exception_ptr error, T value) {
      if (error) std::rethrow_exception(error);
      result = std::move(value);
    });
    context_.restart();
    while (!result.has_value()) context_.run_one();
    return *std::move(result);
  }

  UniqueFd Dial(uint32_t port);
  std::shared_ptr<ttrpc::Client> DialAgent();
  // Whether anybody accepts on a socket of the sandbox's directory.
  bool Listens(const std::string& name);
  pid_t PidOf(const std::string& name);
  std::string Console();
  // The contents of exit.json once the supervisor has gone.
  std::string ExitFileAfterEnd();

  asio::io_context context_;
  std::string directory_;
  MachineSpec spec_;
  std::unique_ptr<Driver> driver_;
  ChildProcess supervisor_;
  std::shared_ptr<ttrpc::Client> client_;
  // Lets a test change the launch before it starts.
  std::function<void(supervisor::v1::Launch&)> adjust_;
};

}  // namespace magnetar::vmm
