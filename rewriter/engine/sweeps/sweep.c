/* One step of an LSTM or a GRU forwards, and one of the sweep backwards, each in one pass over memory.

   The same as the sweep that derived.py derives from the cells; tests compare the two. Compiled once for float
   and once for double (-DREAL=double). */

#include <stdint.h>

#ifndef REAL
#define REAL float
#endif

/* Everything of one sweep; compiled.py fills it in. */
typedef struct {
    int64_t outputs, references, rows; /* K; n; rows of the samples */
    int64_t size;                      /* H */
    int64_t rows_x0;                   /* in what the run on references kept */
    int64_t threads;
    const int64_t *facing; /* (n, rows), the reference's row of each pair */
    const REAL *before, *after, *partner, *passed;
    const REAL *before0, *after0, *partner0, *passed0;
    REAL *d_h, *d_c, *gates; /* (K, n, rows, H) twice, (steps, K, n, rows, 4, H) */
    REAL least;              /* what is smaller counts as zero */
} Sweep;

typedef union {
    float f;
    uint32_t i;
} Bits4;
typedef union {
    double f;
    uint64_t i;
} Bits8;

/* tanh(x) / x from expm1(-2 |x|), to about 2 ulp. With -2 |x| = n ln 2 + r, |r| <= ln 2 / 2, expm1 is
   2^n expm1(r) + (2^n - 1); adding MAGIC rounds to an integer and leaves it in the lowest bits. */
static inline float tanh_over_float(float x) {
    const float magic = 12582912.0f, tiny = 1.17549435e-38f;
    float a = x < 0 ? -x : x;
    a = a < tiny ? tiny : a;
    float y = -2 * a;
    y = y < -40 ? -40 : y;
    Bits4 z = {.f = y * 1.44269504f + magic};
    float n = z.f - magic;
    float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1 / 5040.0f;
    p = p * r + 1 / 720.0f;
    p = p * r + 1 / 120.0f;
    p = p * r + 1 / 24.0f;
    p = p * r + 1 / 6.0f;
    p = p * r + 0.5f;
    p = p * r * r + r;
    z.i = (z.i << 23) + 0x3f800000u;
    p = z.f * p + (z.f - 1);
    return -p / ((2 + p) * a);
}

