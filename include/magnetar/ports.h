#pragma once

#include <cstdint>

namespace magnetar {

// Ports on which vmm-task listens; the host dials all of them.
inline constexpr uint32_t kTaskPort = 1024;       // containerd: Task v3 and Streaming v1
inline constexpr uint32_t kAgentPort = 1025;      // daemon: agent.proto Agent
inline constexpr uint32_t kForwardPort = 1026;    // supervisor: port-forward (see forward.h)
inline constexpr uint32_t kFileSharePort = 1027;  // supervisor: the shared directory, by 9p
inline constexpr uint32_t kHeartbeatPort = 1028;  // daemon: agent.proto Heartbeat
inline constexpr uint32_t kOutputPort = 1029;     // supervisor: stdout and stderr (see output.h)

// Name of the virtio-serial port that carries the multiplexed streams.
inline constexpr char kMuxPortName[] = "io.magnetar.mux";

// Version of agent.proto and supervisor.proto spoken by this build.
inline constexpr uint32_t kAgentProtocol = 1;
inline constexpr uint32_t kSupervisorProtocol = 1;

}  // namespace magnetar
