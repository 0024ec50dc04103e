// The pool's `lock` file: byte locks that say who lives, and who may create, sweep or register.
//
// All of them are open-file-description locks. They work across PID namespaces (robust mutexes and kill(pid,
// 0) do not), the kernel drops them when the last reference to the description goes, and asking costs 0.2 us.
//
// Nothing here keeps a file descriptor: os.closerange() and daemonisers close descriptors they do not know,
// and the number would then mean somebody else's file. Each use opens the file by path and checks that it is
// still the same inode.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace maru {

// An open descriptor, closed at the end of its scope.
class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  ~Descriptor();
  Descriptor(Descriptor&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  Descriptor& operator=(Descriptor&& other) noexcept;
  Descriptor(const Descriptor&) = delete;
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_;
};

class LockFile {
 public:
  // Remembers the inode behind `path`, creating the file (mode `mode`) when `create`. Raises PoolNotFound or
  // PoolMismatch.
  LockFile(std::string path, bool create, uint32_t mode);

  // True while the path still names the file we were made from (a destroyed pool's does not).
  bool is_current() const;

  // Try to take byte `byte` exclusively; the lock lasts as long as the returned descriptor. Empty when taken
  // by somebody else or when the file is gone.
  Descriptor try_lock(uint64_t byte) const;

  // As try_lock, again and again until `deadline_ns`.
  Descriptor lock(uint64_t byte, uint64_t deadline_ns) const;

  // Does anybody hold `byte`? When the file cannot be asked the answer is true: better to wait than to clean
  // the living.
  bool is_held(uint64_t byte) const;

  // Take byte `byte` and tie it to this process's memory: a page mapped through the description, not
  // inherited by fork. It survives close() of any descriptor and ends exactly when the mapping does. Null
  // when taken.
  void* try_tie(uint64_t byte) const;
  static void untie(void* tied_page);

  const std::string& path() const { return path_; }

 private:
  Descriptor open_current() const;

  std::string path_;
  uint64_t device_ = 0;
  uint64_t inode_ = 0;
};

}  // namespace maru
