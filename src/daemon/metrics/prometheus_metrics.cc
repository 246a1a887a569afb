#include "src/daemon/metrics/prometheus_metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <iterator>
#include <sstream>
#include <utility>
#include <vector>

#include "src/daemon/sandbox/record.h"

namespace magnetar::daemon {
namespace {

using prometheus::Counter;
using prometheus::Family;
using prometheus::Histogram;
using prometheus::MetricFamily;

// From an answer out of memory to the longest start there may be.
const Histogram::BucketBoundaries& Seconds() {
  static const Histogram::BucketBoundaries kBounds = {0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                                                      0.5,   1,     2.5,  5,     10,   30,  60};
  return kBounds;
}

double SecondsSince(DaemonMetrics::Clock::time_point since) {
  return std::chrono::duration<double>(DaemonMetrics::Clock::now() - since).count();
}

struct PhaseName {
  StartPhase phase;
  const char* name;
};

constexpr PhaseName kPhases[] = {{StartPhase::kHost, "host"},
                                 {StartPhase::kNetwork, "network"},
                                 {StartPhase::kLaunch, "launch"},
                                 {StartPhase::kReady, "ready"},
                                 {StartPhase::kSetup, "setup"}};

struct EndName {
  VmEnd end;
  const char* name;
};

constexpr EndName kEnds[] = {{VmEnd::kAsked, "asked"},
                             {VmEnd::kGuest, "guest"},
                             {VmEnd::kDied, "died"},
                             {VmEnd::kHung, "hung"},
                             {VmEnd::kUnkillable, "unkillable"}};

class Implementation final : public PrometheusMetrics {
 public:
  explicit Implementation(const DaemonInfo& info) {
    // Known from the start, so that the first of a kind is an increase from zero.
    Code(starts_, absl::StatusCode::kOk);
    Code(prepares_, absl::StatusCode::kOk);
    OfCode(start_seconds_, absl::StatusCode::kOk);
    for (const PhaseName& p : kPhases) OfPhase(p, absl::StatusCode::kOk);
    for (const EndName& e : kEnds) vm_ends_.Add({{"reason", e.name}});
    for (const Step step : {Step::kDirectory, Step::kCgroup, Step::kNetwork, Step::kShared,
                            Step::kSupervisor, Step::kGuest}) {
      teardown_failures_.Add({{"step", StepName(step)}});
    }
    for (const char* step : {"container", "record"}) teardown_failures_.Add({{"step", step}});
    prometheus::BuildGauge()
        .Name("magnetar_build_info")
        .Help("1, with the daemon's version")
        .Register(registry_)
        .Add({{"version", info.version}}, 1.0);
    prometheus::BuildGauge()
        .Name("magnetar_vmm_info")
        .Help("1, with what new pods run on")
        .Register(registry_)
        .Add({{"vmm", info.vmm}, {"acceleration", info.acceleration}}, 1.0);
  }

  void StartEnded(const absl::Status& status, Clock::time_point since) override {
    Code(starts_, status.code()).Increment();
    OfCode(start_seconds_, status.code()).Observe(SecondsSince(since));
  }
  void StartPhaseEnded(StartPhase phase, const absl::Status& status,
                       Clock::time_point since) override {
    for (const PhaseName& p : kPhases) {
      if (p.phase != phase) continue;
      OfPhase(p, status.code()).Observe(SecondsSince(since));
    }
  }
  void PrepareEnded(const absl::Status& status, Clock::time_point since) override {
    Code(prepares_, status.code()).Increment();
    if (status.ok()) prepare_seconds_.Observe(SecondsSince(since));
  }
  void TeardownEnded(Clock::time_point since) override {
    teardown_seconds_.Observe(SecondsSince(since));
  }
  void TeardownFailed(std::string_view what) override {
    teardown_failures_.Add({{"step", std::string(what)}}).Increment();
  }
  void HeartbeatMissed() override { heartbeats_missed_.Increment(); }
  void VmEnded(VmEnd end) override {
    for (const EndName& e : kEnds) {
      if (e.end == end) vm_ends_.Add({{"reason", e.name}}).Increment();
    }
  }
  void RpcEnded(std::string_view method, absl::StatusCode code, Clock::time_point since) override {
    const std::string name(method);
    rpcs_.Add({{"method", name}, {"code", absl::StatusCodeToString(code)}}).Increment();
    // Wait lasts as long as its sandbox does.
    if (name != "Wait") {
      rpc_seconds_.Add({{"method", name}}, Seconds()).Observe(SecondsSince(since));
    }
  }

