/* One decoding step of the Llama layout on the CPU, and sampling a token.

     x = x + O attend(rope(Q h), rope(K h), V h),  h = norm(x)
     x = x + D (silu(G h) * U h),                  h = norm(x)                  logits = E norm(x)

   The oracle is decoding/llama.py; the key-value caches are those of decoding/shared_cache.py. Attention processes
   the rows of one prompt together: their queries are multiplied with the prompt's keys in one product.

   Matrices, keys and values are in float32, or in bfloat16 (`half`), and then matrix inputs are rounded too. */
#include "half.h"

typedef struct {
  int64_t layers, D, H, KH, W, I, V, threads, half;
  float eps;
  const float *embedding, *norm, *head_bias, *cos, *sin;
  const void *head, **qkv, **out, **gate, **up, **down;
  const float **norm1, **qkv_bias, **q_norm, **k_norm, **out_bias, **norm2, **gate_bias, **up_bias, **down_bias;
} Model;

typedef struct {
  int64_t A, room, P, units; /* A: rows; room: tokens in a row's own cache; P: tokens in the prompts' cache; units:
                                groups of rows of one prompt that attend together */
  const int64_t *tokens, *positions, *own; /* own: index of each row's new token in its own cache */
  const int64_t *rows, *unit_first, *unit_rows, *unit_prompt, *prompt_lengths;
  void **own_keys, **own_values;             /* [slots * KH, W, room], [slots * KH, room, W] a layer */
  const void **prompt_keys, **prompt_values; /* [p * KH, W, P], [p * KH, P, W] a layer */
} Turn;

/* Packs weights [N, K] into panels [ceil(N / NB)][K][NB], padded with zeros after the last column. */
void pack(const float *w, int64_t N, int64_t K, float *to, int64_t threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t p = 0; p < (N + NB - 1) / NB; p++) {
    float *out = to + p * K * NB;
    int64_t n = N - p * NB < NB ? N - p * NB : NB;
    for (int64_t k0 = 0; k0 < K; k0 += 16) { /* in blocks of 16, so that reads and writes use whole cache lines */
      int64_t k1 = k0 + 16 < K ? k0 + 16 : K;
      for (int64_t j = 0; j < NB; j++)
        for (int64_t k = k0; k < k1; k++) out[k * NB + j] = j < n ? w[(p * NB + j) * K + k] : 0;
    }
  }
}

/* The same in bfloat16, [ceil(N / NB)][deep(K) / 2][NB][2]. */
void pack_half(const float *w, int64_t N, int64_t K, uint16_t *to, int64_t threads) {
  int64_t d = deep(K);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t p = 0; p < (N + NB - 1) / NB; p++) {
    uint16_t *out = to + p * d * NB;
    int64_t n = N - p * NB < NB ? N - p * NB : NB;
    memset(out, 0, d * NB * 2);
    for (int64_t k0 = 0; k0 < K; k0 += 32)
      for (int64_t j = 0; j < n; j++)
        for (int64_t k = k0; k < k0 + 32 && k < K; k++)
          out[k / 2 * 2 * NB + j * 2 + k % 2] = lower_one(w[(p * NB + j) * K + k]);
  }
}

int64_t panel_width(void) { return NB; }
int64_t vector_width(void) { return VL; }
int64_t deep_width(void) { return DEEP; }
int64_t tall_width(void) { return STRIDE; }

static void norm_row(const float *x, const float *w, int64_t D, float eps, float *to) {
  vf s = {};
  for (int64_t d = 0; d < D; d += VL) s += vload(x + d) * vload(x + d);
  float r = 1 / sqrtf(vsum(s) / D + eps);
  for (int64_t d = 0; d < D; d += VL) vstore(to + d, vload(x + d) * r * vload(w + d));
}

static void rotate(float *x, const float *cos, const float *sin, int64_t W) {
  int64_t half = W / 2; /* the first half of sin is negated */
  for (int64_t i = 0; i < half; i++) {
    float a = x[i], b = x[i + half];
    x[i] = a * cos[i] + b * sin[i];
    x[i + half] = b * cos[i + half] + a * sin[i + half];
  }
}