static inline double tanh_over_double(double x) {
    static const double by[] = {1 / 6227020800.0, 1 / 479001600.0, 1 / 39916800.0, 1 / 3628800.0,
                                1 / 362880.0, 1 / 40320.0, 1 / 5040.0, 1 / 720.0,
                                1 / 120.0, 1 / 24.0, 1 / 6.0, 0.5};
    const double magic = 6755399441055744.0, tiny = 2.2250738585072014e-308;
    double a = x < 0 ? -x : x;
    a = a < tiny ? tiny : a;
    double y = -2 * a;
    y = y < -40 ? -40 : y;
    Bits8 z = {.f = y * 1.4426950408889634 + magic};
    double n = z.f - magic;
    double r = (y - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6;
    double p = by[0];
#pragma GCC unroll 12
    for (int k = 1; k < 12; k++) p = p * r + by[k];
    p = p * r * r + r;
    z.i = (z.i << 52) + 0x3ff0000000000000u;
    p = z.f * p + (z.f - 1);
    return -p / ((2 + p) * a);
}

#define tanh_over(x) _Generic((x), float : tanh_over_float, double : tanh_over_double)(x)

/* The slopes of all activations of one pair, each times the mean of its partner. */
static inline void slopes(const Sweep *s, int64_t i, int64_t i0, int64_t count, REAL *restrict out) {
    const REAL *restrict a = s->before + i * count, *restrict a0 = s->before0 + i0 * count;
    const REAL *restrict u = s->after + i * count, *restrict u0 = s->after0 + i0 * count;
    const REAL *restrict p = s->partner + i * count, *restrict p0 = s->partner0 + i0 * count;
#pragma omp simd
    for (int64_t j = 0; j < count; j++)
        out[j] = tanh_over(a[j] - a0[j]) * (1 - u[j] * u0[j]) * (p[j] + p0[j]);
}

static inline REAL kept(REAL d, REAL least) { return (d < 0 ? -d : d) < least ? 0 : d; }

static inline void lstm_pair(const Sweep *s, int64_t i, int64_t i0, int64_t pair, REAL *gates) {
    const int64_t H = s->size, pairs = s->references * s->rows;
    const REAL *restrict f = s->passed + i * H, *restrict f0 = s->passed0 + i0 * H, least = s->least;
    REAL m[5 * H];
    slopes(s, i, i0, 5 * H, m);
    for (int64_t row = pair; row < s->outputs * pairs; row += pairs) {
        REAL *restrict d_h = s->d_h + row * H, *restrict d_c = s->d_c + row * H;
        REAL *restrict g = gates + row * 4 * H;
#pragma omp simd
        for (int64_t j = 0; j < H; j++) {
            REAL h = kept(d_h[j], least), c = kept(d_c[j], least) + h * m[4 * H + j];
            g[j] = c * m[j];
            g[H + j] = c * m[H + j];
            g[2 * H + j] = c * m[2 * H + j];
            g[3 * H + j] = h * m[3 * H + j];
            d_c[j] = c * (f[j] + f0[j]);
        }
    }
}

static inline void gru_pair(const Sweep *s, int64_t i, int64_t i0, int64_t pair, REAL *gates) {
    const int64_t H = s->size, pairs = s->references * s->rows;
    const REAL *restrict q = s->passed + i * 2 * H, *restrict q0 = s->passed0 + i0 * 2 * H;
    REAL m[3 * H], least = s->least;
    slopes(s, i, i0, 3 * H, m);
    for (int64_t row = pair; row < s->outputs * pairs; row += pairs) {
        REAL *restrict d_h = s->d_h + row * H, *restrict g = gates + row * 4 * H;
#pragma omp simd
        for (int64_t j = 0; j < H; j++) {
            REAL h = kept(d_h[j], least), n = h * m[2 * H + j];
            g[j] = n * (q[j] + q0[j]);
            g[H + j] = n * m[j];
            g[2 * H + j] = h * m[H + j];
            g[3 * H + j] = n;
            d_h[j] = h * (q[H + j] + q0[H + j]);
        }
    }
}

/* Step t of the sweep, its gates into a place of the buffer of gates. */
#define STEP(cell)                                                                              \
    void cell(const Sweep *s, int64_t t, int64_t place) {                                       \
        const int64_t pairs = s->references * s->rows;                                          \
        REAL *gates = s->gates + place * s->outputs * pairs * 4 * s->size;                      \
        _Pragma("omp parallel for num_threads(s->threads) if (s->threads > 1)")                 \
        for (int64_t pair = 0; pair < pairs; pair++)                                            \
            cell##_pair(s, t * s->rows + pair % s->rows, t * s->rows_x0 + s->facing[pair],      \
                        pair, gates);                                                           \
    }

STEP(lstm)
STEP(gru)

/* Everything of one run forwards: what the sweep needs, each (T, rows, *), and the states. */
typedef struct {
    int64_t rows, size;
    REAL *before, *after, *partner, *passed;
    REAL *h, *c;          /* (T, rows, H), new states */
    const REAL *from_x;   /* GRU: (T, rows, 3, H), gates of the input */
    const REAL *from_h;   /* GRU: (rows, 3, H), gates of the hidden state, this step's */
} Run;

static inline REAL tanh_of(REAL x) { return x * tanh_over(x); }

/* The gates of step t are in before; old is the cell state. */
void lstm_run(const Run *s, int64_t t, const REAL *old) {
    const int64_t H = s->size;
    for (int64_t i = t * s->rows; i < (t + 1) * s->rows; i++, old += H) {
        REAL *restrict a = s->before + i * 5 * H, *restrict u = s->after + i * 5 * H;
        REAL *restrict p = s->partner + i * 5 * H, *restrict f = s->passed + i * H;
        REAL *restrict h = s->h + i * H, *restrict c = s->c + i * H;
#pragma omp simd
        for (int64_t j = 0; j < 4 * H; j++) u[j] = tanh_of(a[j]);
#pragma omp simd
        for (int64_t j = 0; j < H; j++) {
            REAL in = (u[j] + 1) / 2, forget = (u[H + j] + 1) / 2, g = u[2 * H + j];
            REAL out = (u[3 * H + j] + 1) / 2, new = forget * old[j] + in * g, squashed = tanh_of(new);
            a[4 * H + j] = c[j] = new;
            u[4 * H + j] = squashed;
            h[j] = out * squashed;
            p[j] = g / 8;
            p[H + j] = old[j] / 8;
            p[2 * H + j] = in / 2;
            p[3 * H + j] = squashed / 8;
            p[4 * H + j] = out / 2;
            f[j] = forget / 2;
        }
    }
}

