// How fast memory can be read: `read-bandwidth [threads] [megabytes] [passes]` prints GB/s, the
// median over the passes. Each thread sums its own share of one array that no cache close to a core
// holds; the compiler turns the sum into wide loads, eight independent chains of them.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { THREADS_MAX = 256, PASSES_MAX = 1000, CHAINS = 64, AHEAD = 512 };

struct share {
  const uint64_t *words;
  size_t n_words;
  uint64_t sum;
};

static pthread_barrier_t gate;
static int n_passes;

static double now_s(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *sum_share(void *argument) {
  struct share *share = argument;
  for (int pass = 0; pass < n_passes; pass++) {
    pthread_barrier_wait(&gate);
    uint64_t sums[CHAINS] = {0};
    for (size_t i = 0; i + CHAINS <= share->n_words; i += CHAINS) {
      // Hardware prefetching alone stops at the borders of pages.
      for (size_t j = 0; j < CHAINS; j += 8) __builtin_prefetch(share->words + i + j + AHEAD);
      for (size_t j = 0; j < CHAINS; j++) sums[j] += share->words[i + j];
    }
    for (size_t j = 0; j < CHAINS; j++) share->sum += sums[j];
    pthread_barrier_wait(&gate);
  }
  return NULL;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

int main(int n_arguments, char **arguments) {
  int n_threads = n_arguments > 1 ? atoi(arguments[1]) : 2;
  size_t n_bytes = (size_t)(n_arguments > 2 ? atoi(arguments[2]) : 400) * 1000000;
  n_passes = n_arguments > 3 ? atoi(arguments[3]) : 15;
  if (n_threads < 1 || n_threads > THREADS_MAX || n_bytes == 0 || n_passes < 1 ||
      n_passes > PASSES_MAX) {
    fprintf(stderr, "usage: read-bandwidth [threads] [megabytes] [passes]\n");
    return 2;
  }
  size_t share_bytes = n_bytes / (size_t)n_threads / 4096 * 4096;
  unsigned char *bytes = aligned_alloc(4096, share_bytes * (size_t)n_threads);
  if (bytes == NULL) {
    fprintf(stderr, "read-bandwidth: no memory for %zu bytes\n", n_bytes);
    return 1;
  }
  memset(bytes, 1, share_bytes * (size_t)n_threads);
  pthread_barrier_init(&gate, NULL, (unsigned)n_threads + 1);
  static struct share shares[THREADS_MAX];
  static pthread_t threads[THREADS_MAX];
  static double rates[PASSES_MAX];
  for (int t = 0; t < n_threads; t++) {
    shares[t].words = (const uint64_t *)(bytes + share_bytes * (size_t)t);
    shares[t].n_words = share_bytes / sizeof(uint64_t);
    if (pthread_create(&threads[t], NULL, sum_share, &shares[t]) != 0) return 1;
  }
  for (int pass = 0; pass < n_passes; pass++) {
    pthread_barrier_wait(&gate);
    double begin = now_s();
    pthread_barrier_wait(&gate);
    rates[pass] = 1e-9 * (double)(share_bytes * (size_t)n_threads) / (now_s() - begin);
  }
  uint64_t sum = 0;
  for (int t = 0; t < n_threads; t++) {
    pthread_join(threads[t], NULL);
    sum += shares[t].sum;
  }
  qsort(rates, (size_t)n_passes, sizeof(double), ascending);
  printf("%.2f\n", rates[n_passes / 2]);
  return sum == 0; // never, but the compiler may not drop the reads
}
