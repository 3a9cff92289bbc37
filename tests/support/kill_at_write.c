/* Loaded before libc (LD_PRELOAD): ends the process with SIGKILL at the n-th call that changes a file.

   Counted are the calls with which SQLite and Python change regular files and folders. At the n-th either nothing of it
   is done (torn = 0), or half of the bytes of a write are (torn = 1). Who wants to know how many there are arms it with
   a large number and reads kill_count(). */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static long left = 0, count = 0;
static int torn = 0;

void kill_arm(long at, int half) { left = at; count = 0; torn = half; }
long kill_count(void) { return count; }

static void end(void) { kill(getpid(), SIGKILL); }

static int reached(void) {
    if (left == 0) return 0;
    count++;
    return --left == 0;
}

static int is_file(int fd) {
    struct stat found;
    return fstat(fd, &found) == 0 && S_ISREG(found.st_mode);
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    if (left && is_file(fd) && reached()) { if (torn) real(fd, data, size / 2); end(); }
    return real(fd, data, size);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    REAL(ssize_t, pwrite, int, const void *, size_t, off_t);
    if (left && is_file(fd) && reached()) { if (torn) real(fd, data, size / 2, at); end(); }
    return real(fd, data, size, at);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    if (left && is_file(fd) && reached()) { if (torn) real(fd, data, size / 2, at); end(); }
    return real(fd, data, size, at);
}

#define SIMPLE(name, parameters, arguments, ...) \
    int name parameters { REAL(int, name, __VA_ARGS__); if (reached()) end(); return real arguments; }

SIMPLE(fsync, (int fd), (fd), int)
SIMPLE(fdatasync, (int fd), (fd), int)
SIMPLE(ftruncate, (int fd, off_t size), (fd, size), int, off_t)
SIMPLE(ftruncate64, (int fd, off64_t size), (fd, size), int, off64_t)
SIMPLE(rename, (const char *a, const char *b), (a, b), const char *, const char *)
SIMPLE(unlink, (const char *a), (a), const char *)
SIMPLE(mkdir, (const char *a, mode_t mode), (a, mode), const char *, mode_t)
SIMPLE(fchmod, (int fd, mode_t mode), (fd, mode), int, mode_t)
