#include "src/ninep/fid.h"

#include <cerrno>

namespace magnetar::ninep {

bool XattrBudget::Take(size_t bytes, Share& share) {
  size_t left = left_;
  do {
    if (left < bytes) return false;
  } while (!left_.compare_exchange_weak(left, left - bytes));
  share = Share(this, bytes);
  return true;
}

int FidTable::Add(uint32_t number, std::shared_ptr<Fid> fid, const Fid* in_place_of) {
  const std::lock_guard lock(mutex_);
  const auto it = fids_.find(number);
  if (it != fids_.end()) {
    if (it->second.get() != in_place_of) return EBADF;
    it->second = std::move(fid);
    return 0;
  }
  if (in_place_of != nullptr) return EBADF;  // gone meanwhile
  if (fids_.size() >= limit_) return EMFILE;
  fids_.emplace(number, std::move(fid));
  return 0;
}

std::shared_ptr<Fid> FidTable::Remove(uint32_t number) {
  const std::lock_guard lock(mutex_);
  const auto node = fids_.extract(number);
  return node.empty() ? nullptr : node.mapped();
}

void FidTable::Clear() {
  std::map<uint32_t, std::shared_ptr<Fid>> old;
  const std::lock_guard lock(mutex_);
  old.swap(fids_);
}

}  // namespace magnetar::ninep
