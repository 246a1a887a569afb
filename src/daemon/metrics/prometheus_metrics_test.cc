#include "src/daemon/metrics/prometheus_metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/metric_family.h>

#include <thread>
#include <vector>

#include "absl/strings/str_split.h"
#include "src/daemon/metrics/process_collector.h"

namespace magnetar::daemon {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

DaemonMetrics::Clock::time_point Ago(std::chrono::milliseconds time) {
  return DaemonMetrics::Clock::now() - time;
}

class PrometheusMetricsTest : public testing::Test {
 protected:
  std::unique_ptr<PrometheusMetrics> metrics_ = PrometheusMetrics::Create({"1.2.3", "qemu", "tcg"});
};

TEST_F(PrometheusMetricsTest, BeginsWithZeros) {
  const std::string text = metrics_->Text();
  for (const char* line :
       {"magnetar_build_info{version=\"1.2.3\"} 1\n",
        "magnetar_sandbox_starts_total{code=\"OK\"} 0\n",
        "# TYPE magnetar_sandbox_starts_total counter\n",
        "# TYPE magnetar_sandbox_start_duration_seconds histogram\n",
        "magnetar_sandbox_start_phase_duration_seconds_count{code=\"OK\",phase=\"ready\"} 0\n",
        "magnetar_vm_exits_total{reason=\"unkillable\"} 0\n",
        "magnetar_teardown_failures_total{step=\"cgroup\"} 0\n",
        "magnetar_teardown_failures_total{step=\"container\"} 0\n",
        "magnetar_heartbeats_missed_total 0\n"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
  EXPECT_THAT(text, ContainsRegex("magnetar_vmm_info\\{[^}]*vmm=\"qemu\"[^}]*\\} 1\n"));
}

TEST_F(PrometheusMetricsTest, Counts) {
  using std::chrono::milliseconds;
  metrics_->StartEnded(absl::OkStatus(), Ago(milliseconds(700)));
  metrics_->StartEnded(absl::DeadlineExceededError("late"), Ago(milliseconds(90000)));
  metrics_->StartPhaseEnded(StartPhase::kReady, absl::OkStatus(), Ago(milliseconds(300)));
  metrics_->StartPhaseEnded(StartPhase::kReady, absl::DeadlineExceededError("late"),
                            Ago(milliseconds(89000)));
  metrics_->PrepareEnded(absl::NotFoundError("no"), Ago(milliseconds(1)));
  metrics_->TeardownEnded(Ago(milliseconds(1)));
  metrics_->TeardownFailed("cgroup");
  metrics_->HeartbeatMissed();
  metrics_->VmEnded(VmEnd::kHung);
  metrics_->RpcEnded("Status", absl::StatusCode::kNotFound, Ago(milliseconds(2)));
  metrics_->RpcEnded("Wait", absl::StatusCode::kOk, Ago(milliseconds(1000000)));
  const std::string text = metrics_->Text();
  for (const char* line :
       {"magnetar_sandbox_starts_total{code=\"OK\"} 1\n",
        "magnetar_sandbox_starts_total{code=\"DEADLINE_EXCEEDED\"} 1\n",
        "magnetar_sandbox_start_duration_seconds_count{code=\"OK\"} 1\n",
        "magnetar_sandbox_start_duration_seconds_bucket{code=\"OK\",le=\"0.5\"} 0\n",
        "magnetar_sandbox_start_duration_seconds_bucket{code=\"OK\",le=\"1\"} 1\n",
        "magnetar_sandbox_start_duration_seconds_count{code=\"DEADLINE_EXCEEDED\"} 1\n",
        "magnetar_sandbox_start_phase_duration_seconds_bucket{code=\"OK\",phase=\"ready\","
        "le=\"0.5\"} 1\n",
        "magnetar_sandbox_start_phase_duration_seconds_count{code=\"DEADLINE_EXCEEDED\","
        "phase=\"ready\"} 1\n",
        "magnetar_container_prepares_total{code=\"NOT_FOUND\"} 1\n",
        "magnetar_container_prepare_duration_seconds_count 0\n",
        "magnetar_sandbox_teardown_duration_seconds_count 1\n",
        "magnetar_teardown_failures_total{step=\"cgroup\"} 1\n",
        "magnetar_heartbeats_missed_total 1\n", "magnetar_vm_exits_total{reason=\"hung\"} 1\n",
        "magnetar_rpc_duration_seconds_count{method=\"Status\"} 1\n"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
  EXPECT_THAT(text, ContainsRegex("magnetar_rpcs_total\\{[^}]*method=\"Wait\"[^}]*\\} 1\n"));
  EXPECT_THAT(text, Not(HasSubstr("magnetar_rpc_duration_seconds_count{method=\"Wait\"}")));
}

TEST_F(PrometheusMetricsTest, ManyThreadsCountTogether) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([this] {
      for (int n = 0; n < 500; ++n) {
        metrics_->RpcEnded("Status", absl::StatusCode::kOk, Ago(std::chrono::milliseconds(1)));
        if (n % 100 == 0) {
          EXPECT_FALSE(metrics_->Text().empty());
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(metrics_->Text(),
              HasSubstr("magnetar_rpc_duration_seconds_count{method=\"Status\"} 2000\n"));
}

// As Prometheus reads it: each family has its help and its type before its samples, once; names and
// units follow its rules.
TEST_F(PrometheusMetricsTest, KeepsToTheFormat) {
  metrics_->Add(std::make_shared<ProcessCollector>());
  std::string family;
  std::vector<std::string> seen;
  const std::string text = metrics_->Text();
  ASSERT_EQ(text.back(), '\n');
  for (const std::string& line :
       std::vector<std::string>(absl::StrSplit(text, '\n', absl::SkipEmpty()))) {
    const std::vector<std::string> words = absl::StrSplit(line, ' ');
    if (words[1] == "HELP") {
      family = words[2];
      EXPECT_GT(words.size(), 4U) << line;
      EXPECT_THAT(seen, Not(::testing::Contains(family)));
      seen.push_back(family);
    } else if (words[1] == "TYPE") {
      EXPECT_EQ(words[2], family);
      EXPECT_EQ(words[3] == "counter",
                family.size() > 6 && family.substr(family.size() - 6) == "_total")
          << line;
    } else {
      EXPECT_EQ(line.rfind(family, 0), 0U) << line;
      EXPECT_THAT(words.back(), ContainsRegex("^[0-9.e+-]+$")) << line;
    }
  }
  EXPECT_GT(seen.size(), 15U);
}

TEST_F(PrometheusMetricsTest, TellsOfItsProcess) {
  metrics_->Add(std::make_shared<ProcessCollector>());
  const std::string text = metrics_->Text();
  for (const char* name : {"process_cpu_seconds_total", "process_resident_memory_bytes",
                           "process_virtual_memory_bytes", "process_open_fds", "process_max_fds",
                           "process_threads", "process_start_time_seconds"}) {
    EXPECT_THAT(text, ContainsRegex(std::string("\n") + name + " [0-9]")) << name;
  }
}

TEST(ProcessCollector, LeavesOutWhatCannotBeRead) {
  EXPECT_EQ(ProcessCollector("/no/such/directory").Collect().size(), 1U);  // the limit
}

}  // namespace
}  // namespace magnetar::daemon
