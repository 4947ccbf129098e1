/* Matrix products with weights in bfloat16: half the bytes to read, and sums in float32.

   C [M, N] (+)= A [M, K] B [K, N], A in bfloat16 too. Weights are stored in panels of NB columns,
   [panel][deep(K) / 2][NB][2]: pairs of rows interleaved, as the processors' bfloat16 instructions read them. There are
   three implementations, whose sums differ in their order only: AMX, 16 rows x 16 columns x 32 products at a time;
   AVX-512's dot products of pairs; and on other processors bfloat16 widened to float32, which saves memory bandwidth
   only. */
#pragma once
#include "gemm.h"

#define DEEP 32   /* rows of B in one tile */
#define DEEP_KC 576 /* columns of A in a block: 32 rows stay in the first-level cache, a panel's block in the second */
#define STRIDE 16 /* rows of A in one tile */
#define SPAN (NB * DEEP * 2) /* bytes of a panel that one step over K reads */

static inline int64_t deep(int64_t k) { return (k + DEEP - 1) / DEEP * DEEP; }
static inline int64_t tall(int64_t m) { return (m + STRIDE - 1) / STRIDE * STRIDE; }

/* ---------------------------------------------------------------- tiles of AMX */

#if defined(__AMX_BF16__) && defined(__linux__) && NB == 48
#define TILES 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Requests AMX tiles from the operating system, once, and returns whether this process may use them. */
static int tiles(void) {
  static int granted = -1;
  if (granted < 0) granted = !syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tiles' data */);
  return granted;
}
static void tiles_begin(void) {
  struct { uint8_t palette, row, zero[14]; uint16_t bytes[16]; uint8_t rows[16]; } shape = {.palette = 1};
  for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16;
  __asm__ volatile("" ::"r"(&shape) : "memory");
  _tile_loadconfig(&shape);
}
static void tiles_end(void) { _tile_release(); }

#define B_TILE(j) _tile_loadd(7, B + k * 2 * NB + (j) * 32, NB * 4)
/* 16 rows, or 32 if `two`, times a panel: tiles 0 to 2 hold the first 16 rows of C, 3 to 5 the next 16, 6 a tile of A
   and 7 a tile of B. With every step over K, `lines` cache lines from `next` on are prefetched. */
INLINE void block(const int two, const uint16_t *A, int64_t lda, int64_t K, const uint16_t *B, float *C, int64_t ldc,
                  int add, const char *next, int lines) {
  float *low = C + STRIDE * ldc;
  int64_t apart = ldc * 4;
  if (add) {
    _tile_loadd(0, C, apart); _tile_loadd(1, C + 16, apart); _tile_loadd(2, C + 32, apart);
    if (two) { _tile_loadd(3, low, apart); _tile_loadd(4, low + 16, apart); _tile_loadd(5, low + 32, apart); }
  } else {
    _tile_zero(0); _tile_zero(1); _tile_zero(2);
    if (two) { _tile_zero(3); _tile_zero(4); _tile_zero(5); }
  }
  for (int64_t k = 0; k < K / 2; k += DEEP / 2) {
    for (int i = 0; i < lines; i++) __builtin_prefetch(next + i * 64, 0, 2);
    next += lines * 64;
    _tile_loadd(6, A + 2 * k, lda * 2);
    B_TILE(0); _tile_dpbf16ps(0, 6, 7);
    B_TILE(1); _tile_dpbf16ps(1, 6, 7);
    B_TILE(2); _tile_dpbf16ps(2, 6, 7);
    if (!two) continue;
    _tile_loadd(6, A + STRIDE * lda + 2 * k, lda * 2);
    _tile_dpbf16ps(5, 6, 7);
    B_TILE(1); _tile_dpbf16ps(4, 6, 7);
    B_TILE(0); _tile_dpbf16ps(3, 6, 7);
  }
  _tile_stored(0, C, apart); _tile_stored(1, C + 16, apart); _tile_stored(2, C + 32, apart);
  if (two) { _tile_stored(3, low, apart); _tile_stored(4, low + 16, apart); _tile_stored(5, low + 32, apart); }
}
#undef B_TILE

