/* SIMD vectors of floats, as wide as the processor supports, exp of them, and the number of the current thread. */
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
static inline int64_t thread_number(void) { return omp_get_thread_num(); }
#else
static inline int64_t thread_number(void) { return 0; }
#endif

#if defined(__AVX512F__)
#define VL 16
#elif defined(__AVX__)
#define VL 8
#else
#define VL 4
#endif

/* The first instruction set that this file was compiled for and the processor lacks; null where it has them all. */
const char *lacks(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
#define HAS(set, name) if (!__builtin_cpu_supports(set)) return name;
#ifdef __SSE4_2__
  HAS("sse4.2", "SSE4.2")
#endif
#ifdef __AVX__
  HAS("avx", "AVX")
#endif
#ifdef __AVX2__
  HAS("avx2", "AVX2")
#endif
#ifdef __FMA__
  HAS("fma", "FMA")
#endif
#ifdef __BMI2__
  HAS("bmi2", "BMI2")
#endif
#ifdef __AVX512F__
  HAS("avx512f", "AVX-512")
#endif
#ifdef __AVX512BW__
  HAS("avx512bw", "AVX-512 BW")
#endif
#ifdef __AVX512DQ__
  HAS("avx512dq", "AVX-512 DQ")
#endif
#ifdef __AVX512VL__
  HAS("avx512vl", "AVX-512 VL")
#endif
#ifdef __AVX512VBMI__
  HAS("avx512vbmi", "AVX-512 VBMI")
#endif
#ifdef __AVX512VNNI__
  HAS("avx512vnni", "AVX-512 VNNI")
#endif
#ifdef __AVX512BF16__
  HAS("avx512bf16", "AVX-512 BF16")
#endif
#ifdef __AVX512FP16__
  HAS("avx512fp16", "AVX-512 FP16")
#endif
#undef HAS
#endif
  return 0;
}

typedef float vf __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(VL * 4), aligned(4), may_alias));

typedef uint16_t vh __attribute__((vector_size(VL * 2), aligned(2), may_alias)); /* bfloat16 numbers */

static inline vf vload(const float *p) { return *(const vf *)p; }
static inline vf vwiden(const uint16_t *p) { return (vf)(__builtin_convertvector(*(const vh *)p, vi) << 16); }
static inline void vstore(float *p, vf x) { *(vf *)p = x; }
static inline vf vset(float x) { return x - (vf){}; }
static inline vf vmax(vf a, vf b) { return (vf)(((vi)a & (a > b)) | ((vi)b & ~(a > b))); }

static inline float vsum(vf x) {
  float s = 0;
  for (int i = 0; i < VL; i++) s += x[i];
  return s;
}
static inline float vtop(vf x) {
  float m = x[0];
  for (int i = 1; i < VL; i++) m = x[i] > m ? x[i] : m;
  return m;
}

/* exp(x) with an error below 2 units in the last place; 0 below -87.3, and never above exp(88).
   x = n ln2 + r, |r| <= ln2 / 2, and a polynomial of degree 6 in r (Cephes' coefficients). */
static inline vf vexp(vf x) {
  vi low = x < vset(-87.3f); /* false for NaN, which stays NaN */
  x = (vf)(((vi)x & ~(x > vset(88.0f))) | ((vi)vset(88.0f) & (x > vset(88.0f))));
  vf z = x * 1.44269504088896341f;
  vf big = vset(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
  vf n = (z + big) - big;
  vf r = x - n * 0.693359375f - n * -2.12194440e-4f;
  vf p = vset(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  vi e = (__builtin_convertvector(n, vi) + 127) << 23;
  p = p * (vf)e;
  return (vf)((vi)p & ~low);
}