/* Rounds the input of a matrix product to bfloat16: rows [A, deep(K)], padded with zeros. Inside a parallel region. */
static void lowered(const float *h, int64_t lda, int64_t A, int64_t K, uint16_t *low) {
  int64_t d = deep(K), whole = K / VL * VL;
#pragma omp for
  for (int64_t a = 0; a < A; a++) {
    lower(h + a * lda, whole, low + a * d);
    for (int64_t k = whole; k < d; k++) low[a * d + k] = k < K ? lower_one(h[a * lda + k]) : 0;
  }
}

/* Address of element i of an array in float32 or bfloat16. */
static inline const void *at_number(const void *p, int64_t i, int half) { return (const char *)p + i * (half ? 2 : 4); }

/* Panel p of a matrix, or null after the last one. */
static const void *panel_at(int half, const void *w, int64_t K, int64_t p, int64_t panels) {
  return p < panels ? at_number(w, p * (half ? deep(K) : K) * NB, half) : 0;
}

/* C [A, NB] (+)= h B for one panel B. behind: the panel that will be read next, or null. */
static void one_panel(int half, const float *h, int64_t lda, const uint16_t *low, int64_t A, int64_t K, const void *B,
                      float *C, int64_t ldc, int add, const void *behind) {
  if (half) half_panel(low, deep(K), A, deep(K), B, C, ldc, add, behind);
  else panel(h, lda, A, K, B, C, ldc, add, behind);
}

/* C [A, N] (+)= h W + bias, panels divided among threads. low: memory for h in bfloat16. Inside a parallel region. */
static void product(int half, const float *h, int64_t lda, int64_t A, int64_t K, int64_t N, const void *w,
                    const float *bias, float *C, int64_t ldc, int add, uint16_t *low) {
  int64_t panels = (N + NB - 1) / NB;
  if (half) lowered(h, lda, A, K, low);
#pragma omp for schedule(static)
  for (int64_t p = 0; p < panels; p++) {
    for (int64_t m = 0; m < A; m += TILE) {
      int64_t M = A - m < TILE ? A - m : TILE;
      one_panel(half, h + m * lda, lda, low + m * deep(K), M, K, panel_at(half, w, K, p, panels), C + m * ldc + p * NB,
                ldc, add, panel_at(half, w, K, p + 1, panels));
    }
    if (bias)
      for (int64_t m = 0; m < A; m++)
        for (int64_t j = p * NB; j < (p + 1) * NB && j < N; j++) C[m * ldc + j] += bias[j];
  }
}

/* C [A, I] = silu(h G + g) * (h U + u), panel by panel. Inside a parallel region. */
static void gated(int half, const float *h, int64_t lda, int64_t A, int64_t K, int64_t I, const void *gate,
                  const float *g, const void *up, const float *u, float *C, int64_t ldc, uint16_t *low) {
  int64_t panels = (I + NB - 1) / NB;
  if (half) lowered(h, lda, A, K, low);
#pragma omp for schedule(static)
  for (int64_t p = 0; p < panels; p++) {
    const void *G = panel_at(half, gate, K, p, panels), *U = panel_at(half, up, K, p, panels);
    float a[TILE * NB], b[TILE * NB];
    for (int64_t m = 0; m < A; m += TILE) {
      int64_t M = A - m < TILE ? A - m : TILE;
      const uint16_t *from = low + m * deep(K);
      one_panel(half, h + m * lda, lda, from, M, K, G, a, NB, 0, U);
      one_panel(half, h + m * lda, lda, from, M, K, U, b, NB, 0, panel_at(half, gate, K, p + 1, panels));
      for (int64_t i = 0; i < M; i++)
        for (int64_t j = 0; j < NB; j += VL) {
          vf x = vload(a + i * NB + j), y = vload(b + i * NB + j);
          if (g || u)
            for (int l = 0; l < VL; l++) {
              int64_t c = p * NB + j + l;
              if (c < I) x[l] += g ? g[c] : 0, y[l] += u ? u[c] : 0;
            }
          vstore(C + (m + i) * ldc + p * NB + j, x / (1.0f + vexp(-x)) * y);
        }
    }
  }
}

