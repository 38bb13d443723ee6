/* The few system calls of Linux that the plugin needs, without a C library: so the program is small, needs nothing
 * of its host, and is the same bytes wherever the pinned compiler makes it. With ISTHMUS_HOSTED (tests: sanitizers,
 * fuzzing) the C library's own are used. */
#pragma once

#ifdef ISTHMUS_HOSTED

#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <errno.h>

static long sys_socket(void) { return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0); }
static long sys_result(long done) { return done < 0 ? -errno : done; }
static long sys_connect(int fd, const void *to, unsigned size) { return sys_result(connect(fd, to, size)); }
static long sys_send(int fd, const void *data, unsigned long size) {
  return sys_result(send(fd, data, size, MSG_NOSIGNAL));
}
static long sys_shutdown(int fd) { return sys_result(shutdown(fd, SHUT_WR)); }
static long sys_read(int fd, void *into, unsigned long size) { return sys_result(read(fd, into, size)); }
static long sys_write(int fd, const void *data, unsigned long size) { return sys_result(write(fd, data, size)); }
static long sys_poll(struct pollfd *fds, int milliseconds) { return sys_result(poll(fds, 1, milliseconds)); }

#else

typedef unsigned long size_t;
#define NULL ((void *)0)
#define AF_UNIX 1
#define POLLIN 1
#define POLLOUT 4
#define CLOCK_MONOTONIC 1
#define EINTR 4
#define EAGAIN 11
struct pollfd { int fd; short events, revents; };
struct timespec { long tv_sec, tv_nsec; };
struct sockaddr_un { unsigned short sun_family; char sun_path[108]; };

#if defined(__x86_64__)
enum { SYS_read = 0, SYS_write = 1, SYS_ppoll = 271, SYS_socket = 41, SYS_connect = 42, SYS_sendto = 44,
       SYS_shutdown = 48, SYS_clock_gettime = 228, SYS_exit_group = 231 };
static long sys6(long number, long a, long b, long c, long d, long e, long f) {
  long result;
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
}
__asm__(".text\n.globl _start\n_start:\n xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call begin\n hlt\n");
#elif defined(__aarch64__)
enum { SYS_read = 63, SYS_write = 64, SYS_ppoll = 73, SYS_socket = 198, SYS_connect = 203, SYS_sendto = 206,
       SYS_shutdown = 210, SYS_clock_gettime = 113, SYS_exit_group = 94 };
static long sys6(long number, long a, long b, long c, long d, long e, long f) {
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  register long x4 __asm__("x4") = e;
  register long x5 __asm__("x5") = f;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
  return x0;
}
__asm__(".text\n.globl _start\n_start:\n mov x29, #0\n mov x30, #0\n mov x0, sp\n bl begin\n brk #1\n");
#else
#error "no system calls for this processor"
#endif

enum { SOCK = 1 | 02000000 | 00004000 /* stream, close on exec, not blocking */, NO_SIGNAL = 0x4000, WRITING = 1 };
static long sys_socket(void) { return sys6(SYS_socket, AF_UNIX, SOCK, 0, 0, 0, 0); }
static long sys_connect(int fd, const void *to, unsigned size) {
  return sys6(SYS_connect, fd, (long)to, size, 0, 0, 0);
}
static long sys_send(int fd, const void *data, unsigned long size) {
  return sys6(SYS_sendto, fd, (long)data, (long)size, NO_SIGNAL, 0, 0);
}
static long sys_shutdown(int fd) { return sys6(SYS_shutdown, fd, WRITING, 0, 0, 0, 0); }
static long sys_read(int fd, void *into, unsigned long size) {
  return sys6(SYS_read, fd, (long)into, (long)size, 0, 0, 0);
}
static long sys_write(int fd, const void *data, unsigned long size) {
  return sys6(SYS_write, fd, (long)data, (long)size, 0, 0, 0);
}
static long sys_poll(struct pollfd *fds, int milliseconds) {
  struct timespec time = {milliseconds / 1000, (long)(milliseconds % 1000) * 1000000};
  return sys6(SYS_ppoll, (long)fds, 1, (long)&time, 0, 0, 0);
}
static int clock_gettime(int clock, struct timespec *now) {
  return (int)sys6(SYS_clock_gettime, clock, (long)now, 0, 0, 0, 0);
}

/* The compiler may call these by itself. */
void *memcpy(void *to, const void *from, size_t size) {
  for (size_t i = 0; i < size; i++) ((char *)to)[i] = ((const char *)from)[i];
  return to;
}
void *memset(void *at, int value, size_t size) {
  for (size_t i = 0; i < size; i++) ((char *)at)[i] = (char)value;
  return at;
}
int memcmp(const void *a, const void *b, size_t size) {
  for (size_t i = 0; i < size; i++)
    if (((const unsigned char *)a)[i] != ((const unsigned char *)b)[i])
      return ((const unsigned char *)a)[i] - ((const unsigned char *)b)[i];
  return 0;
}
size_t strlen(const char *text) {
  size_t size = 0;
  while (text[size]) size++;
  return size;
}

int main(int count, char **arguments, char **environment);
__attribute__((used, noreturn)) void begin(long *stack) {
  long count = stack[0];
  char **arguments = (char **)(stack + 1);
  sys6(SYS_exit_group, main((int)count, arguments, arguments + count + 1), 0, 0, 0, 0, 0);
  __builtin_unreachable();
}

#endif
