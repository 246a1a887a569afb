#include "src/daemon/controller/rpc_metrics.h"

#include <grpcpp/support/interceptor.h>
#include <grpcpp/support/server_interceptor.h>

#include <memory>
#include <string_view>
#include <utility>
#include <vector>

namespace magnetar::daemon {
namespace {

namespace hooks = grpc::experimental;

constexpr std::string_view kService = "/containerd.services.sandbox.v1.Controller/";
constexpr std::string_view kMethods[] = {"Create", "Start",    "Platform", "Stop",  "Wait",
                                         "Status", "Shutdown", "Metrics",  "Update"};

// Whatever else a caller makes up is one of a kind.
std::string_view MethodOf(std::string_view path) {
  if (path.substr(0, kService.size()) != kService) return "other";
  for (const std::string_view method : kMethods) {
    if (path.substr(kService.size()) == method) return method;
  }
  return "other";
}

// One call, also of a method that the service does not have.
class Counted final : public hooks::Interceptor {
 public:
  Counted(DaemonMetrics* metrics, std::string_view method) : metrics_(metrics), method_(method) {}

  void Intercept(hooks::InterceptorBatchMethods* call) override {
    if (call->QueryInterceptionHookPoint(hooks::InterceptionHookPoints::PRE_SEND_STATUS)) {
      const auto code = static_cast<absl::StatusCode>(call->GetSendStatus().error_code());
      metrics_->RpcEnded(method_, code, since_);
    }
    call->Proceed();
  }

 private:
  DaemonMetrics* const metrics_;
  const std::string_view method_;  // one of the above
  const DaemonMetrics::Clock::time_point since_ = DaemonMetrics::Clock::now();
};

class Factory final : public hooks::ServerInterceptorFactoryInterface {
 public:
  explicit Factory(DaemonMetrics* metrics) : metrics_(metrics) {}
  hooks::Interceptor* CreateServerInterceptor(hooks::ServerRpcInfo* info) override {
    return new Counted(metrics_, MethodOf(info->method()));
  }

 private:
  DaemonMetrics* const metrics_;
};

}  // namespace

void CountRpcs(DaemonMetrics* metrics, grpc::ServerBuilder& builder) {
  std::vector<std::unique_ptr<hooks::ServerInterceptorFactoryInterface>> factories;
  factories.push_back(std::make_unique<Factory>(metrics));
  builder.experimental().SetInterceptorCreators(std::move(factories));
}

}  // namespace magnetar::daemon
