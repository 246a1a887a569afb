#pragma once

#include <cstddef>
#include <cstdint>

// stdout and stderr of the guest's processes as raw bytes, for a supervisor that speaks
// containerd's streaming protocol in the guest's place: one connection to kOutputPort per stream.
// The host speaks first:
//
//   host  -> guest   1 byte: length of the stream's id, then the id
//   guest -> host    1 byte: kOutputClaimed, once a process has the stream
//   guest -> host    what the process writes, to its end
//
// After the end the guest closes its sending side only. The host closes the connection when the
// reader has read all of it, or wants no more: until then the guest waits before it tells of the
// process's end. A guest that closes altogether has forgotten the stream; it does so at once if it
// refuses the id. A host that closes before kOutputClaimed has withdrawn.
namespace magnetar {

inline constexpr size_t kMaxOutputIdBytes = 255;
inline constexpr uint8_t kOutputClaimed = 0;

}  // namespace magnetar
