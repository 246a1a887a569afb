#include "src/daemon/cgroup/limits.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace magnetar::daemon {
namespace {

constexpr uint64_t kDefaultPeriodUs = 100000;
constexpr uint64_t kDefaultShares = 1024;

uint64_t PeriodOf(const SandboxLimits& limits) {
  return limits.cpu_period_us != 0 ? limits.cpu_period_us : kDefaultPeriodUs;
}

std::vector<LimitWrite> V2Writes(const SandboxLimits& limits, bool reset) {
  std::vector<LimitWrite> out;
  const auto number_or_max = [](uint64_t value) {
    return value != 0 ? absl::StrCat(value) : std::string("max");
  };
  if (limits.memory_bytes != 0 || reset) {
    out.push_back({"memory", "memory.max", number_or_max(limits.memory_bytes)});
  }
  if (limits.cpu_shares != 0 || reset) {
    const uint64_t shares = limits.cpu_shares != 0 ? limits.cpu_shares : kDefaultShares;
    // v2's own default is 100, not the 39 that 1024 shares convert to.
    const uint64_t weight = limits.cpu_shares != 0 ? WeightOfShares(shares) : 100;
    out.push_back({"cpu", "cpu.weight", absl::StrCat(weight)});
  }
  if (limits.cpu_quota_us > 0 || reset) {
    const std::string quota =
        limits.cpu_quota_us > 0 ? absl::StrCat(limits.cpu_quota_us) : std::string("max");
    out.push_back({"cpu", "cpu.max", absl::StrCat(quota, " ", PeriodOf(limits))});
  }
  if (limits.pids != 0 || reset) {
    out.push_back({"pids", "pids.max", number_or_max(limits.pids)});
  }
  return out;
}

std::vector<LimitWrite> V1Writes(const Hierarchy& hierarchy, const SandboxLimits& limits,
                                 bool reset) {
  std::vector<LimitWrite> out;
  if (hierarchy.Has("memory") && (limits.memory_bytes != 0 || reset)) {
    out.push_back({"memory", "memory.limit_in_bytes",
                   limits.memory_bytes != 0 ? absl::StrCat(limits.memory_bytes) : "-1"});
  }
  if (hierarchy.Has("cpu")) {
    if (limits.cpu_shares != 0 || reset) {
      const uint64_t shares = limits.cpu_shares != 0 ? limits.cpu_shares : kDefaultShares;
      out.push_back({"cpu", "cpu.shares", absl::StrCat(shares)});
    }
    if (limits.cpu_quota_us > 0 || reset) {
      const std::string quota =
          limits.cpu_quota_us > 0 ? absl::StrCat(limits.cpu_quota_us) : std::string("-1");
      // Without a quota every period is valid, so the three writes cannot trip over
      // each other.
      if (reset) out.push_back({"cpu", "cpu.cfs_quota_us", "-1"});
      out.push_back({"cpu", "cpu.cfs_period_us", absl::StrCat(PeriodOf(limits))});
      out.push_back({"cpu", "cpu.cfs_quota_us", quota});
    }
  }
  if (hierarchy.Has("pids") && (limits.pids != 0 || reset)) {
    out.push_back(
        {"pids", "pids.max", limits.pids != 0 ? absl::StrCat(limits.pids) : std::string("max")});
  }
  return out;
}

}  // namespace

uint64_t WeightOfShares(uint64_t shares) {
  shares = std::clamp<uint64_t>(shares, 2, 262144);
  return 1 + (shares - 2) * 9999 / 262142;
}

std::vector<LimitWrite> LimitWrites(const Hierarchy& hierarchy, const SandboxLimits& limits,
                                    bool reset) {
  if (!hierarchy.v2) return V1Writes(hierarchy, limits, reset);
  std::vector<LimitWrite> out = V2Writes(limits, reset);
  std::erase_if(out, [&](const LimitWrite& write) { return !hierarchy.Has(write.controller); });
  return out;
}

}  // namespace magnetar::daemon