void gru_run(const Run *s, int64_t t, const REAL *old) {
    const int64_t H = s->size;
    const REAL *restrict y = s->from_h;
    for (int64_t i = t * s->rows; i < (t + 1) * s->rows; i++, old += H, y += 3 * H) {
        REAL *restrict a = s->before + i * 3 * H, *restrict u = s->after + i * 3 * H;
        REAL *restrict p = s->partner + i * 3 * H, *restrict q = s->passed + i * 2 * H;
        REAL *restrict h = s->h + i * H;
        const REAL *restrict x = s->from_x + i * 3 * H;
#pragma omp simd
        for (int64_t j = 0; j < 2 * H; j++) {
            a[j] = x[j] + y[j];
            u[j] = tanh_of(a[j]);
            q[j] = (u[j] + 1) / 4;
        }
#pragma omp simd
        for (int64_t j = 0; j < H; j++) {
            REAL n = x[2 * H + j] + 2 * q[j] * y[2 * H + j];
            a[2 * H + j] = n;
            u[2 * H + j] = n = tanh_of(n);
            h[j] = n + 2 * q[H + j] * (old[j] - n);
            p[j] = y[2 * H + j] / 8;
            p[H + j] = (old[j] - n) / 8;
            p[2 * H + j] = (1 - u[H + j]) / 4;
        }
    }
}

/* The sweep of any cell that is made of elementwise atoms: program.py writes down what a step does. */
enum {
    TANH, SIGMOID, RELU, MEAN, LOAD, SET, ADD, MULTIPLY, MULTIPLY_ADD, SCALE, SCALE_ADD, STORE, GATE,
    NORM_RATIO, NORM_SLOPE, NORM_SUMS, NORM,
    KEPT, NUMBER, TANH_OF, SIGMOID_OF, RELU_OF, RATIO_OF, TANH_BETWEEN, SIGMOID_BETWEEN, RELU_BETWEEN
};

typedef struct {
    int64_t what, to, a, b, c; /* registers, or numbers of what is kept, scales, states and gates */
    double by;
} Operation;

/* What is in the register of a norm. */
enum { PRODUCTS, SUM, RATIO };

typedef struct {
    Sweep of; /* of its arrays only gates is used */
    int64_t count, once, registers, slots;
    int64_t part;                /* elements that go through all operations together */
    const Operation *operations; /* the first are the same for all outputs */
    const REAL *const *x, *const *x0;
    const int64_t *widths; /* from row to row of x and x0 */
    const REAL *const *scales;
    REAL *const *states;
} Program;

/* A register has room for the numbers of a norm. */
static inline int64_t room(const Program *s) { return s->part < 4 ? 4 : s->part; }

