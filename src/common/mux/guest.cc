#include <nghttp2/nghttp2.h>

#include <array>
#include <map>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "magnetar/mux.h"
#include "magnetar/ports.h"
#include "src/common/mux/session.h"

namespace magnetar::mux {
namespace {

class GuestSession : public Session {
 public:
  GuestSession(UniqueFd channel, Guest::Accept accept, const Limits& limits)
      : Session(std::move(channel), limits), accept_(std::move(accept)) {}

 protected:
  nghttp2_session* NewSession(const nghttp2_session_callbacks* callbacks,
                              const nghttp2_option* option) override {
    nghttp2_session* session = nullptr;
    return nghttp2_session_server_new2(&session, callbacks, this, option) == 0 ? session : nullptr;
  }

  void OnBeginHeaders(int32_t id) override { requests_[id] = {}; }

  void OnHeader(int32_t id, std::string_view name, std::string_view value) override {
    const auto it = requests_.find(id);
    if (it == requests_.end()) return;
    if (name == ":method") it->second.connect = value == "CONNECT";
    if (name == ":authority") {
      absl::string_view authority(value.data(), value.size());
      it->second.has_port = absl::ConsumePrefix(&authority, "guest:") &&
                            absl::SimpleAtoi(authority, &it->second.port);
    }
  }

  void OnHeaders(int32_t id) override {
    const auto node = requests_.extract(id);
    if (node.empty()) return;
    const Request& request = node.mapped();
    if (!request.connect || !request.has_port || !Open(id, request.port)) {
      Reset(id, NGHTTP2_CONNECT_ERROR);
    }
  }

  void OnStreamClosed(int32_t id, uint32_t) override { requests_.erase(id); }

 private:
  struct Request {
    bool connect = false;
    bool has_port = false;
    uint32_t port = 0;
  };

  bool Open(int32_t id, uint32_t port) {
    if (!HasRoom(port)) return false;
    auto pair = MakePair();
    if (!pair.ok()) return false;
    if (!accept_(port, std::move(pair->second)).ok()) return false;
    AddPump(id, std::move(pair->first))->may_widen = port == kForwardPort;
    constexpr std::string_view kName = ":status";
    constexpr std::string_view kValue = "200";
    const nghttp2_nv status = {reinterpret_cast<uint8_t*>(const_cast<char*>(kName.data())),
                               reinterpret_cast<uint8_t*>(const_cast<char*>(kValue.data())),
                               kName.size(), kValue.size(), NGHTTP2_NV_FLAG_NONE};
    const nghttp2_data_provider data = PumpData();
    return nghttp2_submit_response(session_, id, &status, 1, &data) == 0;
  }

  const Guest::Accept accept_;
  std::map<int32_t, Request> requests_;
};

class GuestImpl : public Guest {
 public:
  explicit GuestImpl(std::shared_ptr<GuestSession> session) : session_(std::move(session)) {}
  ~GuestImpl() override { session_->RequestClose(); }

  Co<absl::Status> Run() override { return Session::Run(session_); }

 private:
  const std::shared_ptr<GuestSession> session_;
};

}  // namespace

std::shared_ptr<Guest> Guest::Create(UniqueFd channel, Accept accept, Limits limits) {
  return std::make_shared<GuestImpl>(
      std::make_shared<GuestSession>(std::move(channel), std::move(accept), limits));
}

}  // namespace magnetar::mux
