/* Matrix products for a few to some hundred rows, with weights that are read once.

   C [M, N] (+)= A [M, K] B [K, N]. Weights are stored in panels of NB columns, [panel][K][NB], so that a product reads
   them sequentially; while one block of a panel is in use, the next is prefetched, which hides memory latency behind
   arithmetic. A row's result is one chain of multiply-adds over k, independent of the other rows in the product. */
#pragma once
#include "vec.h"

#if VL == 16
#define MR 8 /* rows of one register tile; NR: its columns, in vectors */
#else
#define MR 4
#endif
#define NR 3
#define NB (NR * VL)
#define KC 192 /* rows of a panel in one block, which stays in the first-level cache */
#define TILE 64 /* rows of A that are multiplied with a panel at a time */

#define INLINE static inline __attribute__((always_inline))

/* One register tile: mr rows, nr vectors of columns. rs, cs: row and column stride of A. half: B is in bfloat16.
   ahead: memory to prefetch meanwhile, or null. */
INLINE void micro(const int mr, const int nr, const float *A, int64_t rs, int64_t cs, int64_t K, const void *B,
                  const int half, int64_t ldb, float *C, int64_t ldc, int add, const int fetch, const char *ahead) {
  vf c[MR][NR];
#pragma GCC unroll 8
  for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
    for (int j = 0; j < nr; j++) c[i][j] = add ? vload(C + i * ldc + j * VL) : (vf){};
  for (int64_t k = 0; k < K; k++) {
    vf b[NR];
#pragma GCC unroll 4
    for (int j = 0; j < nr; j++)
      b[j] = half ? vwiden((const uint16_t *)B + k * ldb + j * VL) : vload((const float *)B + k * ldb + j * VL);
    if (fetch) __builtin_prefetch(ahead + k * 64, 0, 2);
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++) {
      vf a = vset(A[i * rs + k * cs]);
#pragma GCC unroll 4
      for (int j = 0; j < nr; j++) c[i][j] += a * b[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
    for (int j = 0; j < nr; j++) vstore(C + i * ldc + j * VL, c[i][j]);
}

#define OF_ROWS(n)                                                               \
  case n:                                                                        \
    if (nr == 3) micro(n, 3, A, rs, cs, K, B, half, ldb, C, ldc, add, 0, 0);      \
    else if (nr == 2) micro(n, 2, A, rs, cs, K, B, half, ldb, C, ldc, add, 0, 0); \
    else micro(n, 1, A, rs, cs, K, B, half, ldb, C, ldc, add, 0, 0);              \
    break;

INLINE void tile(int mr, int nr, const float *A, int64_t rs, int64_t cs, int64_t K, const void *B, const int half,
                 int64_t ldb, float *C, int64_t ldc, int add) {
  switch (mr) {
    OF_ROWS(1) OF_ROWS(2) OF_ROWS(3) OF_ROWS(4)
#if MR == 8
    OF_ROWS(5) OF_ROWS(6) OF_ROWS(7) OF_ROWS(8)
#endif
  }
}

INLINE void lying(const float *A, int64_t rs, int64_t cs, int64_t M, int64_t K, int64_t N, const void *B,
                  const int half, int64_t ldb, float *C, int64_t ldc, int add) {
  for (int64_t j = 0, left = N / VL; left;) {
    int nr = left == 4 ? 2 : left < NR ? (int)left : NR; /* 4 vectors as 2 + 2 rather than 3 + 1 */
    const char *from = (const char *)B + j * (half ? 2 : 4);
    for (int64_t m = 0; m < M; m += MR)
      tile(M - m < MR ? (int)(M - m) : MR, nr, A + m * rs, rs, cs, K, from, half, ldb, C + m * ldc + j, ldc, add);
    j += nr * VL, left -= nr;
  }
}

/* C [M, N] (+)= A [M, K] B [K, N] with B in row-major order, not in panels, and N a multiple of VL. */
static void plain(const float *A, int64_t rs, int64_t cs, int64_t M, int64_t K, int64_t N, const float *B, int64_t ldb,
                  float *C, int64_t ldc, int add) {
  lying(A, rs, cs, M, K, N, B, 0, ldb, C, ldc, add);
}

/* ---------------------------------------------------------------- weights in panels */

static inline void fetching(const float *A, int64_t lda, int64_t K, const float *B, float *C, int64_t ldc, int add,
                            const char *ahead) {
  micro(MR, NR, A, lda, 1, K, B, 0, NB, C, ldc, add, 1, ahead);
}

static void rest(int mr, const float *A, int64_t lda, int64_t K, const float *B, float *C, int64_t ldc, int add) {
  tile(mr, NR, A, lda, 1, K, B, 0, NB, C, ldc, add);
}

/* C [M, NB] (+)= A [M, K] panel. behind: the panel that will be read next, or null. */
static inline void panel(const float *A, int64_t lda, int64_t M, int64_t K, const float *B, float *C, int64_t ldc, int add,
                  const float *behind) {
  int64_t blocks = (K + KC - 1) / KC, kc = (K + blocks - 1) / blocks;
  for (int64_t k = 0; k < K; k += kc) {
    int64_t n = k + kc < K ? kc : K - k;
    const char *next = (const char *)(k + kc < K ? B + (k + kc) * NB : behind);
    const char *end = next ? next + kc * NB * 4 : 0;
    for (int64_t m = 0; m < M; m += MR) {
      int mr = M - m < MR ? (int)(M - m) : MR;
      if (mr == MR && next < end) {
        fetching(A + m * lda + k, lda, n, B + k * NB, C + m * ldc, ldc, add || k, next);
        next += n * 64;
      } else
        rest(mr, A + m * lda + k, lda, n, B + k * NB, C + m * ldc, ldc, add || k);
    }
  }
}

static inline int64_t wide(int64_t n) { return (n + NB - 1) / NB * NB; }