static inline void operation(const Program *s, const Operation *o, int64_t i, int64_t i0, int64_t row,
                             REAL *gates, int64_t first, int64_t n, REAL *registers) {
    const int64_t H = s->of.size, size = room(s);
    const REAL by = (REAL)o->by;
    REAL *restrict to = registers + o->to * size;
    const REAL *restrict p = registers + o->a * size, *restrict q = registers + o->b * size;
    const REAL *restrict r = registers + o->c * size;
    const REAL *restrict a, *restrict a0, *restrict u, *restrict u0, *restrict v;
    REAL *restrict w, least = s->of.least;
#define EACH _Pragma("omp simd") for (int64_t j = 0; j < n; j++)
    switch (o->what) {
    case TANH:
    case SIGMOID:
    case RELU:
        a = s->x[o->a] + i * s->widths[o->a] + first, a0 = s->x0[o->a] + i0 * s->widths[o->a] + first;
        u = s->x[o->b] + i * s->widths[o->b] + first, u0 = s->x0[o->b] + i0 * s->widths[o->b] + first;
        if (o->what == TANH) {
            EACH to[j] = tanh_over(a[j] - a0[j]) * (1 - u[j] * u0[j]);
        } else if (o->what == SIGMOID) {
            EACH to[j] = tanh_over(a[j] / 2 - a0[j] / 2) * (u[j] * ((1 - u0[j]) / 2) + u0[j] * ((1 - u[j]) / 2));
        } else {
            EACH {
                REAL delta = a[j] - a0[j];
                to[j] = delta == 0 ? (REAL)(a[j] > 0) : (u[j] - u0[j]) / delta;
            }
        }
        break;
    case MEAN:
        a = s->x[o->a] + i * s->widths[o->a] + first, a0 = s->x0[o->a] + i0 * s->widths[o->a] + first;
        EACH to[j] = a[j] / 2 + a0[j] / 2;
        break;
    case LOAD:
        v = s->states[o->a] + row * H + first;
        EACH to[j] = kept(v[j], least);
        break;
    case SET:
        EACH to[j] = by * p[j];
        break;
    case ADD:
        EACH to[j] += by * p[j];
        break;
    case MULTIPLY:
        EACH to[j] = p[j] * q[j];
        break;
    case MULTIPLY_ADD:
        EACH to[j] += p[j] * q[j];
        break;
    case SCALE:
        v = s->scales[o->b] + first;
        EACH to[j] = p[j] * v[j];
        break;
    case SCALE_ADD:
        v = s->scales[o->b] + first;
        EACH to[j] += p[j] * v[j];
        break;
    case STORE:
        w = s->states[o->to] + row * H + first;
        if (o->a < 0)
            EACH w[j] = 0;
        else
            EACH w[j] = p[j];
        break;
    case GATE:
        w = gates + (row * s->slots + o->to) * H + first;
        if (o->a < 0)
            EACH w[j] = 0;
        else
            EACH w[j] = p[j];
        break;
    case NORM_RATIO: {
        REAL one = s->x[o->a][i], other = s->x0[o->a][i0];
        to[RATIO] = 2 / (1 / one + 1 / other);
        break;
    }
    case NORM_SLOPE: {
        REAL one = s->x[o->b][i], other = s->x0[o->b][i0], ratio = 2 / (1 / one + 1 / other);
        REAL of_y = by * ratio * (ratio / one), of_y0 = by * ratio * (ratio / other);
        a = s->x[o->a] + i * s->widths[o->a], a0 = s->x0[o->a] + i0 * s->widths[o->a];
        EACH to[j] = a[j] * of_y + a0[j] * of_y0;
        break;
    }
    case NORM_SUMS: {
        REAL products = by ? 0 : to[PRODUCTS], sum = by ? 0 : to[SUM];
#pragma omp simd reduction(+ : products, sum)
        for (int64_t j = 0; j < n; j++) {
            products += p[j] * q[j];
            sum += p[j];
        }
        to[PRODUCTS] = products, to[SUM] = sum;
        break;
    }
    case NORM: {
        const REAL *numbers = registers + o->c * size;
        REAL products = numbers[PRODUCTS], ratio = numbers[RATIO], mean = numbers[SUM] * by;
        if (o->a < 0)
            EACH to[j] = -ratio * mean - products * q[j];
        else
            EACH to[j] = ratio * (p[j] - mean) - products * q[j];
        break;
    }
    case KEPT:
        a = o->b ? s->x0[o->a] + i0 * s->widths[o->a] : s->x[o->a] + i * s->widths[o->a];
        EACH to[j] = a[first + j];
        break;
    case NUMBER:
        EACH to[j] = by;
        break;
    case TANH_OF:
        EACH to[j] = tanh_of(p[j]);
        break;
    case SIGMOID_OF:
        EACH to[j] = (tanh_of(p[j] / 2) + 1) / 2;
        break;
    case RELU_OF:
        EACH to[j] = p[j] > 0 ? p[j] : 0;
        break;
    /* Slopes from r to q, where what was taken differs by p, or by what p is the ratio of. */
    case RATIO_OF:
        EACH to[j] = tanh_over(by * p[j]);
        break;
    case TANH_BETWEEN:
        EACH to[j] = p[j] * (1 - q[j] * r[j]);
        break;
    case SIGMOID_BETWEEN:
        EACH to[j] = p[j] * (q[j] * ((1 - r[j]) / 2) + r[j] * ((1 - q[j]) / 2));
        break;
    case RELU_BETWEEN:
        EACH to[j] = p[j] == 0 ? (REAL)(q[j] > 0) : (q[j] - r[j]) / p[j];
        break;
    }
#undef EACH
}

