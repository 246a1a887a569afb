#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace magnetar::streaming {

enum class StdioKind { kStdin, kStdout, kStderr };

// "<container id | exec id>-stdin|stdout|stderr", as containerd's CRI names its
// streams. INVALID_ARGUMENT for everything else.
absl::StatusOr<StdioKind> ParseStreamId(absl::string_view id);

// The stream named by a stdio URI of the Task API, "<address>?streaming_id=<id>"; an
// empty URI gives an empty id. INVALID_ARGUMENT for every other form (fifos,
// files, binaries: those live on the host), and for an id of another kind.
absl::StatusOr<std::string> StreamIdOfUri(absl::string_view uri, StdioKind kind);

}  // namespace magnetar::streaming