/* C [A, N] = h W + bias, for prefill. ldc: a multiple of NB; C has memory for tall(A) rows; low [tall(A), deep(K)]. */
void multiply(const float *h, int64_t A, int64_t K, int64_t N, const void *w, const float *bias, float *C, int64_t ldc,
              uint16_t *low, int64_t half, int64_t threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    if (half && tiles()) tiles_begin();
    product((int)half, h, K, A, K, N, w, bias, C, ldc, 0, low);
    if (half && tiles()) tiles_end();
  }
}

/* ---------------------------------------------------------------- attention */

/* C [M, N] (+)= A [M, K] B [K, N], B in float32 or bfloat16, in row-major order. */
static void meet(int half, const float *A, int64_t rs, int64_t M, int64_t K, int64_t N, const void *B, int64_t ldb,
                 float *C, int64_t ldc, int add) {
  if (half) lying(A, rs, 1, M, K, N, B, 1, ldb, C, ldc, add);
  else plain(A, rs, 1, M, K, N, B, ldb, C, ldc, add);
}

/* Prefetches a row's own keys or values: `lines` runs of `n` numbers, `apart` numbers from each other. */
static inline void ahead(int half, const void *p, int64_t lines, int64_t n, int64_t apart) {
  for (int64_t i = 0; i < lines; i++)
    for (int64_t j = 0; j < n; j += half ? 32 : 16) __builtin_prefetch(at_number(p, i * apart + j, half), 0, 2);
}

/* Attention of the rows of one unit (all of one prompt) for one key head. S: memory for scores, queries and outputs. */
static void attend(const Model *m, const Turn *t, int64_t layer, int64_t unit, int64_t h, const float *qkv, int64_t ldq,
                   float *out, int64_t ldo, float *S) {
  int64_t g = m->H / m->KH, W = m->W, P = t->P, R = t->unit_rows[unit], p = t->unit_prompt[unit];
  const int64_t *rows = t->rows + t->unit_first[unit];
  const void *keys = t->own_keys[layer], *values = t->own_values[layer];
  const int half = (int)m->half;
  int64_t longest = 0, plen = t->prompt_lengths[p];
  for (int64_t r = 0; r < R; r++) longest = t->own[rows[r]] + 1 > longest ? t->own[rows[r]] + 1 : longest;
  int64_t own = (longest + VL - 1) / VL * VL, L = P + own;
  float *Q = S + R * g * L, *O = Q + R * g * W;
  for (int64_t r = 0; r < R; r++) memcpy(Q + r * g * W, qkv + rows[r] * ldq + h * g * W, g * W * 4);
  meet(half, Q, W, R * g, W, P, at_number(t->prompt_keys[layer], (p * m->KH + h) * W * P, half), P, S, L, 0);
  float top[R * g], sum[R * g];
  for (int64_t r = 0; r < R; r++) {
    int64_t n = t->own[rows[r]] + 1, to = (n + VL - 1) / VL * VL, slot = rows[r] * m->KH + h;
    ahead(half, at_number(values, slot * t->room * W, half), 1, n * W, 0);
    if (r + 1 < R) ahead(half, at_number(keys, (rows[r + 1] * m->KH + h) * W * t->room, half), W, to, t->room);
    meet(half, Q + r * g * W, W, g, W, to, at_number(keys, slot * W * t->room, half), t->room, S + r * g * L + P, L, 0);
    for (int64_t i = r * g; i < (r + 1) * g; i++) {
      float *s = S + i * L;
      for (int64_t c = plen; c < P; c++) s[c] = -INFINITY;
      for (int64_t c = P + n; c < P + to; c++) s[c] = -INFINITY;
      vf high = vset(-INFINITY), all = {};
      for (int64_t c = 0; c < P + to; c += VL) high = vmax(high, vload(s + c));
      top[i] = vtop(high);
      for (int64_t c = 0; c < P + to; c += VL) {
        vf e = vexp(vload(s + c) - top[i]);
        all += e;
        vstore(s + c, e);
      }
      sum[i] = vsum(all);
    }
  }
  meet(half, S, L, R * g, plen, W, at_number(t->prompt_values[layer], (p * m->KH + h) * P * W, half), W, O, W, 0);
  for (int64_t r = 0; r < R; r++) {
    int64_t n = t->own[rows[r]] + 1, slot = rows[r] * m->KH + h;
    meet(half, S + r * g * L + P, L, g, n, W, at_number(values, slot * t->room * W, half), W, O + r * g * W, W, 1);
    for (int64_t i = 0; i < g; i++) {
      float *to = out + rows[r] * ldo + (h * g + i) * W, *from = O + (r * g + i) * W, part = 1 / sum[r * g + i];
      for (int64_t d = 0; d < W; d += VL) vstore(to + d, vload(from + d) * part);
    }
  }
}

