#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

struct nl_sock;

namespace magnetar::daemon {

// Of the filter, which nobody else's has ("MG"): by it an ingress qdisc whose tap is gone is known.
inline constexpr uint16_t kRedirectPriority = 0x4d47;

// An ingress qdisc on interface `from` whose only filter sends every frame out of `to`,
// before the host's own stack sees it. ALREADY_EXISTS: it has an ingress qdisc.
absl::Status RedirectIngress(nl_sock* socket, int from, int to, absl::string_view name);

// Removes the ingress qdisc and its filters; an absent one is fine.
absl::Status RemoveIngress(nl_sock* socket, int index, absl::string_view name);

}  // namespace magnetar::daemon
