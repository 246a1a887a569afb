#pragma once

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

struct nl_sock;
struct nl_cache;

// Owners and errors for libnl. A socket belongs to the namespace of the thread that opens it.
namespace magnetar::daemon {

template <auto kFree>
struct NlFree {
  template <typename T>
  void operator()(T* object) const {
    kFree(object);
  }
};

struct NlSocketFree {
  void operator()(nl_sock* socket) const;
};
struct NlCacheFree {
  void operator()(nl_cache* cache) const;
};
using NlSocket = std::unique_ptr<nl_sock, NlSocketFree>;
using NlCache = std::unique_ptr<nl_cache, NlCacheFree>;

// A connected NETLINK_ROUTE socket.
absl::StatusOr<NlSocket> OpenRouteSocket();

// "<context>: <libnl's text>"; `error` is negative, or zero for OK.
absl::Status NlStatus(int error, absl::string_view context);

}  // namespace magnetar::daemon
