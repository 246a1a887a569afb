#include "src/shim/delete_task.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <cstring>
#include <thread>

#include "containerd/task_types.pb.h"
#include "magnetar/ttrpc/ttrpc.h"
#include "magnetar/unique_fd.h"
#include "src/shim/testing.h"
#include "wire/wkt.pb.h"

namespace magnetar::shim {
namespace {

namespace task = containerd::task::v3;

constexpr std::chrono::milliseconds kLimit(3000);

// A guest behind vm.vsock that serves one connection.
class FakeGuest {
 public:
  FakeGuest(const std::string& directory, std::shared_ptr<const ttrpc::Services> services) {
    listener_ = UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, (directory + "/vm.vsock").c_str(), sizeof(address.sun_path) - 1);
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(::listen(listener_.get(), 4), 0);
    thread_ = std::thread([this, services] { Serve(services); });
  }
  ~FakeGuest() {
    ::shutdown(listener_.get(), SHUT_RDWR);
    thread_.join();
  }
  const std::string& connect_line() const { return line_; }

 private:
  void Serve(std::shared_ptr<const ttrpc::Services> services) {
    UniqueFd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!socket.ok()) return;
    char c = 0;
    while (c != '\n' && ::read(socket.get(), &c, 1) == 1) line_.push_back(c);
    if (services == nullptr) {
      // Accepts and never answers.
      while (::read(socket.get(), &c, 1) == 1) {
      }
      return;
    }
    EXPECT_EQ(::write(socket.get(), "OK 7\n", 5), 5);
    asio::io_context context(1);
    auto serve = ttrpc::ServeConnection(std::move(socket), services);
    asio::co_spawn(context, std::move(serve), asio::detached);
    context.run_for(std::chrono::seconds(10));
  }

  UniqueFd listener_;
  std::string line_;
  std::thread thread_;
};

struct GuestTask {
  bool known = true;
  bool stopped = false;
  bool deleted = false;
  uint32_t exit_status = 0;
};

std::shared_ptr<const ttrpc::Services> TaskService(std::shared_ptr<GuestTask> t) {
  constexpr char kService[] = "containerd.task.v3.Task";
  auto services = std::make_shared<ttrpc::Services>();
  services->Add<task::StateRequest, task::StateResponse>(
      kService, "State",
      [t](ttrpc::CallContext, task::StateRequest) -> Co<absl::StatusOr<task::StateResponse>> {
        if (!t->known) co_return absl::NotFoundError("no such task");
        task::StateResponse response;
        response.set_status(t->stopped ? containerd::v1::types::STOPPED
                                       : containerd::v1::types::RUNNING);
        co_return response;
      });
  services->Add<task::KillRequest, wire::Empty>(
      kService, "Kill",
      [t](ttrpc::CallContext, task::KillRequest request) -> Co<absl::StatusOr<wire::Empty>> {
        EXPECT_EQ(request.signal(), 9u);
        EXPECT_TRUE(request.all());
        t->stopped = true;
        t->exit_status = 137;
        co_return wire::Empty();
      });
  services->Add<task::WaitRequest, task::WaitResponse>(
      kService, "Wait",
      [t](ttrpc::CallContext, task::WaitRequest) -> Co<absl::StatusOr<task::WaitResponse>> {
        task::WaitResponse response;
        co_return response;
      });
  services->Add<task::DeleteRequest, task::DeleteResponse>(
      kService, "Delete",
      [t](ttrpc::CallContext,
          task::DeleteRequest request) -> Co<absl::StatusOr<task::DeleteResponse>> {
        EXPECT_EQ(request.id(), "c1");
        t->deleted = true;
        task::DeleteResponse response;
        response.set_pid(4711);
        response.set_exit_status(t->exit_status);
        response.mutable_exited_at()->set_seconds(99);
        co_return response;
      });
  return services;
}

class DeleteTaskTest : public DirectoryTest {
 protected:
  task::DeleteResponse Delete(std::chrono::milliseconds limit = kLimit) {
    return DeleteTask(directory_, "c1", limit, warning_);
  }
  std::string warning_;
};

TEST_F(DeleteTaskTest, AStoppedTaskTellsItsExit) {
  auto t = std::make_shared<GuestTask>(GuestTask{.stopped = true, .exit_status = 42});
  task::DeleteResponse response;
  {
    FakeGuest guest(directory_, TaskService(t));
    response = Delete();
    EXPECT_EQ(guest.connect_line(), "CONNECT 1024\n");
  }
  EXPECT_EQ(response.exit_status(), 42u);
  EXPECT_EQ(response.pid(), 4711u);
  EXPECT_EQ(response.exited_at().seconds(), 99);
  EXPECT_TRUE(t->deleted);
  EXPECT_EQ(warning_, "");
}

TEST_F(DeleteTaskTest, ARunningTaskIsKilledFirst) {
  auto t = std::make_shared<GuestTask>();
  FakeGuest guest(directory_, TaskService(t));
  EXPECT_EQ(Delete().exit_status(), 137u);
  EXPECT_TRUE(t->deleted);
}

TEST_F(DeleteTaskTest, ATaskThatIsGoneIsFine) {
  auto t = std::make_shared<GuestTask>(GuestTask{.known = false});
  FakeGuest guest(directory_, TaskService(t));
  EXPECT_EQ(Delete().exit_status(), kUnknownExit);
  EXPECT_EQ(warning_, "");
}

TEST_F(DeleteTaskTest, AHungGuestCostsItsLimitAndNoMore) {
  FakeGuest guest(directory_, nullptr);
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(Delete(std::chrono::milliseconds(200)).exit_status(), kUnknownExit);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(2));
  EXPECT_NE(warning_, "");
}

TEST_F(DeleteTaskTest, AnEndedVmTellsWhen) {
  Put("exit.json", R"({"status":1,"exited_at_ns":1700000000000000005,"reason":"qemu: killed"})");
  const task::DeleteResponse response = Delete();
  EXPECT_EQ(response.exit_status(), kUnknownExit);
  EXPECT_EQ(response.exited_at().seconds(), 1700000000);
  EXPECT_EQ(response.exited_at().nanos(), 5);
}

TEST_F(DeleteTaskTest, NoVmAndBrokenRecordsAreKilledNow) {
  const int64_t now = ::time(nullptr);
  EXPECT_GE(Delete().exited_at().seconds(), now);
  for (const char* broken : {"", "{", "[]", "{}", R"({"exited_at_ns":"x"})"}) {
    Put("exit.json", broken);
    const task::DeleteResponse response = Delete();
    EXPECT_EQ(response.exit_status(), kUnknownExit) << broken;
    EXPECT_GE(response.exited_at().seconds(), now) << broken;
  }
  EXPECT_EQ(warning_, "");
}

}  // namespace
}  // namespace magnetar::shim
