/* Let calls that change files fail, from the n-th on: an LD_PRELOAD of the campaign against disks.
 *
 * FAULT_ROOTS   beginnings of paths, with colons between them; other files are left alone
 * FAULT_KINDS   letters: m makes a name, w writes, f flushes, r removes or renames, o opens to write, t truncates
 * FAULT_FIRST, FAULT_LAST   the first and the last call that fails, counted over all processes
 * FAULT_ERRNO   the error they get; below zero it is the signal that the process gets
 * FAULT_RANK    the only rank whose calls count, for all if it is not set
 * FAULT_COUNT   a file of eight bytes, in which the processes count together
 * FAULT_LOG     a file that gets a line for each call that fails
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(type, name, ...)                           \
    static type (*real)(__VA_ARGS__);                   \
    if (!real) real = dlsym(RTLD_NEXT, #name)

static long number(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text && *text ? atol(text) : otherwise;
}

static long count_call(void) {
    static long *shared;
    if (!shared) {
        const char *file = getenv("FAULT_COUNT");
        int fd = file ? (int)syscall(SYS_openat, AT_FDCWD, file, O_RDWR | O_CLOEXEC, 0) : -1;
        if (fd < 0) return 0;
        void *mapped = mmap(NULL, sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        close(fd);
        if (mapped == MAP_FAILED) return 0;
        shared = mapped;
    }
    return __atomic_add_fetch(shared, 1, __ATOMIC_SEQ_CST);
}

static int is_below_roots(const char *path) {
    const char *root = getenv("FAULT_ROOTS");
    while (root && *root) {
        size_t length = strcspn(root, ":");
        if (length && strncmp(path, root, length) == 0) return 1;
        root += length + (root[length] == ':');
    }
    return 0;
}

static int strike(char kind, const char *call, const char *path) {
    const char *kinds = getenv("FAULT_KINDS"), *rank = getenv("FAULT_RANK"), *log = getenv("FAULT_LOG");
    if (!kinds || !strchr(kinds, kind) || !is_below_roots(path)) return 0;
    if (rank && *rank && strcmp(rank, getenv("RANK") ? getenv("RANK") : "0") != 0) return 0;
    long at = count_call(), error = number("FAULT_ERRNO", EIO);
    if (at < number("FAULT_FIRST", LONG_MAX) || at > number("FAULT_LAST", LONG_MAX)) return 0;
    if (log) {
        char line[PATH_MAX + 200];
        int fd = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        int length = snprintf(line, sizeof line, "%ld %s %s\n", at, call, path);
        if (fd >= 0) {
            if (syscall(SYS_write, fd, line, (size_t)length) < 0) { /* nobody to tell */ }
            syscall(SYS_close, fd);
        }
    }
    if (error < 0) {
        kill(getpid(), (int)-error);
        pause();
    }
    errno = (int)error;
    return 1;
}

static void path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, (size_t)PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
}

static int strike_fd(char kind, const char *call, int fd) {
    char path[PATH_MAX];
    if (!getenv("FAULT_KINDS")) return 0;
    path_of(fd, path);
    return path[0] == '/' && strike(kind, call, path);
}

static int strike_at(char kind, const char *call, int folder, const char *name) {
    char path[2 * PATH_MAX];
    if (!getenv("FAULT_KINDS")) return 0;
    if (name[0] == '/') {
        snprintf(path, sizeof path, "%s", name);
    } else {
        if (folder != AT_FDCWD) path_of(folder, path);
        else if (!getcwd(path, PATH_MAX)) return 0;
        snprintf(path + strlen(path), PATH_MAX, "/%s", name);
    }
    return strike(kind, call, path);
}

static int strike_open(const char *call, int folder, const char *name, int flags) {
    int is_made = (flags & O_TMPFILE) == O_TMPFILE;
    if (!is_made && (flags & O_CREAT)) is_made = faccessat(folder, name, F_OK, AT_SYMLINK_NOFOLLOW) != 0;
    if (is_made) return strike_at('m', call, folder, name);
    return (flags & O_ACCMODE) != O_RDONLY && strike_at('o', call, folder, name);
}

