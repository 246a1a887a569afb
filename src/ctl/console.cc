#include "src/ctl/console.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/this_coro.hpp>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/co.h"
#include "magnetar/status.h"
#include "magnetar/supervisor.pb.h"
#include "magnetar/ttrpc/ttrpc.h"
#include "magnetar/unique_fd.h"

namespace magnetar::ctl {
namespace {

constexpr std::chrono::seconds kLimit(5);

absl::StatusOr<UniqueFd> Connect(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": too long for a socket"));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.ok()) return ErrnoStatus(errno, "socket");
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    return absl::UnavailableError(
        absl::StrCat("the supervisor does not answer: ", path, ": ", std::strerror(errno)));
  }
  return fd;
}

Co<absl::StatusOr<std::string>> Ask(UniqueFd socket) {
  const asio::any_io_executor executor = co_await asio::this_coro::executor;
  std::shared_ptr<ttrpc::Client> client = ttrpc::Client::Create(executor, std::move(socket));
  supervisor::v1::ConsoleRequest request;
  auto call = client->Call<supervisor::v1::ConsoleResponse>("magnetar.supervisor.v1.Supervisor",
                                                            "Console", std::move(request), kLimit);
  absl::StatusOr<supervisor::v1::ConsoleResponse> response = co_await std::move(call);
  client->Close();
  if (!response.ok()) co_return response.status();
  co_return std::move(*response->mutable_data());
}

}  // namespace

absl::StatusOr<std::string> ReadConsole(const std::string& sandbox_directory) {
  auto socket = Connect(absl::StrCat(sandbox_directory, "/supervisor.sock"));
  if (!socket.ok()) return socket.status();
  asio::io_context context(1);
  absl::StatusOr<std::string> result =
      absl::DeadlineExceededError("the supervisor does not answer");
  auto body = Ask(*std::move(socket));
  asio::co_spawn(context, std::move(body),
                 [&](const std::exception_ptr& error, absl::StatusOr<std::string> answer) {
                   if (error == nullptr) result = std::move(answer);
                   context.stop();
                 });
  context.run_for(kLimit);
  return result;
}

}  // namespace magnetar::ctl