  void Add(std::shared_ptr<const prometheus::Collectable> source) override {
    sources_.push_back(std::move(source));
  }
  std::string Text() const override {
    std::vector<MetricFamily> all = registry_.Collect();
    for (const auto& source : sources_) {
      std::vector<MetricFamily> more = source->Collect();
      std::move(more.begin(), more.end(), std::back_inserter(all));
    }
    std::ostringstream out;
    prometheus::TextSerializer().Serialize(out, all);
    return std::move(out).str();
  }

 private:
  static Counter& Code(Family<Counter>& family, absl::StatusCode code) {
    return family.Add({{"code", absl::StatusCodeToString(code)}});
  }
  static Histogram& OfCode(Family<Histogram>& family, absl::StatusCode code) {
    return family.Add({{"code", absl::StatusCodeToString(code)}}, Seconds());
  }
  Histogram& OfPhase(const PhaseName& phase, absl::StatusCode code) {
    return phases_.Add({{"phase", phase.name}, {"code", absl::StatusCodeToString(code)}},
                       Seconds());
  }
  Family<Counter>& Counters(const char* name, const char* help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry_);
  }
  Family<Histogram>& Histograms(const char* name, const char* help) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(registry_);
  }

  prometheus::Registry registry_;
  std::vector<std::shared_ptr<const prometheus::Collectable>> sources_;

  Family<Counter>& starts_ =
      Counters("magnetar_sandbox_starts_total", "Starts of sandboxes that have ended, by outcome");
  Family<Histogram>& start_seconds_ = Histograms(
      "magnetar_sandbox_start_duration_seconds",
      "Starts, by outcome: from their begin to a guest that takes containers, or to what "
      "made them fail");
  Family<Histogram>& phases_ =
      Histograms("magnetar_sandbox_start_phase_duration_seconds",
                 "Phases of starts, by outcome; network is a part of host");
  Family<Counter>& prepares_ =
      Counters("magnetar_container_prepares_total", "Containers that guests asked for, by outcome");
  Histogram& prepare_seconds_ =
      Histograms("magnetar_container_prepare_duration_seconds",
                 "Preparing a container on the host: asking containerd, mounting, attaching")
          .Add({}, Seconds());
  Histogram& teardown_seconds_ = Histograms("magnetar_sandbox_teardown_duration_seconds",
                                            "Taking down a VM and what was made for it on the host")
                                     .Add({}, Seconds());
  Family<Counter>& teardown_failures_ =
      Counters("magnetar_teardown_failures_total",
               "Steps of taking things down that failed, each time they are tried");
  Counter& heartbeats_missed_ =
      Counters("magnetar_heartbeats_missed_total", "Heartbeats that guests left unanswered")
          .Add({});
  Family<Counter>& vm_ends_ =
      Counters("magnetar_vm_exits_total", "VMs that have ended, by the reason");
  Family<Counter>& rpcs_ = Counters("magnetar_rpcs_total", "Calls of containerd that have ended");
  Family<Histogram>& rpc_seconds_ =
      Histograms("magnetar_rpc_duration_seconds",
                 "Calls of containerd; without Wait, which lasts as long as its sandbox");
};

}  // namespace

std::unique_ptr<PrometheusMetrics> PrometheusMetrics::Create(const DaemonInfo& info) {
  return std::make_unique<Implementation>(info);
}

}  // namespace magnetar::daemon
