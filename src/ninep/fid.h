#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "magnetar/unique_fd.h"

namespace magnetar::ninep {

// A file that is open for reading or writing, or a directory.
struct OpenFile {
  explicit OpenFile(UniqueFd opened) : fd(std::move(opened)) {}
  const UniqueFd fd;
  std::mutex reading;  // a directory: its position and what is read from there
};

// Bytes of extended attributes that a client may have this side hold at a time. Thread-safe.
class XattrBudget {
 public:
  explicit XattrBudget(size_t bytes) : left_(bytes) {}

  // A part of it, which goes back with its owner.
  class Share {
   public:
    Share() = default;
    Share(Share&& other) noexcept
        : budget_(std::exchange(other.budget_, nullptr)), bytes_(other.bytes_) {}
    Share& operator=(Share&& other) noexcept {
      std::swap(budget_, other.budget_);
      std::swap(bytes_, other.bytes_);
      return *this;
    }
    ~Share() {
      if (budget_ != nullptr) budget_->left_ += bytes_;
    }

   private:
    friend class XattrBudget;
    Share(XattrBudget* budget, size_t bytes) : budget_(budget), bytes_(bytes) {}

    XattrBudget* budget_ = nullptr;
    size_t bytes_ = 0;
  };

  // False if there is not so much left.
  bool Take(size_t bytes, Share& share);

 private:
  std::atomic<size_t> left_;
};

// An extended attribute, or the list of their names: read as it was when the fid was made, or
// collected and set when the fid goes.
struct Xattr {
  std::string name;
  std::string value;
  bool writing = false;
  size_t size = 0;  // announced
  int flags = 0;
  XattrBudget::Share share;  // of name and value
};

// What a client's number stands for. Requests for one fid may run at the same time.
class Fid {
 public:
  using Node = std::shared_ptr<const UniqueFd>;  // O_PATH, or opened

  Fid(uint32_t uid, Node node) : uid_(uid), node_(std::move(node)) {}

  // Who attached.
  uint32_t uid() const { return uid_; }

  Node node() const {
    const std::lock_guard lock(mutex_);
    return node_;
  }
  std::shared_ptr<OpenFile> file() const {
    const std::lock_guard lock(mutex_);
    return file_;
  }
  // False if it was open already.
  bool Open(std::shared_ptr<OpenFile> file) {
    const std::lock_guard lock(mutex_);
    if (file_ != nullptr || xattr_ != nullptr) return false;
    file_ = std::move(file);
    return true;
  }
  // The same for a directory's fid that becomes that of a new file in it.
  bool Become(Node node, std::shared_ptr<OpenFile> file) {
    const std::lock_guard lock(mutex_);
    if (file_ != nullptr || xattr_ != nullptr) return false;
    node_ = std::move(node);
    file_ = std::move(file);
    return true;
  }
  bool SetXattr(Xattr xattr) {
    const std::lock_guard lock(mutex_);
    if (file_ != nullptr || xattr_ != nullptr) return false;
    xattr_ = std::make_unique<Xattr>(std::move(xattr));
    return true;
  }
  // Calls f(Xattr&) with nobody else in it, unless there is none.
  template <typename F>
  bool WithXattr(F f) {
    const std::lock_guard lock(mutex_);
    if (xattr_ == nullptr) return false;
    f(*xattr_);
    return true;
  }

 private:
  const uint32_t uid_;
  mutable std::mutex mutex_;
  Node node_;
  std::shared_ptr<OpenFile> file_;
  std::unique_ptr<Xattr> xattr_;  // few fids have one
};

// All of a client's. Thread-safe.
class FidTable {
 public:
  explicit FidTable(size_t limit) : limit_(limit) {}

  std::shared_ptr<Fid> Find(uint32_t number) const {
    const std::lock_guard lock(mutex_);
    const auto it = fids_.find(number);
    return it == fids_.end() ? nullptr : it->second;
  }
  // 0, EBADF if the number is taken (unless by `in_place_of`), or EMFILE.
  int Add(uint32_t number, std::shared_ptr<Fid> fid, const Fid* in_place_of = nullptr);
  // What it was; nullptr: nothing.
  std::shared_ptr<Fid> Remove(uint32_t number);
  void Clear();

 private:
  const size_t limit_;
  mutable std::mutex mutex_;
  std::map<uint32_t, std::shared_ptr<Fid>> fids_;
};

}  // namespace magnetar::ninep
