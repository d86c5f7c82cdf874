/* What lies between the 8-bit products of a block, a token at a time; the same as class Torch of steps.py, in its order.

   Reductions are over integers, or marked for SIMD, so that no flag that lets a compiler assume finite numbers is
   needed: a token that holds NaN gets the step NaN. Threads are those of torch's own OpenMP. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Sizes are batch, heads, queries, keys and head width; strides in numbers, that of the last dimension is 1. */
typedef struct {
    const float *q, *k, *v;
    float *out; /* (batch, queries, heads, width) */
    long sizes[5], q_strides[3], k_strides[3], v_strides[3], runs;
    float scale; /* of q k^T */
} Heads;

/* x (rows, depth) times weights, bias (columns), and what is added, (rows, columns). */
typedef struct {
    const float *x, *w, *bias, *add; /* w: for every PANEL columns (depth, PANEL), bias: as many, both with zeros behind */
    float *out;
    long rows, columns, depth;
} Product;

typedef struct {
    float *x; /* written to by `activate` alone */
    const float *step, *weight, *bias, *add;
    float *out, *steps;
    uint8_t *bytes;
    const Heads *heads;
    const Product *product;
    long rows, width;
    float top, epsilon; /* the largest whole number; of the layer norm */
    int kind;           /* of the activation, in the order of KINDS */
} Job;

static const float TINY = 1e-12f, SHIFT = 0.1702f;

