#include <nghttp2/nghttp2.h>

#include <array>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/event.h"
#include "magnetar/mux.h"
#include "magnetar/ports.h"
#include "src/common/mux/session.h"

namespace magnetar::mux {
namespace {

nghttp2_nv Header(std::string_view name, std::string_view value) {
  // nghttp2 copies both.
  return {reinterpret_cast<uint8_t*>(const_cast<char*>(name.data())),
          reinterpret_cast<uint8_t*>(const_cast<char*>(value.data())), name.size(), value.size(),
          NGHTTP2_NV_FLAG_NONE};
}

class HostSession : public Session {
 public:
  using Session::Session;

  static Co<absl::Status> Ready(std::shared_ptr<HostSession> self) {
    const asio::any_io_executor executor = co_await asio::this_coro::executor;
    while (!self->ready_) {
      if (self->ended_.has_value()) co_return self->Gone();
      if (!self->changed_.has_value()) self->changed_.emplace(executor);
      auto changed = self->changed_->Wait();
      co_await std::move(changed);
      const auto cancellation = co_await asio::this_coro::cancellation_state;
      if (Cancelled(cancellation)) co_return absl::CancelledError("waiting for the guest");
    }
    co_return absl::OkStatus();
  }

  static Co<absl::StatusOr<UniqueFd>> Connect(std::shared_ptr<HostSession> self, uint32_t port) {
    auto ready = Ready(self);
    const absl::Status status = co_await std::move(ready);
    if (!status.ok()) co_return status;
    if (self->ended_.has_value()) co_return self->Gone();
    absl::StatusOr<std::shared_ptr<Request>> submitted = self->Submit(port);
    if (!submitted.ok()) co_return submitted.status();
    const std::shared_ptr<Request> request = *std::move(submitted);
    struct Guard {
      HostSession& session;
      Request& request;
      ~Guard() { session.Forget(request); }
    } guard{*self, *request};
    const auto deadline = Event::Clock::now() + std::chrono::duration_cast<Event::Clock::duration>(
                                                    self->limits_.connect_timeout);
    while (!request->answer.has_value()) {
      if (Event::Clock::now() >= deadline) {
        co_return absl::DeadlineExceededError(
            absl::StrCat("the guest does not answer for port ", port));
      }
      auto answered = request->answered.WaitUntil(deadline);
      co_await std::move(answered);
      const auto cancellation = co_await asio::this_coro::cancellation_state;
      if (Cancelled(cancellation)) co_return absl::CancelledError("connecting to the guest");
    }
    if (!request->answer->ok()) co_return *request->answer;
    co_return std::move(request->far);
  }

 protected:
  nghttp2_session* NewSession(const nghttp2_session_callbacks* callbacks,
                              const nghttp2_option* option) override {
    nghttp2_session* session = nullptr;
    return nghttp2_session_client_new2(&session, callbacks, this, option) == 0 ? session : nullptr;
  }

  bool MaySend() const override { return ready_; }

  void OnSettings() override {
    ready_ = true;
    if (changed_.has_value()) changed_->NotifyAll();
  }

  void OnHeader(int32_t id, std::string_view name, std::string_view value) override {
    const auto it = requests_.find(id);
    if (it != requests_.end() && name == ":status" && value == "200") it->second->accepted = true;
  }

  void OnHeaders(int32_t id) override {
    const auto it = requests_.find(id);
    if (it == requests_.end()) return;
    if (it->second->accepted) {
      it->second->Answer(absl::OkStatus());
    } else {
      Refused(*it->second);
      Reset(id, NGHTTP2_CANCEL);
    }
  }

  void OnStreamClosed(int32_t id, uint32_t) override {
    const auto it = requests_.find(id);
    if (it != requests_.end()) Refused(*it->second);
  }

  void OnEnd(const absl::Status&) override {
    for (const auto& [id, request] : requests_) request->Answer(Gone());
    if (changed_.has_value()) changed_->NotifyAll();
  }

 private:
  struct Request {
    explicit Request(const asio::any_io_executor& executor) : answered(executor) {}
    void Answer(absl::Status status) {
      if (answer.has_value()) return;
      answer = std::move(status);
      answered.NotifyAll();
    }
    int32_t id = 0;
    uint32_t port = 0;
    UniqueFd far;
    bool accepted = false;
    std::optional<absl::Status> answer;
    Event answered;
  };

  absl::Status Gone() const {
    return absl::UnavailableError(absl::StrCat("the guest is not there: ", ended_->message()));
  }

  static void Refused(Request& request) {
    request.Answer(absl::UnavailableError(absl::StrCat("nothing listens on port ", request.port)));
  }

  absl::StatusOr<std::shared_ptr<Request>> Submit(uint32_t port) {
    if (!HasRoom(port)) {
      return absl::ResourceExhaustedError("too many streams to the guest");
    }
    auto pair = MakePair();
    if (!pair.ok()) return pair.status();
    const std::string authority = absl::StrCat("guest:", port);
    const std::array<nghttp2_nv, 2> headers = {Header(":method", "CONNECT"),
                                               Header(":authority", authority)};
    const nghttp2_data_provider data = PumpData();
    const int32_t id =
        nghttp2_submit_request(session_, nullptr, headers.data(), headers.size(), &data, nullptr);
    if (id < 0) {
      return absl::UnavailableError(absl::StrCat("HTTP/2 request: ", nghttp2_strerror(id)));
    }
    auto request = std::make_shared<Request>(*executor_);
    request->id = id;
    request->port = port;
    request->far = std::move(pair->second);
    requests_.emplace(id, request);
    AddPump(id, std::move(pair->first))->may_widen = port == kOutputPort;
    Flush();
    return request;
  }

  void Forget(const Request& request) {
    requests_.erase(request.id);
    if (request.answer.has_value() || ended_.has_value()) return;
    Reset(request.id, NGHTTP2_CANCEL);
    Flush();
  }

  bool ready_ = false;
  std::optional<Event> changed_;
  std::map<int32_t, std::shared_ptr<Request>> requests_;
};

class HostImpl : public Host {
 public:
  explicit HostImpl(std::shared_ptr<HostSession> session) : session_(std::move(session)) {}
  ~HostImpl() override { session_->RequestClose(); }

  Co<absl::Status> Run() override { return Session::Run(session_); }
  Co<absl::Status> Ready() override { return HostSession::Ready(session_); }
  Co<absl::StatusOr<UniqueFd>> Connect(uint32_t port) override {
    return HostSession::Connect(session_, port);
  }
  void Close() override { session_->RequestClose(); }

 private:
  const std::shared_ptr<HostSession> session_;
};

}  // namespace

std::shared_ptr<Host> Host::Create(UniqueFd channel, Limits limits) {
  return std::make_shared<HostImpl>(std::make_shared<HostSession>(std::move(channel), limits));
}

}  // namespace magnetar::mux