static void tiled(const uint16_t *A, int64_t lda, int64_t M, int64_t K, const uint16_t *B, float *C, int64_t ldc,
                  int add, const uint16_t *behind) {
  int64_t blocks = (M + 31) / 32, many = (K + DEEP_KC - 1) / DEEP_KC, kc = deep((K + many - 1) / many);
  const char *next = (const char *)behind;
  for (int64_t k = 0; k < K; k += kc) {
    int64_t n = k + kc < K ? kc : K - k;
    int lines = behind ? (int)((SPAN / 64 + blocks - 1) / blocks) : 0;
    for (int64_t m = 0; m < M; m += 32, next += lines * 64 * (n / DEEP))
      if (M - m > STRIDE) block(1, A + m * lda + k, lda, n, B + k * NB, C + m * ldc, ldc, add || k, next, lines);
      else block(0, A + m * lda + k, lda, n, B + k * NB, C + m * ldc, ldc, add || k, next, lines);
  }
}
#else
static int tiles(void) { return 0; }
static void tiles_begin(void) {}
static void tiles_end(void) {}
#endif

/* ---------------------------------------------------------------- vectors */

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

/* c += the products of a pair of A with pairs of B. */
static inline vf pairs(vf c, uint32_t a, const uint16_t *b) {
#if defined(__AVX512BF16__) && VL == 16
  return (vf)_mm512_dpbf16_ps((__m512)c, (__m512bh)_mm512_set1_epi32((int)a), (__m512bh)_mm512_loadu_si512(b));
#else
  vi both = *(const vi *)b;
  union { uint32_t u; float f; } first = {a << 16}, second = {a & 0xffff0000u};
  c += (vf)(both << 16) * first.f;
  return c + (vf)(both & (int)0xffff0000) * second.f;
#endif
}

INLINE void halves(const int mr, const uint16_t *A, int64_t lda, int64_t K, const uint16_t *B, float *C, int64_t ldc,
                   int add) {
  vf c[MR][NR];
#pragma GCC unroll 8
  for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NR; j++) c[i][j] = add ? vload(C + i * ldc + j * VL) : (vf){};
  for (int64_t k = 0; k < K; k += 2, B += 2 * NB)
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++) {
      uint32_t a;
      memcpy(&a, A + i * lda + k, 4);
#pragma GCC unroll 4
      for (int j = 0; j < NR; j++) c[i][j] = pairs(c[i][j], a, B + j * 2 * VL);
    }
#pragma GCC unroll 8
  for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NR; j++) vstore(C + i * ldc + j * VL, c[i][j]);
}

#define OF_HALVES(n) \
  case n: halves(n, A + m * lda, lda, K, B, C + m * ldc, ldc, add); break;

/* C [M, NB] (+)= A [M, K] panel, K a multiple of DEEP. behind: the panel that will be read next, or null. With AMX,
   whole tiles of A are read and of C written, so both must have memory for tall(M) rows. */
static inline void half_panel(const uint16_t *A, int64_t lda, int64_t M, int64_t K, const uint16_t *B, float *C,
                              int64_t ldc, int add, const uint16_t *behind) {
#ifdef TILES
  if (tiles()) {
    tiled(A, lda, M, K, B, C, ldc, add, behind);
    return;
  }
#endif
  for (int64_t m = 0; m < M; m += MR) switch (M - m < MR ? M - m : MR) {
      OF_HALVES(1) OF_HALVES(2) OF_HALVES(3) OF_HALVES(4)
#if MR == 8
      OF_HALVES(5) OF_HALVES(6) OF_HALVES(7) OF_HALVES(8)
#endif
    }
}

/* ---------------------------------------------------------------- rounding */

/* Rounds to the nearest bfloat16, ties to even; NaN stays NaN. */
static inline vi rounded(vf x) {
  vi bits = (vi)x, odd = (bits >> 16) & 1, none = x != x;
  vi up = (bits + 0x7fff + odd) >> 16;
  return ((up & ~none) | (0x7fc0 & none)) & 0xffff;
}
static inline void lower(const float *x, int64_t n, uint16_t *to) { /* n a multiple of VL */
  for (int64_t i = 0; i < n; i += VL) *(vh *)(to + i) = __builtin_convertvector(rounded(vload(x + i)), vh);
}
static inline uint16_t lower_one(float x) { return (uint16_t)rounded(vset(x))[0]; }