void program(const Program *s, int64_t t, int64_t place) {
    const int64_t pairs = s->of.references * s->of.rows, H = s->of.size;
    REAL *gates = s->of.gates + place * s->of.outputs * pairs * s->slots * H;
#pragma omp parallel for num_threads(s->of.threads) if (s->of.threads > 1)
    for (int64_t pair = 0; pair < pairs; pair++) {
        const int64_t i = t * s->of.rows + pair % s->of.rows, i0 = t * s->of.rows_x0 + s->of.facing[pair];
        REAL registers[s->registers * room(s)];
        for (int64_t first = 0; first < H; first += s->part) {
            const int64_t n = H - first < s->part ? H - first : s->part;
            for (int64_t k = 0; k < s->once; k++)
                operation(s, s->operations + k, i, i0, 0, gates, first, n, registers);
            for (int64_t row = pair; row < s->of.outputs * pairs; row += pairs)
                for (int64_t k = s->once; k < s->count; k++)
                    operation(s, s->operations + k, i, i0, row, gates, first, n, registers);
        }
    }
}

/* Input and state as two players, of an LSTM and a GRU: what two_players/program.py writes down of any cell, in
   one loop. Each value is known at four corners: 1 and 0, the ends; a, the input of the sample and the state of
   the reference; b, the other way round. x, x0 and widths of Program are rows in the order of two_players/cells.py. */
static inline REAL sigmoid_of(REAL x) { return (tanh_of(x / 2) + 1) / 2; }
static inline REAL tanh_from(REAL ratio, REAL u, REAL v) { return ratio * (1 - u * v); }
static inline REAL sigmoid_from(REAL ratio, REAL u, REAL v) {
    return ratio * (u * ((1 - v) / 2) + v * ((1 - u) / 2));
}
static inline REAL mean_of(REAL u, REAL v) { return u / 2 + v / 2; }

#define PLAYERS_PART 128
#define ROW(k) const REAL *restrict x##k = s->x[k] + i * s->widths[k] + first,                  \
                          *restrict y##k = s->x0[k] + i0 * s->widths[k] + first

/* What one switch of an LSTM from corner v to u, times half, adds to what gates and cell state get of h and c.
   Plain numbers: loops over structures are not vectorised. */
