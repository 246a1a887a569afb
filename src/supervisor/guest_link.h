#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/co.h"
#include "magnetar/supervisor.pb.h"
#include "magnetar/unique_fd.h"

namespace magnetar::supervisor {

// The way into the guest.
class GuestLink {
 public:
  using Log = std::function<void(const std::string& line)>;

  virtual ~GuestLink() = default;
  // Completes at the guest's knock; fails if there will never be one.
  virtual Co<absl::Status> Ready() = 0;
  // A stream to a port of the guest, non-blocking. UNAVAILABLE: nothing listens there.
  virtual Co<absl::StatusOr<UniqueFd>> Connect(uint32_t port) = 0;
  virtual void Close() = 0;
};

// nullptr for Native, where the VMM listens itself. Takes over the descriptors
// that `transport` names.
absl::StatusOr<std::shared_ptr<GuestLink>> MakeGuestLink(asio::any_io_executor executor,
                                                         const v1::Transport& transport,
                                                         GuestLink::Log log);

}  // namespace magnetar::supervisor