/* Norms and rotates a row's queries and keys, and writes its new key and value to its own cache. */
static void place(const Model *m, const Turn *t, int64_t layer, int64_t a, float *x) {
  int64_t W = m->W, both = m->H + m->KH, at = t->own[a];
  const float *cos = m->cos + t->positions[a] * W, *sin = m->sin + t->positions[a] * W;
  for (int64_t h = 0; h < both; h++) {
    const float **norms = h < m->H ? m->q_norm : m->k_norm;
    if (norms[layer]) norm_row(x + h * W, norms[layer], W, m->eps, x + h * W);
    rotate(x + h * W, cos, sin, W);
  }
  for (int64_t h = 0; h < m->KH; h++) {
    int64_t slot = a * m->KH + h;
    int64_t to_key = slot * W * t->room + at, to_value = (slot * t->room + at) * W;
    const float *k = x + (m->H + h) * W, *v = x + (both + h) * W;
    if (m->half) {
      uint16_t *keys = (uint16_t *)t->own_keys[layer] + to_key;
      for (int64_t d = 0; d < W; d++) keys[d * t->room] = lower_one(k[d]);
      lower(v, W, (uint16_t *)t->own_values[layer] + to_value);
    } else {
      float *keys = (float *)t->own_keys[layer] + to_key;
      for (int64_t d = 0; d < W; d++) keys[d * t->room] = k[d];
      memcpy((float *)t->own_values[layer] + to_value, v, W * 4);
    }
  }
}

/* Logits [A, wide(V)] of every row's next token. work: [A, wide(D) * 2 + wide((H + 2 KH) W) + wide(H W) + wide(I)]
   floats; scratch: `per_thread` floats for each thread, for attention; low: [A, deep(widest input)]. With half, all of
   them and the logits have tall(A) rows. */
