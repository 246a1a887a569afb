#pragma once

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

struct nl_sock;

namespace magnetar::daemon {

// An ingress qdisc on interface `from` whose only filter sends every frame out of `to`,
// before the host's own stack sees it.
absl::Status RedirectIngress(nl_sock* socket, int from, int to, absl::string_view name);

// Removes the ingress qdisc and its filters; an absent one is fine.
absl::Status RemoveIngress(nl_sock* socket, int index, absl::string_view name);

}  // namespace magnetar::daemon