static inline float as_float(int32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline int32_t magnitude(float x) { int32_t bits; memcpy(&bits, &x, 4); return bits & 0x7fffffff; }

/* The largest |x|; of numbers without their sign, order is that of their bits, and NaN is above all. */
static inline float peak(const float *x, long n) {
    int32_t most = 0;
    for (long i = 0; i < n; i++) { int32_t m = magnitude(x[i]); most = m > most ? m : most; }
    float found = as_float(most);
    return found < TINY ? TINY : found;
}

/* 2^x to 8e-8 of it, of what is within -120 and 127. */
static inline float power_of_two(float x) {
    float whole = rintf(x), r = x - whole;
    float p = 1.3276469e-3f;
    p = p * r + 9.6755419e-3f;
    p = p * r + 5.5507135e-2f;
    p = p * r + 2.4022120e-1f;
    p = p * r + 6.9314694e-1f;
    p = p * r + 1.0000001f;
    return p * as_float((int32_t)((uint32_t)((int32_t)whole + 127) << 23));
}

/* e^x within -80 and 88; what comes of it in the functions below is no denormal number, which are slow. */
static inline float falling(float x) { return power_of_two((x < -80 ? -80 : x) * 1.44269504f); } /* of what is below 88 */
static inline float exponential(float x) { return falling(x > 88 ? 88 : x); }

/* x Phi(x). Phi(-|x|) is a power of two whose exponent is nearly a parabola: a polynomial of least error from 0 to 9, where
   it counts for as much as x Phi(x) changes by it, at most 1e-8. No division, which takes as long as all the rest. */
static inline float gelu(float x) {
    float z = fabsf(x);
    z = z > 9 ? 9 : z;
    float e = 1.4834246e-7f;
    e = e * z - 3.8859201e-6f;
    e = e * z + 3.9017147e-5f;
    e = e * z - 1.6412649e-4f;
    e = e * z - 2.1465794e-4f;
    e = e * z + 7.1843479e-3f;
    e = e * z - 5.2589376e-2f;
    e = e * z - 4.5917471e-1f;
    e = e * z - 1.1511096f;
    e = e * z - 9.9999990e-1f;
    float tail = power_of_two(e);
    return x * (x < 0 ? tail : 1 - tail);
}
static inline float tanh_gelu(float x) { return x / (1 + exponential(-1.5957691f * (x + 0.044715f * x * x * x))); }
static inline float quick_gelu(float x) { return x / (1 + exponential(-1.702f * x)); }
static inline float silu(float x) { return x / (1 + exponential(-x)); }

static inline void lower_row(const float *x, uint8_t *bytes, float *step, long n, float top) {
    float most = peak(x, n), scale = top / most, middle = top + 1.5f;
    for (long i = 0; i < n; i++) bytes[i] = (uint8_t)(int32_t)(x[i] * scale + middle);
    *step = most / top;
}

static void lower_rows(const Job *j, long from, long to) {
    for (long m = from; m < to; m++)
        lower_row(j->x + m * j->width, j->bytes + m * j->width, j->steps + m, j->width, j->top);
}

static void norm_rows(const Job *j, long from, long to) {
    long n = j->width;
    float row[n];
    for (long m = from; m < to; m++) {
        const float *x = j->x + m * n;
        float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
        for (long i = 0; i < n; i++) sum += x[i];
        float mean = sum / n;
#pragma omp simd reduction(+ : squares)
        for (long i = 0; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
        float over = 1 / sqrtf(squares / n + j->epsilon);
        for (long i = 0; i < n; i++) row[i] = (x[i] - mean) * over * j->weight[i] + j->bias[i];
        lower_row(row, j->bytes + m * n, j->steps + m, n, j->top);
    }
}

/* The sum of n numbers, of as many as a vector has at a time: one after the other they would wait for each other. */
static inline float sum_of(const float *x, long n) {
    float lanes[16] = {0};
    long i = 0;
    for (; i + 16 <= n; i += 16)
        for (int l = 0; l < 16; l++) lanes[l] += x[i + l];
    for (int l = 0; i < n; i++, l++) lanes[l] += x[i];
    for (int half = 8; half; half /= 2)
        for (int l = 0; l < half; l++) lanes[l] += lanes[l + half];
    return lanes[0];
}

#define ACTIVATE(NAME, ACTIVATION)                                                                                     \
    static void NAME(const Job *j, long from, long to) {                                                               \
        long n = j->width;                                                                                             \
        float row[n];                                                                                                  \
        for (long m = from; m < to; m++) {                                                                             \
            const float *x = j->x + m * n, *bias = j->bias;                                                            \
            uint8_t *bytes = j->bytes + m * n;                                                                         \
            float step = j->step[m];                                                                                   \
            for (long i = 0; i < n; i++) row[i] = ACTIVATION(x[i] * step + bias[i]) + SHIFT;                           \
            float unit = peak(row, n) / j->top, whole = floorf(SHIFT / unit);                                          \
            unit = whole > 0 ? SHIFT / whole : unit;                                                                   \
            float scale = 1 / unit;                                                                                    \
            for (long i = 0; i < n; i++) bytes[i] = (uint8_t)(int32_t)(row[i] * scale + .5f);                          \
            j->steps[m] = unit;                                                                                        \
        }                                                                                                              \
    }
ACTIVATE(gelu_rows, gelu)
ACTIVATE(tanh_gelu_rows, tanh_gelu)
ACTIVATE(quick_gelu_rows, quick_gelu)

#define ACTIVATE_FLOAT32(NAME, ACTIVATION)                                                                             \
    static void NAME(const Job *j, long from, long to) {                                                               \
        long n = j->width;                                                                                             \
        for (long m = from; m < to; m++) {                                                                             \
            float *x = j->x + m * n;                                                                                   \
            const float *bias = j->bias;                                                                               \
            if (bias)                                                                                                  \
                for (long i = 0; i < n; i++) x[i] = ACTIVATION(x[i] + bias[i]);                                        \
            else                                                                                                       \
                for (long i = 0; i < n; i++) x[i] = ACTIVATION(x[i]);                                                  \
        }                                                                                                              \
    }
ACTIVATE_FLOAT32(gelu_float_rows, gelu)
ACTIVATE_FLOAT32(tanh_gelu_float_rows, tanh_gelu)
ACTIVATE_FLOAT32(silu_float_rows, silu)

static void scale_rows(const Job *j, long from, long to) {
    long n = j->width;
    for (long m = from; m < to; m++) {
        const float *x = j->x + m * n, *bias = j->bias, *add = j->add ? j->add + m * n : NULL;
        float *out = j->out + m * n, step = j->step[m];
        if (add)
            for (long i = 0; i < n; i++) out[i] = x[i] * step + bias[i] + add[i];
        else
            for (long i = 0; i < n; i++) out[i] = x[i] * step + bias[i];
    }
}

/* Attention of one head and a run of its queries at a time: softmax(q k^T / sqrt(d)) v, with q k^T of some queries only
   in memory. Every query is computed for itself, in the same order whatever is beside it. */
#if defined(__AVX512F__)
enum { LANES = 16, VECTORS = 4 };
#elif defined(__AVX__)
enum { LANES = 8, VECTORS = 2 };
#else
enum { LANES = 4, VECTORS = 2 };
#endif
enum { ROWS = 6, QUERIES = 48, AHEAD = 2 };
typedef float Vector __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

/* c = a b for ROWS rows of a and `vectors` vectors of b's columns; what is summed stays in registers. Caches are told of
   the next rows of b, and of what comes after this at `ahead`, AHEAD numbers for each row of b. */
static inline __attribute__((always_inline)) void block(
    const float *const *a, const float *b, float *c, long depth, long b_row, long c_row, const int vectors,
    const float *ahead) {
    Vector sum[ROWS][VECTORS] = {0};
    for (long k = 0; k < depth; k++, b += b_row) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors * LANES; v += 16) __builtin_prefetch(b + 8 * b_row + v);
        __builtin_prefetch(ahead + AHEAD * k, 0, 2);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) sum[r][v] += a[r][k] * ((const Vector *)b)[v];
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < vectors; v++) ((Vector *)(c + r * c_row))[v] = sum[r][v];
}