void step(const Model *m, const Turn *t, float *work, float *scratch, int64_t per_thread, uint16_t *low,
          float *logits) {
  int64_t A = t->A, D = m->D, Q = (m->H + 2 * m->KH) * m->W, HW = m->H * m->W, T = m->half ? tall(A) : A;
  int64_t ldx = wide(D), ldq = wide(Q), ldo = wide(HW), ldi = wide(m->I);
  float *x = work, *h = x + T * ldx, *qkv = h + T * ldx, *att = qkv + T * ldq, *act = att + T * ldo;
  const int half = (int)m->half;
#pragma omp parallel num_threads(m->threads) if (m->threads > 1)
  {
    if (half && tiles()) tiles_begin();
    float *S = scratch + thread_number() * per_thread;
#pragma omp for
    for (int64_t a = 0; a < A; a++) memcpy(x + a * ldx, m->embedding + t->tokens[a] * D, D * 4);
    for (int64_t l = 0; l < m->layers; l++) {
#pragma omp for
      for (int64_t a = 0; a < A; a++) norm_row(x + a * ldx, m->norm1[l], D, m->eps, h + a * ldx);
      product(half, h, ldx, A, D, Q, m->qkv[l], m->qkv_bias[l], qkv, ldq, 0, low);
#pragma omp for
      for (int64_t a = 0; a < A; a++) place(m, t, l, a, qkv + a * ldq);
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < t->units * m->KH; i++)
        attend(m, t, l, i / m->KH, i % m->KH, qkv, ldq, att, ldo, S);
      product(half, att, ldo, A, HW, D, m->out[l], m->out_bias[l], x, ldx, 1, low);
#pragma omp for
      for (int64_t a = 0; a < A; a++) norm_row(x + a * ldx, m->norm2[l], D, m->eps, h + a * ldx);
      gated(half, h, ldx, A, D, m->I, m->gate[l], m->gate_bias[l], m->up[l], m->up_bias[l], act, ldi, low);
      product(half, act, ldi, A, m->I, D, m->down[l], m->down_bias[l], x, ldx, 1, low);
    }
#pragma omp for
    for (int64_t a = 0; a < A; a++) norm_row(x + a * ldx, m->norm, D, m->eps, h + a * ldx);
    product(half, h, ldx, A, D, m->V, m->head, m->head_bias, logits, wide(m->V), 0, low);
    if (half && tiles()) tiles_end();
  }
}

/* Samples from softmax(logits / temperature) by inverse CDF: the token whose interval of the cumulative weights contains
   u * total, found block by block, and its log-probability. logits [A, ld]; u [A]: uniform random numbers in [0, 1). */
void draw(const float *logits, int64_t A, int64_t V, int64_t ld, double temperature, const double *u, int64_t *tokens,
          float *logps, int64_t threads) {
  enum { BLOCK = 128 };
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t a = 0; a < A; a++) {
    const float *z = logits + a * ld;
    float scale = (float)(1 / temperature), top = -INFINITY;
    vf high = vset(-INFINITY);
    int64_t whole = V / VL * VL, blocks = (V + BLOCK - 1) / BLOCK;
    for (int64_t v = 0; v < whole; v += VL) high = vmax(high, vload(z + v));
    top = vtop(high);
    for (int64_t v = whole; v < V; v++) top = z[v] > top ? z[v] : top;
    double ends[blocks], total = 0;
    float e[BLOCK];
#define WEIGHTS(b)                                                                          \
  int64_t from = (b) * BLOCK, n = V - from < BLOCK ? V - from : BLOCK;                      \
  for (int64_t i = 0; i < BLOCK; i += VL) {                                                 \
    vf x = vset(-INFINITY);                                                                 \
    if (i + VL <= n) x = vload(z + from + i);                                               \
    else                                                                                    \
      for (int64_t l = 0; i + l < n; l++) x[l] = z[from + i + l];                           \
    vstore(e + i, vexp((x - top) * scale));                                                 \
  }
    for (int64_t b = 0; b < blocks; b++) {
      WEIGHTS(b)
      vf s = {};
      for (int64_t i = 0; i < BLOCK; i += VL) s += vload(e + i);
      total += vsum(s);
      ends[b] = total;
    }
    double target = u[a] * total;
    int64_t b = 0, last = 0;
    while (b < blocks - 1 && ends[b] <= target) b++;
    WEIGHTS(b)
    double at = b ? ends[b - 1] : 0;
    int64_t token = -1;
    for (int64_t i = 0; i < n; i++) {
      if (e[i] > 0) last = i;
      at += e[i];
      if (token < 0 && at > target) token = i;
    }
    if (token < 0 || e[token] <= 0) token = last; /* rounding can leave the target beyond the end of the block */
    tokens[a] = from + token;
    logps[a] = (float)(((double)z[from + token] - top) * scale - log(total));
  }
}
