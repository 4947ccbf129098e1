/* The operations of a layer between its matrix products, forward and backward, in one pass over memory each.

     add and normalise   s = x + d,  y = s r w,  r = 1 / sqrt(mean(s^2) + eps)             (RMSNorm)
     rotate              (a, b) -> (a cos - b sin, b cos + a sin), pairs half a head apart (RoPE)
     gate                y = silu(g) u                                                     (SwiGLU)
     log-probabilities   z_t - log sum exp z, the entropy, and the gradient of both with respect to z

   Rows are divided among threads in fixed ranges; sums over rows are computed per thread, then in order of threads. */
#include "vec.h"

#define FOR_ROWS(T) \
  _Pragma("omp parallel for schedule(static) num_threads((int)threads) if (threads > 1)") for (int64_t t = 0; t < (T); t++)

static inline vf part(const float *p, int64_t n) { /* loads the first n < VL numbers, the others are 0 */
  vf x = {};
  for (int64_t i = 0; i < n; i++) x[i] = p[i];
  return x;
}
static inline void spart(float *p, vf x, int64_t n) {
  for (int64_t i = 0; i < n; i++) p[i] = x[i];
}

/* Runs BODY(load, store, d) over a row of D numbers: whole vectors first, then the rest. */
#define OVER(D, BODY)                                     \
  {                                                       \
    int64_t d = 0;                                        \
    for (; d + VL <= (D); d += VL) {                      \
      BODY(vload, vstore_, d)                             \
    }                                                     \
    if (d < (D)) {                                        \
      const int64_t left = (D)-d;                         \
      BODY(part_, spart_, d)                              \
    }                                                     \
  }
#define vstore_(p, x) vstore(p, x)
#define part_(p) part(p, left)
#define spart_(p, x) spart(p, x, left)

/* s = x + d (d may be null: then s is not written), y = norm(s); r [T] is kept. */
void norm_forward(const float *x, const float *delta, const float *w, int64_t T, int64_t D, float eps, float *s, float *y,
                  float *r, int64_t threads) {
  FOR_ROWS(T) {
    const float *a = x + t * D, *b = delta ? delta + t * D : 0;
    float *to = y + t * D, *sum = s ? s + t * D : 0;
    vf squares = {};
#define ADD(load, store, d)        \
  vf v = load(a + d);              \
  if (b) {                         \
    v += load(b + d);              \
    store(sum + d, v);             \
  }                                \
  squares += v * v;
    OVER(D, ADD)
    float scale = 1 / sqrtf(vsum(squares) / D + eps);
    const float *from = b ? sum : a;
#define SCALE(load, store, d) store(to + d, load(from + d) * scale * load(w + d));
    OVER(D, SCALE)
    r[t] = scale;
  }
}

/* ds = (gradient of s through y) + more (or null); dw [threads, D] is added to (or null). */
void norm_backward(const float *s, const float *w, const float *r, const float *dy, const float *more, int64_t T, int64_t D,
                   float *ds, float *dw, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads((int)threads) if (threads > 1)
  for (int64_t thread = 0; thread < threads; thread++) {
    float *sums = dw ? dw + thread * D : 0;
    for (int64_t t = T * thread / threads; t < T * (thread + 1) / threads; t++) {
      const float *a = s + t * D, *g = dy + t * D, *m = more ? more + t * D : 0;
      float *to = ds + t * D, scale = r[t];
      vf dot = {};
#define DOT(load, store, d)                \
  vf v = load(a + d), u = load(g + d);     \
  dot += v * u * load(w + d);              \
  if (sums) store(sums + d, load(sums + d) + u * v * scale);
      OVER(D, DOT)
      float back = vsum(dot) / D * scale * scale * scale;
#define BACK(load, store, d)                                     \
  vf v = load(g + d) * load(w + d) * scale - load(a + d) * back; \
  if (m) v += load(m + d);                                       \
  store(to + d, v);
      OVER(D, BACK)
    }
  }
}

/* Recomputes the output of norm_forward: y = s r w. */
void norm_again(const float *s, const float *w, const float *r, int64_t T, int64_t D, float *y, int64_t threads) {
  FOR_ROWS(T) {
    const float *a = s + t * D;
    float *to = y + t * D, scale = r[t];
    for (int64_t d = 0; d < D; d++) to[d] = a[d] * scale * w[d];
  }
}

