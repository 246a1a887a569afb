#include "src/supervisor/accept_loop.h"

#include <chrono>
#include <utility>

#include "magnetar/event.h"

namespace magnetar::supervisor {
namespace {

// What is short may be freed by others, who tell nobody.
constexpr std::chrono::seconds kShortagePause{1};

}  // namespace

Co<absl::Status> AcceptLoop(AsyncFd& listener, std::shared_ptr<ConnectionLimit> limit,
                            std::function<void(UniqueFd)> serve) {
  while (true) {
    auto slot = limit->Acquire();
    co_await std::move(slot);
    while (true) {
      auto accept = Accept(listener);
      absl::StatusOr<UniqueFd> client = co_await std::move(accept);
      if (client.ok()) {
        serve(*std::move(client));
        break;
      }
      if (absl::IsCancelled(client.status()) || !listener.is_open()) co_return absl::OkStatus();
      if (!absl::IsResourceExhausted(client.status())) co_return client.status();
      auto pause = limit->WaitReleased(Event::Clock::now() + kShortagePause);
      co_await std::move(pause);
      if (!listener.is_open()) co_return absl::OkStatus();
    }
  }
}

}  // namespace magnetar::supervisor