#define LSTM_SWITCH(u, v, r, to)                                                                \
    do {                                                                                        \
        REAL in = sigmoid_from(r##_in, in_##u, in_##v) * mean_of(cell_##u, cell_##v) / 2;       \
        REAL forget = sigmoid_from(r##_forget, forget_##u, forget_##v) * mean_of(old_##u, old_##v) / 2; \
        REAL cell = tanh_from(r##_cell, cell_##u, cell_##v) * mean_of(in_##u, in_##v) / 2;      \
        REAL old = mean_of(forget_##u, forget_##v) / 2;                                         \
        REAL on = tanh_from(tanh_over(next_##u - next_##v), squashed_##u, squashed_##v) * mean_of(out_##u, out_##v); \
        to##_in_c += in, to##_forget_c += forget, to##_cell_c += cell, to##_old_c += old;       \
        to##_in += on * in, to##_forget += on * forget, to##_cell += on * cell, to##_old += on * old; \
        to##_out += sigmoid_from(r##_out, out_##u, out_##v) * mean_of(squashed_##u, squashed_##v) / 2; \
    } while (0)

static inline void lstm_players_pair(const Program *s, int64_t i, int64_t i0, int64_t pair, REAL *gates) {
    const int64_t H = s->of.size, pairs = s->of.references * s->of.rows;
    const REAL least = s->of.least;
    REAL m[16][PLAYERS_PART];
    for (int64_t first = 0; first < H; first += PLAYERS_PART) {
        const int64_t n = H - first < PLAYERS_PART ? H - first : PLAYERS_PART;
        ROW(0); ROW(1); ROW(2); ROW(3); ROW(4); ROW(5); ROW(6); ROW(7);
        ROW(8); ROW(9); ROW(10); ROW(11); ROW(12); ROW(13); ROW(14);
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            REAL in_1 = x9[j], forget_1 = x10[j], cell_1 = x11[j], out_1 = x12[j], next_1 = x13[j];
            REAL in_0 = y9[j], forget_0 = y10[j], cell_0 = y11[j], out_0 = y12[j], next_0 = y13[j];
            REAL squashed_1 = x14[j], old_1 = x8[j], squashed_0 = y14[j], old_0 = y8[j];
            REAL in_a = sigmoid_of(x0[j] + y4[j]), forget_a = sigmoid_of(x1[j] + y5[j]);
            REAL cell_a = tanh_of(x2[j] + y6[j]), out_a = sigmoid_of(x3[j] + y7[j]), old_a = old_0;
            REAL in_b = sigmoid_of(y0[j] + x4[j]), forget_b = sigmoid_of(y1[j] + x5[j]);
            REAL cell_b = tanh_of(y2[j] + x6[j]), out_b = sigmoid_of(y3[j] + x7[j]), old_b = old_1;
            REAL next_a = forget_a * old_a + in_a * cell_a, squashed_a = tanh_of(next_a);
            REAL next_b = forget_b * old_b + in_b * cell_b, squashed_b = tanh_of(next_b);
            REAL x_in = tanh_over((x0[j] - y0[j]) / 2), x_forget = tanh_over((x1[j] - y1[j]) / 2);
            REAL x_cell = tanh_over(x2[j] - y2[j]), x_out = tanh_over((x3[j] - y3[j]) / 2);
            REAL s_in = tanh_over((x4[j] - y4[j]) / 2), s_forget = tanh_over((x5[j] - y5[j]) / 2);
            REAL s_cell = tanh_over(x6[j] - y6[j]), s_out = tanh_over((x7[j] - y7[j]) / 2);
            REAL i_in = 0, i_forget = 0, i_cell = 0, i_out = 0, i_old = 0;
            REAL i_in_c = 0, i_forget_c = 0, i_cell_c = 0, i_old_c = 0;
            REAL h_in = 0, h_forget = 0, h_cell = 0, h_out = 0, h_old = 0;
            REAL h_in_c = 0, h_forget_c = 0, h_cell_c = 0, h_old_c = 0;
            LSTM_SWITCH(a, 0, x, i);
            LSTM_SWITCH(1, b, x, i);
            LSTM_SWITCH(b, 0, s, h);
            LSTM_SWITCH(1, a, s, h);
            m[0][j] = h_in, m[1][j] = h_forget, m[2][j] = h_cell, m[3][j] = h_out;
            m[4][j] = i_in, m[5][j] = i_forget, m[6][j] = i_cell, m[7][j] = i_out, m[8][j] = h_old;
            m[9][j] = h_in_c, m[10][j] = h_forget_c, m[11][j] = h_cell_c;
            m[12][j] = i_in_c, m[13][j] = i_forget_c, m[14][j] = i_cell_c, m[15][j] = h_old_c;
        }
        for (int64_t row = pair; row < s->of.outputs * pairs; row += pairs) {
            REAL *restrict d_h = s->states[0] + row * H + first, *restrict d_c = s->states[1] + row * H + first;
            REAL *restrict g = gates + row * 8 * H + first;
#pragma omp simd
            for (int64_t j = 0; j < n; j++) {
                REAL h = kept(d_h[j], least), c = kept(d_c[j], least);
                g[j] = h * m[0][j] + c * m[9][j];
                g[H + j] = h * m[1][j] + c * m[10][j];
                g[2 * H + j] = h * m[2][j] + c * m[11][j];
                g[3 * H + j] = h * m[3][j];
                g[4 * H + j] = h * m[4][j] + c * m[12][j];
                g[5 * H + j] = h * m[5][j] + c * m[13][j];
                g[6 * H + j] = h * m[6][j] + c * m[14][j];
                g[7 * H + j] = h * m[7][j];
                d_c[j] = h * m[8][j] + c * m[15][j];
            }
        }
    }
}

#define GRU_SWITCH(u, v, r, to)                                                                 \
    do {                                                                                        \
        REAL passed = mean_of(update_##u, update_##v), hidden = mean_of(hidden_##u, hidden_##v); \
        REAL on = tanh_from(tanh_over(before_##u - before_##v), new_##u, new_##v) * ((1 - passed) / 2); \
        to##_reset += on * hidden * sigmoid_from(r##_reset, reset_##u, reset_##v);              \
        to##_update += sigmoid_from(r##_update, update_##u, update_##v) *                       \
                       mean_of(old_##u - new_##u, old_##v - new_##v) / 2;                       \
        to##_new += on, to##_hidden += on * mean_of(reset_##u, reset_##v), to##_old += passed / 2; \
    } while (0)

static inline void gru_players_pair(const Program *s, int64_t i, int64_t i0, int64_t pair, REAL *gates) {
    const int64_t H = s->of.size, pairs = s->of.references * s->of.rows;
    const REAL least = s->of.least;
    REAL m[7][PLAYERS_PART];
    for (int64_t first = 0; first < H; first += PLAYERS_PART) {
        const int64_t n = H - first < PLAYERS_PART ? H - first : PLAYERS_PART;
        ROW(0); ROW(1); ROW(2); ROW(3); ROW(4); ROW(5); ROW(6); ROW(7); ROW(8); ROW(9);
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            REAL reset_1 = x7[j], update_1 = x8[j], new_1 = x9[j], hidden_1 = x5[j], old_1 = x6[j];
            REAL reset_0 = y7[j], update_0 = y8[j], new_0 = y9[j], hidden_0 = y5[j], old_0 = y6[j];
            REAL before_1 = x2[j] + reset_1 * hidden_1, before_0 = y2[j] + reset_0 * hidden_0;
            REAL reset_a = sigmoid_of(x0[j] + y3[j]), update_a = sigmoid_of(x1[j] + y4[j]);
            REAL reset_b = sigmoid_of(y0[j] + x3[j]), update_b = sigmoid_of(y1[j] + x4[j]);
            REAL hidden_a = hidden_0, old_a = old_0, hidden_b = hidden_1, old_b = old_1;
            REAL before_a = x2[j] + reset_a * hidden_a, new_a = tanh_of(before_a);
            REAL before_b = y2[j] + reset_b * hidden_b, new_b = tanh_of(before_b);
            REAL x_reset = tanh_over((x0[j] - y0[j]) / 2), x_update = tanh_over((x1[j] - y1[j]) / 2);
            REAL s_reset = tanh_over((x3[j] - y3[j]) / 2), s_update = tanh_over((x4[j] - y4[j]) / 2);
            REAL i_reset = 0, i_update = 0, i_new = 0, i_hidden = 0, i_old = 0;
            REAL h_reset = 0, h_update = 0, h_new = 0, h_hidden = 0, h_old = 0;
            GRU_SWITCH(a, 0, x, i);
            GRU_SWITCH(1, b, x, i);
            GRU_SWITCH(b, 0, s, h);
            GRU_SWITCH(1, a, s, h);
            m[0][j] = h_reset, m[1][j] = h_update, m[2][j] = h_hidden, m[6][j] = h_old;
            m[3][j] = i_reset, m[4][j] = i_update, m[5][j] = i_new;
        }
        for (int64_t row = pair; row < s->of.outputs * pairs; row += pairs) {
            REAL *restrict d_h = s->states[0] + row * H + first, *restrict g = gates + row * 6 * H + first;
#pragma omp simd
            for (int64_t j = 0; j < n; j++) {
                REAL h = kept(d_h[j], least);
                g[j] = h * m[0][j];
                g[H + j] = h * m[1][j];
                g[2 * H + j] = h * m[2][j];
                g[3 * H + j] = h * m[3][j];
                g[4 * H + j] = h * m[4][j];
                g[5 * H + j] = h * m[5][j];
                d_h[j] = h * m[6][j];
            }
        }
    }
}

#define PLAYERS(cell)                                                                           \
    void cell##_players(const Program *s, int64_t t, int64_t place) {                           \
        const int64_t pairs = s->of.references * s->of.rows;                                    \
        REAL *gates = s->of.gates + place * s->of.outputs * pairs * s->slots * s->of.size;      \
        _Pragma("omp parallel for num_threads(s->of.threads) if (s->of.threads > 1)")           \
        for (int64_t pair = 0; pair < pairs; pair++)                                            \
            cell##_players_pair(s, t * s->of.rows + pair % s->of.rows,                          \
                                t * s->of.rows_x0 + s->of.facing[pair], pair, gates);           \
    }

PLAYERS(lstm)
PLAYERS(gru)