/* c (count, width) = a (count, depth) b (depth, width), `width` a multiple of LANES; c has room for whole blocks. */
static void multiply(const float *a, long a_row, const float *b, float *c, long count, long depth, long width) {
    for (long n = 0; n < width; n += VECTORS * LANES)
        for (long m = 0; m < count; m += ROWS) {
            const float *rows[ROWS];
            for (long r = 0; r < ROWS; r++) rows[r] = a + (m + r < count ? m + r : count - 1) * a_row;
            float *to = c + m * width + n;
            switch (width - n < VECTORS * LANES ? (width - n) / LANES : VECTORS) {
            case 1: block(rows, b + n, to, depth, width, width, 1, b); break;
            case 2: block(rows, b + n, to, depth, width, width, 2, b); break;
#if defined(__AVX512F__)
            case 3: block(rows, b + n, to, depth, width, width, 3, b); break;
            case 4: block(rows, b + n, to, depth, width, width, 4, b); break;
#endif
            }
        }
}

static void attend_rows(const Job *j, long from, long to) {
    const Heads *h = j->heads;
    long heads = h->sizes[1], queries = h->sizes[2], tokens = h->sizes[3], d = h->sizes[4];
    long keys = (tokens + LANES - 1) / LANES * LANES, width = (d + LANES - 1) / LANES * LANES;
    float *room = calloc(d * keys + tokens * width + QUERIES * (keys + width), sizeof(float));
    float *k_t = room, *v = k_t + d * keys, *logits = v + tokens * width, *mixed = logits + QUERIES * keys;
    for (long unit = from; unit < to; unit++) {
        long b = unit / h->runs / heads, a = unit / h->runs % heads, run = unit % h->runs;
        long first = queries * run / h->runs, last = queries * (run + 1) / h->runs;
        const float *q = h->q + b * h->q_strides[0] + a * h->q_strides[1];
        const float *k = h->k + b * h->k_strides[0] + a * h->k_strides[1];
        const float *values = h->v + b * h->v_strides[0] + a * h->v_strides[1];
        float *out = h->out + (b * queries * heads + a) * d;
        if (!room) { /* out of memory: nothing that could be taken for a result */
            for (long n = first; n < last; n++)
                for (long i = 0; i < d; i++) out[n * heads * d + i] = NAN;
            continue;
        }
        for (long n = 0; n < tokens; n += LANES) /* a square at a time, so that it stays in the nearest cache */
            for (long i = 0; i < d; i++) {
                const float *from = k + n * h->k_strides[2] + i;
                float *to = k_t + i * keys + n;
                if (tokens - n >= LANES)
#pragma omp simd
                    for (int m = 0; m < LANES; m++) to[m] = from[m * h->k_strides[2]] * h->scale;
                else
                    for (int m = 0; m < tokens - n; m++) to[m] = from[m * h->k_strides[2]] * h->scale;
            }
        for (long n = 0; n < tokens; n++) memcpy(v + n * width, values + n * h->v_strides[2], d * sizeof(float));
        for (long n = first; n < last; n += QUERIES) {
            long count = last - n < QUERIES ? last - n : QUERIES;
            multiply(q + n * h->q_strides[2], h->q_strides[2], k_t, logits, count, d, keys);
            float sums[QUERIES];
            for (long m = 0; m < count; m++) {
                float *row = logits + m * keys, most = row[0];
#pragma omp simd reduction(max : most)
                for (long i = 0; i < tokens; i++) most = row[i] > most ? row[i] : most;
                for (long i = 0; i < tokens; i++) row[i] = falling(row[i] - most);
                sums[m] = 1 / sum_of(row, tokens);
            }
            multiply(logits, keys, v, mixed, count, tokens, width);
            for (long m = 0; m < count; m++)
                for (long i = 0; i < d; i++) out[(n + m) * heads * d + i] = mixed[m * width + i] * sums[m];
        }
    }
    free(room);
}

