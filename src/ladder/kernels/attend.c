/* Attention over a packed row, forward and backward, on queries, keys and values in the layout of the projections.

     o_i = sum_j p_ij v_j,  p_i = softmax_j(scale q_i k_j)  over j in the ancestors of i's segment, and up to i in its own

   The segments form prefix trees (packing/prefix_tree.py): a segment may continue a parent, and a family is one tree.
   One segment and one key head are one piece of work. Its gradients for the keys and values of its ancestors are stored
   apart and then added tree by tree, always in the same order, so the number of threads changes no bit of the result.
   Scores are computed for ROWS queries at a time and stay in the second-level cache; backward recomputes them from
   their log-sum-exp. */
#include "gemm.h"

#define ROWS 32

static inline int64_t up(int64_t n) { return (n + VL - 1) / VL * VL; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static inline vi lanes(void) {
  vi x;
  for (int i = 0; i < VL; i++) x[i] = i;
  return x;
}
static inline vi below(int64_t n) { return lanes() < (vi){} + (int)n; } /* the first n lanes */

/* ---------------------------------------------------------------- copies with padding */

/* Copies n rows of W numbers, `stride` apart, times scale, to rows of Wp numbers padded with zeros. */
static void take(const float *x, int64_t stride, int64_t n, int64_t W, int64_t Wp, float scale, float *to) {
  for (int64_t i = 0; i < n; i++) {
    for (int64_t d = 0; d < W; d++) to[i * Wp + d] = x[i * stride + d] * scale;
    for (int64_t d = W; d < Wp; d++) to[i * Wp + d] = 0;
  }
}

/* The inverse of `take`. */
static void give(const float *x, int64_t Wp, int64_t n, int64_t W, float scale, float *to, int64_t stride) {
  for (int64_t i = 0; i < n; i++)
    for (int64_t d = 0; d < W; d++) to[i * stride + d] = x[i * Wp + d] * scale;
}

/* Transposes x [n, Wp] to [Wp, Kp], with zeros after the first n columns. */
static void turn(const float *x, int64_t n, int64_t Wp, int64_t Kp, float *to) {
#if defined(__GNUC__) && !defined(__clang__)
  vi line = lanes();
  for (int64_t i = 0; i < Kp; i += VL)
    for (int64_t d = 0; d < Wp; d += VL) {
      vf r[VL];
#pragma GCC unroll 16
      for (int a = 0; a < VL; a++) r[a] = i + a < n ? vload(x + (i + a) * Wp + d) : (vf){};
#pragma GCC unroll 4
      for (int s = 1; s < VL; s *= 2) {
        vi far = ((line & s) != 0) & (VL - s), low = line + far, high = line + s + far;
#pragma GCC unroll 16
        for (int a = 0; a < VL; a++)
          if (!(a & s)) {
            vf p = r[a], q = r[a + s];
            r[a] = __builtin_shuffle(p, q, low), r[a + s] = __builtin_shuffle(p, q, high);
          }
      }
#pragma GCC unroll 16
      for (int a = 0; a < VL; a++) vstore(to + (d + a) * Kp + i, r[a]);
    }
#else
  for (int64_t d = 0; d < Wp; d++)
    for (int64_t i = 0; i < Kp; i++) to[d * Kp + i] = i < n ? x[i * Wp + d] : 0;
#endif
}

/* ---------------------------------------------------------------- one segment */

typedef struct { /* a segment. start: packed position; parent: index among the spans, -1 for none; above: prefix length,
                    the tokens of all ancestors; owed: sum of the prefix lengths of all spans before it */
  int64_t start, length, parent, above, owed;
} span;

typedef struct { /* sizes: rows of q and o have H W numbers, rows of k and v KH W */
  int64_t H, KH, W;
  float scale;
} shape;

/* Gathers the keys (or values) of span i and its ancestors, in sequence order. */
static void gather(const float *x, const shape *s, const span *spans, int64_t i, int64_t head, int64_t Wp, float *to) {
  int64_t row = s->KH * s->W;
  for (; i >= 0; i = spans[i].parent) {
    const span *g = spans + i;
    take(x + g->start * row + head * s->W, row, g->length, s->W, Wp, 1, to + g->above * Wp);
  }
}

/* Takes memory for n numbers from a thread's scratch. */
static float *cut(float **room, int64_t n) {
  float *x = *room;
  *room += up(n);
  return x;
}

/* Floats of scratch that one thread needs for segments of at most `keys` keys. */
int64_t attend_room(int64_t keys, int64_t W) {
  int64_t Wp = up(W), Kp = up(keys);
  return 5 * Kp * Wp + 2 * ROWS * Kp + 3 * ROWS * Wp + ROWS;
}

/* Softmax without its division: of row i of the scores [rows, width], the first `limit` + i columns are visible and
   become exp(x - maximum), the others 0. Writes each row's log-sum-exp, and 1 / sum to `scale`. */
static void soften(float *S, int64_t width, int64_t rows, int64_t limit, float *lse, int64_t stride, float *scale) {
  for (int64_t i = 0; i < rows; i++, limit++) {
    float *row = S + i * width;
    int64_t whole = limit / VL * VL;
    vi seen = below(limit - whole);
    vf high = vset(-INFINITY), sum = {};
    for (int64_t v = 0; v < whole; v += VL) high = vmax(high, vload(row + v));
    if (whole < limit) high = vmax(high, (vf)(((vi)vload(row + whole) & seen) | ((vi)vset(-INFINITY) & ~seen)));
    float top = vtop(high);
    for (int64_t v = 0; v < whole; v += VL) {
      vf e = vexp(vload(row + v) - top);
      vstore(row + v, e), sum += e;
    }
    for (int64_t v = whole; v < width; v += VL) {
      vf e = v < limit ? (vf)((vi)vexp(vload(row + v) - top) & seen) : (vf){};
      vstore(row + v, e), sum += e;
    }
    float total = vsum(sum);
    lse[i * stride] = top + logf(total), scale[i] = 1 / total;
  }
}

static void forward(const float *q, const float *k, const float *v, const shape *s, const span *spans, int64_t span_at,
                    int64_t head, float *o, float *lse, float *room) {
  const span *g = spans + span_at;
  int64_t W = s->W, Wp = up(W), P = g->above, keys = P + g->length, Kp = up(keys), row = s->H * W;
  float *V = cut(&room, keys * Wp), *K = cut(&room, keys * Wp), *KT = cut(&room, Wp * Kp), *S = cut(&room, ROWS * Kp);
  float *Q = cut(&room, ROWS * Wp), *O = cut(&room, ROWS * Wp), *each = cut(&room, ROWS);
  gather(v, s, spans, span_at, head, Wp, V), gather(k, s, spans, span_at, head, Wp, K), turn(K, keys, Wp, Kp, KT);
  int64_t group = s->H / s->KH;
  for (int64_t h = head * group; h < (head + 1) * group; h++)
    for (int64_t at = 0; at < g->length; at += ROWS) {
      int64_t n = least(ROWS, g->length - at), seen = P + at + n, width = up(seen), t = g->start + at;
      take(q + t * row + h * W, row, n, W, Wp, s->scale, Q);
      plain(Q, Wp, 1, n, Wp, width, KT, Kp, S, width, 0);
      soften(S, width, n, P + at + 1, lse + t * s->H + h, s->H, each);
      plain(S, width, 1, n, seen, Wp, V, Wp, O, Wp, 0);
      for (int64_t i = 0; i < n; i++) give(O + i * Wp, Wp, 1, W, each[i], o + (t + i) * row + h * W, row);
    }
}

/* Overwrites scores S with probabilities, and D = dO V^T with the gradient with respect to the scores. */
static void harden(float *S, float *D, int64_t width, int64_t rows, int64_t limit, const float *lse, int64_t stride,
                   const float *delta) {
  for (int64_t i = 0; i < rows; i++, limit++) {
    float *p = S + i * width, *d = D + i * width, l = lse[i * stride];
    for (int64_t v = 0; v < width; v += VL) {
      vf e = v < limit ? vexp(vload(p + v) - l) : (vf){};
      if (v < limit && v + VL > limit) e = (vf)((vi)e & below(limit - v));
      vstore(p + v, e), vstore(d + v, e * (vload(d + v) - delta[i]));
    }
  }
}

static void backward(const float *q, const float *k, const float *v, const float *o, const float *lse, const float *go,
                     const shape *s, const span *spans, int64_t span_at, int64_t head, float *dq, float *dk, float *dv,
                     float *owed, float *room) {
  const span *g = spans + span_at;
  int64_t W = s->W, Wp = up(W), P = g->above, keys = P + g->length, Kp = up(keys), row = s->H * W;
  float *K = cut(&room, keys * Wp), *KT = cut(&room, Wp * Kp), *VT = cut(&room, Wp * Kp), *V = cut(&room, keys * Wp);
  float *dK = cut(&room, keys * Wp), *dV = V, *S = cut(&room, ROWS * Kp), *D = cut(&room, ROWS * Kp);
  float *Q = cut(&room, ROWS * Wp), *dO = cut(&room, ROWS * Wp), *dQ = cut(&room, ROWS * Wp), *delta = cut(&room, ROWS);
  gather(k, s, spans, span_at, head, Wp, K), turn(K, keys, Wp, Kp, KT);
  gather(v, s, spans, span_at, head, Wp, V), turn(V, keys, Wp, Kp, VT); /* from here on, dV uses V's memory */
  memset(dK, 0, keys * Wp * 4), memset(dV, 0, keys * Wp * 4);
  int64_t group = s->H / s->KH;
  for (int64_t h = head * group; h < (head + 1) * group; h++)
    for (int64_t at = 0; at < g->length; at += ROWS) {
      int64_t n = least(ROWS, g->length - at), seen = P + at + n, width = up(seen), t = g->start + at;
      take(q + t * row + h * W, row, n, W, Wp, s->scale, Q), take(go + t * row + h * W, row, n, W, Wp, 1, dO);
      for (int64_t i = 0; i < n; i++) {
        const float *a = o + (t + i) * row + h * W;
        float sum = 0;
        for (int64_t d = 0; d < W; d++) sum += dO[i * Wp + d] * a[d];
        delta[i] = sum;
      }
      plain(Q, Wp, 1, n, Wp, width, KT, Kp, S, width, 0), plain(dO, Wp, 1, n, Wp, width, VT, Kp, D, width, 0);
      harden(S, D, width, n, P + at + 1, lse + t * s->H + h, s->H, delta);
      plain(D, width, 1, n, seen, Wp, K, Wp, dQ, Wp, 0);
      give(dQ, Wp, n, W, s->scale, dq + t * row + h * W, row);
      plain(D, 1, width, seen, n, Wp, Q, Wp, dK, Wp, 1), plain(S, 1, width, seen, n, Wp, dO, Wp, dV, Wp, 1);
    }
  int64_t narrow = s->KH * W, own = g->start * narrow + head * W, above = g->owed * 2 * narrow + head * W;
  give(dK + P * Wp, Wp, g->length, W, 1, dk + own, narrow), give(dV + P * Wp, Wp, g->length, W, 1, dv + own, narrow);
  give(dK, Wp, P, W, 1, owed + above, 2 * narrow), give(dV, Wp, P, W, 1, owed + above + narrow, 2 * narrow);
}

/* Adds the gradients that span i's backward stored for its ancestors to theirs. */
static void pay(const float *owed, const shape *s, const span *spans, int64_t i, int64_t head, float *dk, float *dv) {
  int64_t narrow = s->KH * s->W, at = head * s->W;
  const float *from = owed + spans[i].owed * 2 * narrow + at;
  for (int64_t p = spans[i].parent; p >= 0; p = spans[p].parent)
    for (int64_t t = 0; t < spans[p].length; t++) {
      const float *x = from + (spans[p].above + t) * 2 * narrow;
      float *a = dk + (spans[p].start + t) * narrow + at, *b = dv + (spans[p].start + t) * narrow + at;
      for (int64_t d = 0; d < s->W; d++) a[d] += x[d], b[d] += x[narrow + d];
    }
}

/* ---------------------------------------------------------------- all segments and heads */

#define IN_PARALLEL _Pragma("omp parallel for schedule(dynamic) num_threads((int)threads) if (threads > 1)")

/* spans [S]: tree by tree, those with most work first. scratch [threads, room]. */
void attend_forward(const float *q, const float *k, const float *v, const span *spans, int64_t S, int64_t H, int64_t KH,
                    int64_t W, float scale, float *o, float *lse, float *scratch, int64_t room, int64_t threads) {
  shape s = {H, KH, W, scale};
  IN_PARALLEL
  for (int64_t piece = 0; piece < S * KH; piece++)
    forward(q, k, v, &s, spans, piece / KH, piece % KH, o, lse, scratch + thread_number() * room);
}

/* families [n + 1]: index of each tree's first span. owed [sum of all prefix lengths, 2, KH, W]: gradients for ancestors'
   keys and values. */
void attend_backward(const float *q, const float *k, const float *v, const float *o, const float *lse, const float *go,
                     const span *spans, const int64_t *families, int64_t n, int64_t H, int64_t KH, int64_t W, float scale,
                     float *dq, float *dk, float *dv, float *owed, float *scratch, int64_t room, int64_t threads) {
  shape s = {H, KH, W, scale};
  IN_PARALLEL
  for (int64_t piece = 0; piece < families[n] * KH; piece++)
    backward(q, k, v, o, lse, go, &s, spans, piece / KH, piece % KH, dq, dk, dv, owed, scratch + thread_number() * room);
  IN_PARALLEL
  for (int64_t piece = 0; piece < n * KH; piece++)
    for (int64_t i = families[piece / KH]; i < families[piece / KH + 1]; i++)
      pay(owed, &s, spans, i, piece % KH, dk, dv);
}
