// A peer's bytes on the port where the guest serves stdio: ttrpc, the frames of containerd's
// streaming, and the streams of a process behind them.
#include <fcntl.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "guest-agent/streaming/stream_registry.h"
#include "magnetar/streaming/frames.h"
#include "magnetar/streaming/opening.h"
#include "magnetar/streaming/stream_id.h"
#include "src/common/ttrpc/testing.h"
#include "tests/fuzz/peer.h"
#include "wire/ttrpc.pb.h"

namespace magnetar::guest {
namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

void CheckFrames(const std::string& message) {
  if (const auto data = streaming::ParseData(message); data.ok()) {
    Require(*streaming::ParseData(streaming::DataFrame(*data)) == *data);
  }
  if (const auto update = streaming::ParseWindowUpdate(message); update.ok()) Require(*update >= 0);
  if (const auto id = streaming::ParseStreamInit(message); id.ok()) {
    Require(*streaming::ParseStreamInit(streaming::StreamInitFrame(*id)) == *id);
    // What becomes a name may stand in a log and in a path.
    if (streaming::ParseStreamId(*id).ok())
      Require(id->find_first_of(std::string("/\n\0", 3)) == id->npos);
  }
}

// Known from the same bytes, in whatever pieces they come.
void CheckOpening(const std::string& bytes) {
  streaming::Opening whole;
  streaming::Opening pieces;
  const std::string begin = bytes.substr(0, streaming::Opening::kMaxBytes);
  const bool known = whole.Add(begin);
  Require(known || begin.size() < streaming::Opening::kMaxBytes);
  bool known_by_pieces = false;
  for (size_t at = 0; at < begin.size() && !known_by_pieces; at += 7) {
    known_by_pieces = pieces.Add(std::string_view(begin).substr(at, 7));
  }
  Require(known == known_by_pieces && whole.stream_id() == pieces.stream_id());
}

// An attachment as containerd begins it.
std::string Attach(uint32_t stream_id, const std::string& id) {
  ttrpc::Request request;
  request.set_service(streaming::kStreamingService);
  request.set_method(streaming::kStreamMethod);
  return testing::WireFrame(stream_id, ttrpc::FrameType::kRequest, ttrpc::kRemoteOpen,
                            request.SerializeAsString()) +
         testing::WireFrame(stream_id, ttrpc::FrameType::kData, 0, streaming::StreamInitFrame(id));
}

void Run(uint8_t how, const std::string& bytes) {
  static asio::io_context io(1);
  StreamRegistry registry(io.get_executor());
  const auto services = std::make_shared<ttrpc::Services>();
  services->AddStream(
      streaming::kStreamingService, streaming::kStreamMethod,
      [&registry](const ttrpc::CallContext&, std::shared_ptr<ttrpc::Stream> stream) {
        return registry.Serve(std::move(stream));
      });
  int out[2] = {-1, -1};
  int in[2] = {-1, -1};
  Require(::pipe2(out, O_CLOEXEC | O_NONBLOCK) == 0 && ::pipe2(in, O_CLOEXEC | O_NONBLOCK) == 0);
  UniqueFd writer(out[1]);
  const UniqueFd reader(in[0]);
  Require(::write(writer.get(), "output", 6) == 6);
  if ((how & 1) != 0) writer.reset();
  (*registry.ClaimOutput("c-stdout"))->SetSource(UniqueFd(out[0]));
  (*registry.ClaimInput("c-stdin"))->SetSink(UniqueFd(in[1]), false);

  auto [near, peer] = fuzz::SocketPair();
  std::optional<absl::Status> served;
  asio::co_spawn(
      io, ttrpc::ServeConnection(std::move(near), services),
      [&served](const std::exception_ptr&, absl::Status status) { served = std::move(status); });
  std::string input;
  if ((how & 2) != 0) input += Attach(1, "c-stdout");
  if ((how & 4) != 0) input += Attach(3, "c-stdin");
  input += bytes;
  fuzz::Feed(io, peer, reinterpret_cast<const uint8_t*>(input.data()), input.size());
  peer.reset();
  // Small frames are held back for a moment.
  while (!served.has_value()) {
    io.restart();
    Require(io.run_one_for(std::chrono::seconds(20)) > 0);
  }
  registry.Forget("c-stdout");
  registry.Forget("c-stdin");
  fuzz::Settle(io);
  Require(registry.size() <= StreamRegistry::kMaxLeftBehind);
}

}  // namespace
}  // namespace magnetar::guest

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  magnetar::guest::CheckFrames(bytes);
  magnetar::guest::CheckOpening(bytes);
  magnetar::guest::Run(data[0], bytes);
  return 0;
}
