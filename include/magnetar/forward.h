#pragma once

#include <cstdint>

// Port forwarding into the guest, one connection to kForwardPort per forwarded
// connection. The host speaks first:
//
//   host  -> guest   2 bytes: TCP port, big-endian
//   guest -> host    1 byte: kForwardConnected or kForwardRefused
//
// The guest dials 127.0.0.1, then ::1, in the pod's network namespace. After
// kForwardConnected both sides are raw bytes, and each half closes by itself
// (shutdown(2) on either side travels on). After kForwardRefused the guest closes.
// A port of 0 is refused. A connection of the multiplexer's gets the dialled socket in the agent's
// place (mux.h), so that no byte is copied twice in the guest.
namespace magnetar {

inline constexpr int kForwardPortBytes = 2;
inline constexpr uint8_t kForwardConnected = 0;
inline constexpr uint8_t kForwardRefused = 1;

}  // namespace magnetar
