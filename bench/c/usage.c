/*
 * Runs one program and reports what it took from start to exit, as JSON on file descriptor 3:
 * {"wallMicros", "cpuMicros", "maxRssKb", "status"}. Node has no wait4; and the peak of memory of a child of Node is
 * Node's own at least, because Linux carries it over exec. This small process in between has next to none.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long micros(struct timeval time) { return time.tv_sec * 1000000LL + time.tv_usec; }

int main(int argc, char **argv) {
  if (argc < 2) return 2;
  struct timespec start, end;
  struct rusage usage;
  int status;
  fcntl(3, F_SETFD, FD_CLOEXEC);
  clock_gettime(CLOCK_MONOTONIC, &start);
  pid_t child = fork();
  if (child < 0) return 1;
  if (child == 0) {
    execvp(argv[1], argv + 1);
    _exit(127);
  }
  if (wait4(child, &status, 0, &usage) < 0) return 1;
  clock_gettime(CLOCK_MONOTONIC, &end);
  dprintf(3, "{\"wallMicros\":%lld,\"cpuMicros\":%lld,\"maxRssKb\":%ld,\"status\":%d}\n",
          (end.tv_sec - start.tv_sec) * 1000000LL + (end.tv_nsec - start.tv_nsec) / 1000,
          micros(usage.ru_utime) + micros(usage.ru_stime), usage.ru_maxrss,
          WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
  return 0;
}
