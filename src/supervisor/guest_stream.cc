#include "src/supervisor/guest_stream.h"

#include <chrono>
#include <utility>

#include "magnetar/status.h"
#include "src/supervisor/attempt.h"
#include "src/supervisor/relay.h"

namespace magnetar::supervisor {
namespace {

// For a guest that runs but does not accept.
constexpr std::chrono::seconds kStreamDeadline{30};

}  // namespace

Co<absl::Status> ServeGuestStream(UniqueFd socket, uint32_t port, GuestAccess access) {
  auto knock = access.ready_or_ending->Wait();
  co_await std::move(knock);
  if (!access.ready->is_open()) co_return absl::OkStatus();
  auto connect = Bounded({.limit = kStreamDeadline}, access.link->Connect(port));
  absl::StatusOr<UniqueFd> guest = co_await std::move(connect);
  if (!guest.ok()) co_return Annotate(guest.status(), "connect to the guest");
  auto relay = Relay(std::move(socket), *std::move(guest));
  co_await std::move(relay);
  co_return absl::OkStatus();
}

}  // namespace magnetar::supervisor
