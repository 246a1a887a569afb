#include "src/shim/delete_task.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/this_coro.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "containerd/task_types.pb.h"
#include "magnetar/co.h"
#include "magnetar/files.h"
#include "magnetar/hybrid_vsock.h"
#include "magnetar/ports.h"
#include "magnetar/ttrpc/ttrpc.h"
#include "wire/wkt.pb.h"

namespace magnetar::shim {
namespace {

namespace task = containerd::task::v3;
using Clock = std::chrono::steady_clock;

constexpr char kService[] = "containerd.task.v3.Task";
constexpr int64_t kNanoseconds = 1000000000;

task::DeleteResponse Killed(int64_t exited_at_ns) {
  task::DeleteResponse response;
  response.set_exit_status(kUnknownExit);
  response.mutable_exited_at()->set_seconds(exited_at_ns / kNanoseconds);
  response.mutable_exited_at()->set_nanos(static_cast<int32_t>(exited_at_ns % kNanoseconds));
  return response;
}

int64_t Now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// When the VM ended, by the supervisor's record; nullopt while it lives.
std::optional<int64_t> VmExit(const std::string& directory) {
  auto text = ReadFile(absl::StrCat(directory, "/exit.json"), 64 << 10);
  // The supervisor makes the file at its start, and writes it at the end.
  if (!text.ok() || text->empty()) return std::nullopt;
  const auto json = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return Now();
  const auto it = json.find("exited_at_ns");
  if (it == json.end()) return Now();
  if (it->is_number_integer()) return it->get<int64_t>();
  return Now();
}

template <typename Response, typename Request>
Co<absl::StatusOr<Response>> Call(ttrpc::Client& client, std::string method, Request request,
                                  Clock::time_point end) {
  const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(end - Clock::now());
  if (left.count() <= 0) co_return absl::DeadlineExceededError(method);
  auto call = client.Call<Response>(kService, std::move(method), std::move(request), left);
  absl::StatusOr<Response> response = co_await std::move(call);
  co_return response;
}

// NOT_FOUND: the guest knows no such task.
Co<absl::StatusOr<task::DeleteResponse>> AskGuest(std::string socket_path, std::string id,
                                                  Clock::time_point end) {
  const asio::any_io_executor executor = co_await asio::this_coro::executor;
  const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(end - Clock::now());
  auto dial = DialHybridVsock(socket_path, kTaskPort, left);
  absl::StatusOr<UniqueFd> socket = co_await std::move(dial);
  if (!socket.ok()) co_return socket.status();
  std::shared_ptr<ttrpc::Client> client = ttrpc::Client::Create(executor, *std::move(socket));

  task::StateRequest state_request;
  state_request.set_id(id);
  auto state_call = Call<task::StateResponse>(*client, "State", std::move(state_request), end);
  absl::StatusOr<task::StateResponse> state = co_await std::move(state_call);
  if (!state.ok()) {
    client->Close();
    co_return state.status();
  }
  if (state->status() != containerd::v1::types::STOPPED) {
    task::KillRequest kill_request;
    kill_request.set_id(id);
    kill_request.set_signal(9);
    kill_request.set_all(true);
    auto kill_call = Call<wire::Empty>(*client, "Kill", std::move(kill_request), end);
    // One that ends by itself meanwhile cannot be killed: Wait tells.
    absl::StatusOr<wire::Empty> killed = co_await std::move(kill_call);
    if (killed.ok() || !absl::IsDeadlineExceeded(killed.status())) {
      task::WaitRequest wait_request;
      wait_request.set_id(id);
      auto wait_call = Call<task::WaitResponse>(*client, "Wait", std::move(wait_request), end);
      absl::StatusOr<task::WaitResponse> waited = co_await std::move(wait_call);
      if (!waited.ok()) {
        client->Close();
        co_return waited.status();
      }
    }
  }
  task::DeleteRequest delete_request;
  delete_request.set_id(id);
  auto delete_call = Call<task::DeleteResponse>(*client, "Delete", std::move(delete_request), end);
  absl::StatusOr<task::DeleteResponse> deleted = co_await std::move(delete_call);
  client->Close();
  co_return deleted;
}

absl::StatusOr<task::DeleteResponse> AskGuestBlocking(const std::string& socket_path,
                                                      const std::string& id,
                                                      std::chrono::milliseconds limit) {
  asio::io_context context(1);
  absl::StatusOr<task::DeleteResponse> result =
      absl::DeadlineExceededError("the guest does not answer");
  auto body = AskGuest(socket_path, id, Clock::now() + limit);
  asio::co_spawn(context, std::move(body),
                 [&result, &context](const std::exception_ptr& error,
                                     absl::StatusOr<task::DeleteResponse> response) {
                   if (error == nullptr) result = std::move(response);
                   context.stop();
                 });
  context.run_for(limit);
  return result;
}

}  // namespace

task::DeleteResponse DeleteTask(const std::string& sandbox_directory, const std::string& id,
                                std::chrono::milliseconds limit, std::string& warning) {
  if (auto ended = VmExit(sandbox_directory); ended.has_value()) return Killed(*ended);
  auto response = AskGuestBlocking(absl::StrCat(sandbox_directory, "/vm.vsock"), id, limit);
  if (response.ok()) return *std::move(response);
  // Between the two looks the VM may have ended, which is what broke the call.
  if (auto ended = VmExit(sandbox_directory); ended.has_value()) return Killed(*ended);
  // No such task, or no such VM: there is nothing to tell.
  if (!absl::IsNotFound(response.status()) && !absl::IsUnavailable(response.status())) {
    warning = absl::StrCat("task ", id, ": ", std::string(response.status().message()));
  }
  return Killed(Now());
}

}  // namespace magnetar::shim