#define OPEN(name, real_name, AT_ARGUMENT, FOLDER, ...)                       \
    int name(AT_ARGUMENT const char *path, int flags, ...) {                  \
        REAL(int, real_name, AT_ARGUMENT const char *, int, ...);             \
        va_list rest;                                                         \
        va_start(rest, flags);                                                \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                         \
        if (strike_open(#name, FOLDER, path, flags)) return -1;               \
        return real(__VA_ARGS__ path, flags, mode);                           \
    }
#define COMMA ,
OPEN(open, open, , AT_FDCWD, )
OPEN(open64, open64, , AT_FDCWD, )
OPEN(openat, openat, int folder COMMA, folder, folder COMMA)
OPEN(openat64, openat64, int folder COMMA, folder, folder COMMA)

static int flags_of(const char *mode) {
    int flags = mode[0] == 'r' ? 0 : O_CREAT;
    return flags | (mode[0] != 'r' || strchr(mode, '+') ? O_RDWR : O_RDONLY);
}
FILE *fopen(const char *path, const char *mode) {
    REAL(FILE *, fopen, const char *, const char *);
    return strike_open("fopen", AT_FDCWD, path, flags_of(mode)) ? NULL : real(path, mode);
}
FILE *fopen64(const char *path, const char *mode) {
    REAL(FILE *, fopen64, const char *, const char *);
    return strike_open("fopen64", AT_FDCWD, path, flags_of(mode)) ? NULL : real(path, mode);
}

ssize_t write(int fd, const void *from, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    return strike_fd('w', "write", fd) ? -1 : real(fd, from, size);
}
ssize_t pwrite(int fd, const void *from, size_t size, off_t at) {
    REAL(ssize_t, pwrite, int, const void *, size_t, off_t);
    return strike_fd('w', "pwrite", fd) ? -1 : real(fd, from, size, at);
}
ssize_t pwrite64(int fd, const void *from, size_t size, off64_t at) {
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    return strike_fd('w', "pwrite64", fd) ? -1 : real(fd, from, size, at);
}
ssize_t writev(int fd, const struct iovec *from, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    return strike_fd('w', "writev", fd) ? -1 : real(fd, from, count);
}
ssize_t sendfile(int to, int from, off_t *at, size_t size) {
    REAL(ssize_t, sendfile, int, int, off_t *, size_t);
    return strike_fd('w', "sendfile", to) ? -1 : real(to, from, at, size);
}
ssize_t sendfile64(int to, int from, off64_t *at, size_t size) {
    REAL(ssize_t, sendfile64, int, int, off64_t *, size_t);
    return strike_fd('w', "sendfile64", to) ? -1 : real(to, from, at, size);
}
int posix_fallocate(int fd, off_t at, off_t size) {
    REAL(int, posix_fallocate, int, off_t, off_t);
    return strike_fd('w', "posix_fallocate", fd) ? errno : real(fd, at, size);
}
int posix_fallocate64(int fd, off64_t at, off64_t size) {
    REAL(int, posix_fallocate64, int, off64_t, off64_t);
    return strike_fd('w', "posix_fallocate64", fd) ? errno : real(fd, at, size);
}
int ftruncate(int fd, off_t size) {
    REAL(int, ftruncate, int, off_t);
    return strike_fd('t', "ftruncate", fd) ? -1 : real(fd, size);
}
int ftruncate64(int fd, off64_t size) {
    REAL(int, ftruncate64, int, off64_t);
    return strike_fd('t', "ftruncate64", fd) ? -1 : real(fd, size);
}
int fsync(int fd) {
    REAL(int, fsync, int);
    return strike_fd('f', "fsync", fd) ? -1 : real(fd);
}
int mkdir(const char *path, mode_t mode) {
    REAL(int, mkdir, const char *, mode_t);
    if (faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0) return real(path, mode);
    return strike_at('m', "mkdir", AT_FDCWD, path) ? -1 : real(path, mode);
}
int link(const char *path, const char *other) {
    REAL(int, link, const char *, const char *);
    return strike_at('m', "link", AT_FDCWD, other) ? -1 : real(path, other);
}
int linkat(int folder, const char *path, int to, const char *other, int flags) {
    REAL(int, linkat, int, const char *, int, const char *, int);
    return strike_at('m', "linkat", to, other) ? -1 : real(folder, path, to, other, flags);
}
int rename(const char *path, const char *other) {
    REAL(int, rename, const char *, const char *);
    return strike_at('r', "rename", AT_FDCWD, other) ? -1 : real(path, other);
}
int renameat2(int folder, const char *path, int to, const char *other, unsigned int flags) {
    REAL(int, renameat2, int, const char *, int, const char *, unsigned int);
    return strike_at('r', "renameat2", to, other) ? -1 : real(folder, path, to, other, flags);
}
int unlink(const char *path) {
    REAL(int, unlink, const char *);
    return strike_at('r', "unlink", AT_FDCWD, path) ? -1 : real(path);
}
int unlinkat(int folder, const char *path, int flags) {
    REAL(int, unlinkat, int, const char *, int);
    return strike_at('r', "unlinkat", folder, path) ? -1 : real(folder, path, flags);
}
int rmdir(const char *path) {
    REAL(int, rmdir, const char *);
    return strike_at('r', "rmdir", AT_FDCWD, path) ? -1 : real(path);
}
