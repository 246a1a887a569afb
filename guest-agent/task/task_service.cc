#include "guest-agent/task/task_service.h"

#include <boost/asio/cancellation_state.hpp>
#include <boost/asio/this_coro.hpp>
#include <utility>

#include "magnetar/streaming/frames.h"

namespace magnetar::guest {
namespace {

namespace v3 = containerd::task::v3;

constexpr char kTask[] = "containerd.task.v3.Task";

// A call that is under way when its connection breaks runs to its end: half a
// container would be worse than an answer that nobody reads.
template <typename Response>
Co<absl::StatusOr<Response>> ToItsEnd(Co<absl::StatusOr<Response>> call) {
  co_await asio::this_coro::reset_cancellation_state(asio::disable_cancellation());
  co_return co_await std::move(call);
}

template <typename Request, typename Response>
void Add(ttrpc::Services& services, TaskManager& manager, const char* method,
         Co<absl::StatusOr<Response>> (TaskManager::*call)(Request)) {
  services.Add<Request, Response>(kTask, method,
                                  [&manager, call](const ttrpc::CallContext&, Request request) {
                                    return ToItsEnd<Response>((manager.*call)(std::move(request)));
                                  });
}

}  // namespace

std::shared_ptr<const ttrpc::Services> MakeTaskServices(TaskManager& manager,
                                                        StreamRegistry& streams,
                                                        uint64_t connection) {
  auto services = std::make_shared<ttrpc::Services>();
  Add(*services, manager, "State", &TaskManager::State);
  services->Add<v3::CreateTaskRequest, v3::CreateTaskResponse>(
      kTask, "Create",
      [&manager](const ttrpc::CallContext& context, v3::CreateTaskRequest request) {
        return ToItsEnd<v3::CreateTaskResponse>(
            manager.Create(std::move(request), context.deadline));
      });
  Add(*services, manager, "Start", &TaskManager::Start);
  Add(*services, manager, "Delete", &TaskManager::Delete);
  Add(*services, manager, "Pids", &TaskManager::Pids);
  Add(*services, manager, "Pause", &TaskManager::Pause);
  Add(*services, manager, "Resume", &TaskManager::Resume);
  Add(*services, manager, "Checkpoint", &TaskManager::Checkpoint);
  Add(*services, manager, "Kill", &TaskManager::Kill);
  Add(*services, manager, "ResizePty", &TaskManager::ResizePty);
  Add(*services, manager, "CloseIO", &TaskManager::CloseIO);
  Add(*services, manager, "Update", &TaskManager::Update);
  Add(*services, manager, "Stats", &TaskManager::Stats);
  Add(*services, manager, "Connect", &TaskManager::Connect);
  Add(*services, manager, "Shutdown", &TaskManager::Shutdown);
  services->Add<v3::WaitRequest, v3::WaitResponse>(
      kTask, "Wait", [&manager](const ttrpc::CallContext&, v3::WaitRequest request) {
        return manager.Wait(std::move(request));
      });
  services->Add<v3::ExecProcessRequest, wire::Empty>(
      kTask, "Exec",
      [&manager, connection](const ttrpc::CallContext&, v3::ExecProcessRequest request) {
        return ToItsEnd<wire::Empty>(manager.Exec(std::move(request), connection));
      });
  services->AddStream(streaming::kStreamingService, streaming::kStreamMethod,
                      [&streams](const ttrpc::CallContext&, std::shared_ptr<ttrpc::Stream> stream) {
                        return streams.Serve(std::move(stream));
                      });
  return services;
}

}  // namespace magnetar::guest