/* Products: all rows by some columns at a time, few enough for their weights to stay in the second cache. A row is
   computed in the same order whatever is beside it. */
enum { PANEL = VECTORS * LANES, HELD = 150000 };
long panel(void) { return PANEL; }

static inline float none(float x) { return x; }
#define FINISH(NAME, ACTIVATION)                                                                                       \
    static void NAME(float *restrict tile, const float *restrict bias) {                                               \
        for (long m = 0; m < ROWS; m++)                                                                                \
            for (long i = 0; i < PANEL; i++) tile[m * PANEL + i] = ACTIVATION(tile[m * PANEL + i] + bias[i]);          \
    }
FINISH(finish_gelu, gelu)
FINISH(finish_tanh_gelu, tanh_gelu)
FINISH(finish_silu, silu)
FINISH(finish_none, none)

static void product_rows(const Job *j, long from, long to) {
    static void (*const finishes[])(float *, const float *) = {finish_gelu, finish_tanh_gelu, finish_silu, finish_none};
    const Product *p = j->product;
    long depth = p->depth, panels = HELD / depth / PANEL, group = PANEL * (panels < 1 ? 1 : panels);
    float tile[ROWS * PANEL];
    for (long first = 0; first < p->columns; first += group)
        for (long m = from * ROWS; m < to * ROWS && m < p->rows; m += ROWS) {
            long last = first + group < p->columns ? first + group : p->columns;
            long count = p->rows - m < ROWS ? p->rows - m : ROWS;
            const float *x = p->x + m * depth, *rows[ROWS], *ahead = x + ROWS * depth;
            for (long r = 0; r < ROWS; r++) rows[r] = x + (r < count ? r : count - 1) * depth;
            for (long n = first; n < last; n += PANEL, ahead += AHEAD * depth) {
                long width = last - n < PANEL ? last - n : PANEL;
                block(rows, p->w + n * depth, tile, depth, PANEL, PANEL, VECTORS, ahead);
                finishes[j->kind](tile, p->bias + n);
                for (long r = 0; r < count; r++) {
                    float *out = p->out + (m + r) * p->columns + n;
                    const float *add = p->add ? p->add + (m + r) * p->columns + n : 0;
                    if (!add) memcpy(out, tile + r * PANEL, width * sizeof(float));
                    else
                        for (long i = 0; i < width; i++) out[i] = tile[r * PANEL + i] + add[i];
                }
            }
        }
}

/* Rows are shared out among threads. */
typedef void (*Rows)(const Job *, long, long);
typedef struct { const Job *job; Rows rows; } Share;
typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);
static Parallel parallel;
static int (*which)(void), (*of)(void);

void set_threads(Parallel parallel_, int (*which_)(void), int (*of_)(void)) {
    parallel = parallel_;
    which = which_;
    of = of_;
}

static void do_share(void *given) {
    const Share *s = given;
    long i = which(), n = of(); /* perhaps fewer than asked for */
    s->rows(s->job, s->job->rows * i / n, s->job->rows * (i + 1) / n);
}

static void run(const Job *job, Rows rows, int threads) {
    Share share = {job, rows};
    if (threads > 1 && parallel && job->rows > 1) parallel(do_share, &share, threads, 0);
    else rows(job, 0, job->rows);
}

void lower(const Job *job, int threads) { run(job, lower_rows, threads); }
void norm_lower(const Job *job, int threads) { run(job, norm_rows, threads); }
void activate_lower(const Job *job, int threads) {
    static const Rows kinds[] = {gelu_rows, tanh_gelu_rows, quick_gelu_rows};
    run(job, kinds[job->kind], threads);
}
void activate(const Job *job, int threads) {
    static const Rows kinds[] = {gelu_float_rows, tanh_gelu_float_rows, silu_float_rows};
    run(job, kinds[job->kind], threads);
}
void attend(const Job *job, int threads) { run(job, attend_rows, threads); }
void product(const Job *job, int threads) { run(job, product_rows, threads); }
long rows_of_product(void) { return ROWS; }
void scale(const Job *job, int threads) { run(job, scale_rows, threads); }