/* In place over x [T, heads, W]; both halves of cos and of sin [T, W] are equal; sign -1 rotates back. */
void rotate(float *x, const float *cos, const float *sin, int64_t T, int64_t heads, int64_t W, float sign, int64_t threads) {
  int64_t half = W / 2;
  FOR_ROWS(T) {
    const float *c = cos + t * W, *n = sin + t * W;
    for (int64_t h = 0; h < heads; h++) {
      float *restrict p = x + (t * heads + h) * W, *restrict q = p + half;
      for (int64_t d = 0; d < half; d++) {
        float a = p[d], b = q[d], s = n[d] * sign;
        p[d] = a * c[d] - b * s, q[d] = b * c[d] + a * s;
      }
    }
  }
}

void gate_forward(const float *g, const float *u, int64_t n, float *y, int64_t threads) {
  int64_t D = 1024, T = (n + D - 1) / D;
  FOR_ROWS(T) {
    int64_t at = t * D, count = n - at < D ? n - at : D;
#define GATE(load, store, d)    \
  vf x = load(g + at + d);      \
  store(y + at + d, x / (1.0f + vexp(-x)) * load(u + at + d));
    OVER(count, GATE)
  }
}

/* In place: g and u are overwritten with their gradients, and dy with y. */
void gate_backward(float *g, float *u, float *dy, int64_t n, int64_t threads) {
  int64_t D = 1024, T = (n + D - 1) / D;
  FOR_ROWS(T) {
    int64_t at = t * D, count = n - at < D ? n - at : D;
#define UNGATE(load, store, d)                                                   \
  vf x = load(g + at + d), s = 1.0f / (1.0f + vexp(-x)), silu = x * s;           \
  vf v = load(u + at + d), y = load(dy + at + d);                                \
  store(dy + at + d, silu * v);                                                  \
  store(u + at + d, y * silu);                                                   \
  store(g + at + d, y * v * s * (1.0f + x * (1.0f - s)));
    OVER(count, UNGATE)
  }
}

/* For the logits z [N, V] times scale: log-sum-exp [N], log-probability of each target, and (unless null) entropy. */
void logps_forward(const float *z, const int64_t *targets, int64_t N, int64_t V, float scale, float *lse, float *logps,
                   float *entropy, int64_t threads) {
  int64_t T = N;
  FOR_ROWS(T) {
    const float *row = z + t * V;
    vf high = vset(-INFINITY);
    int64_t whole = V / VL * VL;
    for (int64_t v = 0; v < whole; v += VL) high = vmax(high, vload(row + v));
    float top = vtop(high);
    for (int64_t v = whole; v < V; v++) top = row[v] > top ? row[v] : top;
    double sum = 0, weighted = 0; /* summed by blocks of the vocabulary, so that small terms are not lost */
    for (int64_t from = 0; from < V; from += 4096) {
      int64_t to = from + 4096 < V ? from + 4096 : V, v = from;
      vf s = {}, w = {};
      for (; v + VL <= to; v += VL) {
        vf x = (vload(row + v) - top) * scale, e = vexp(x);
        s += e;
        w += e * x;
      }
      if (v < to) {
        vf x = (part(row + v, to - v) - top) * scale, e = vexp(x);
        for (int64_t i = 0; i < to - v; i++) s[i] += e[i], w[i] += e[i] * x[i];
      }
      sum += vsum(s), weighted += vsum(w);
    }
    double log_sum = log(sum);
    lse[t] = (float)(top * (double)scale + log_sum);
    logps[t] = (float)((row[targets[t]] - (double)top) * scale - log_sum);
    if (entropy) entropy[t] = (float)(log_sum - weighted / sum);
  }
}

/* Overwrites z with its gradient: scale (g (onehot - p) - ge p (log p + H)); ge may be null. */
void logps_backward(float *z, const int64_t *targets, int64_t N, int64_t V, float scale, const float *lse, const float *g,
                    const float *ge, const float *entropy, int64_t threads) {
  int64_t T = N;
  FOR_ROWS(T) {
    float *row = z + t * V, a = -g[t] * scale, l = lse[t];
    if (ge && ge[t] != 0) {
      float b = -ge[t] * scale, H = entropy[t];
#define BOTH(load, store, d)                  \
  vf x = load(row + d) * scale - l;           \
  store(row + d, vexp(x) * (a + b * (x + H)));
      OVER(V, BOTH)
    } else {
#define ONE(load, store, d) store(row + d, vexp(load(row + d) * scale - l) * a);
      OVER(V, ONE)
    }
    row[targets[t]] -= a;
  }
}
