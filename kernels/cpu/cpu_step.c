/* All decoder layers for a few rows in one call: the decode step of a CPU, without torch.
 *
 * Plain C, loaded with ctypes by cpu_step.py, which describes the semantics. Compiled once for
 * three instruction sets (cpu_step_ops.h, included per set); the caller picks one at run time.
 *
 * Threads: every phase of a layer is a list of items. A thread takes those of its own share, which
 * lie side by side in memory, then what is left of the others', and goes on to the next phase when
 * all items are done. No thread is ever waited for unless it holds an item, so a thread that gets
 * no processor costs nothing but its part of the work. Which thread takes an item never changes a
 * result: an item's sums lie within it.
 */

#include <limits.h>
#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define API __attribute__((visibility("default")))
#define ROUND_UP(value, step) (((value) + (step) - 1) / (step) * (step))

/* Slots of one attention item: fixed, so that results do not depend on the number of threads. */
enum { SLOTS = 128 };
/* Bytes of weights that an item streams, about; output features of an item at most. */
enum { ITEM_BYTES = 16384, ITEM_ROWS = 64 };
/* How far ahead weights are asked for, in bytes. */
enum { PREFETCH = 4096 };
/* Looks at a counter before a waiting thread goes to sleep: some 20 microseconds. */
enum { SPINS = 600 };

/* Sub-layers that rows can do without; keys and values are made of every layer all the same. */
enum { SKIP_ATTENTION = 1, SKIP_MLP = 2 };

enum { FP32, BF16, FP16, Q4_0, Q4_1, Q8_0 };
enum { SILU, GELU }; /* x / (1 + e^-x); GELU by tanh is the same of another e */
#define GENERIC 0 /* macros, for #if */
#define AVX2 1
#define AVX512 2
enum { QKV, ATTEND, RECORD, OUTPUT, MLP, DOWN, NUM_PHASES };

typedef struct {
    const uint8_t *data; /* (rows, row_bytes) */
    const float *bias;   /* (rows,) or NULL */
    int64_t rows, columns, row_bytes, kind;
} Matrix;

typedef struct {
    const float *attention_norm, *mlp_norm; /* (hidden_size,), zeros up to a multiple of 32 */
    const float *attention_norm_bias, *mlp_norm_bias; /* likewise; or NULL */
    const float *query_norm, *key_norm;     /* (head_dim,), of every head; or NULL */
    int64_t window;                         /* slots that a row sees, by position; 0: all */
    Matrix queries, keys, values, output, gate, up, down; /* without a gate its data is NULL */
} Layer;

typedef struct {
    const Layer *layers;
    const float *norm, *norm_bias; /* as in a layer */
    Matrix head;
    int64_t num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim;
    int64_t interleaved;
    int64_t layer_norm; /* LayerNorm, else RMSNorm */
    int64_t activation; /* SILU or GELU */
    double eps;
} Model;

typedef struct {
    float *hidden; /* (n, hidden_size): in, and out again */
    void *unrotated, *rotated, *cached_values; /* (num_layers, num_kv_heads, capacity, head_dim) */
    const int64_t *slots, *row_positions;      /* (n,) */
    const int64_t *slot_positions;             /* (num_slots,) */
    const uint8_t *unseen; /* (n, num_marked): of the last slots, those a row does not see; or NULL */
    const float *cos, *sin;                    /* (n, rotary_half) */
    float *const *weights; /* (num_layers,) pointers to (n, num_slots) or NULL; or NULL */
    const uint8_t *skipped; /* (num_layers,) of SKIP_*: what rows are not put through; or NULL */
    float *logits;         /* (n, vocab): wanted instead of the layers; or NULL */
    void *scratch;
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned); /* GOMP_parallel or NULL */
    int64_t n, num_slots, capacity, cache_kind, rotary_half, num_threads, isa, num_marked;
} Step;

/* One phase: items done, sleeping threads; cache lines of their own. */
typedef struct {
    _Alignas(64) atomic_int done;
    atomic_int sleepers;
} Phase;

/* Items taken of one thread's share of a phase. */
typedef struct {
    _Alignas(64) atomic_int taken;
} Share;

/* A step being run: where everything lies in the scratch. Strides are in floats. */
typedef struct {
    const Model *model;
    const Step *step;
    Phase *phases;         /* (num_layers, NUM_PHASES) */
    Share *shares;         /* (num_layers, NUM_PHASES, num_threads) */
    atomic_int *head_done; /* (num_layers, num_kv_heads): attention items done */
    atomic_int joined;
    int64_t num_chunks, group, head_stride, hidden_stride, width_stride, inner_stride;
    int64_t chunk_stride; /* num_chunks, rounded up */
    int64_t last_position;
    float *hidden;     /* (n, hidden_stride) */
    float *queries;    /* (n, num_heads, head_stride) */
    float *mixed;      /* (n, width_stride) */
    float *active;     /* (n, inner_stride) */
    float *parts;      /* (num_heads, n, num_chunks, head_stride) */
    float *part_max;   /* (num_heads, n, chunk_stride) */
    float *part_sum;   /* the same; after merging: what a part's shares are multiplied by */
    float *recorded;   /* (num_heads, n, num_chunks * SLOTS), only for recorded layers */
    float *threads;    /* (num_threads, thread_stride) */
    int64_t thread_stride;
    /* Of the calling thread, in seconds: when its work ended, how long it waited before. */
    const char *caller;
    double ended, waited;
    int64_t own_items, all_items;
} Run;

/* What one thread has for itself. */
typedef struct {
    float *normed; /* (n, hidden_stride) */
    float *tile;   /* (n, tile_stride) twice */
    float *scores; /* (n * group, SLOTS) */
    int64_t tile_stride;
    int index, turn; /* which thread; whose share it takes from, counted from its own */
} Private;

/* Numbers */

static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static float from_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    if (rest >= 0x7c00) return float_of(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    /* An exponent 112 too small, corrected by an exact product: subnormals come out right too. */
    return float_of(sign | bits_of(float_of(rest << 13) * 0x1p112f));
}

static uint16_t to_half(float value) {
    uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return sign | 0x7e00;
    if (rest >= 0x477ff000) return sign | 0x7c00; /* rounds beyond 65504 */
    if (rest < 0x38800000) /* subnormal: adding 0.5 rounds at the right bit */
        return sign | (uint16_t)(bits_of(float_of(rest) + 0.5f) - 0x3f000000);
    return sign | (uint16_t)((rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13);
}

static uint16_t to_bfloat(float value) {
    uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return bits >> 16 | 0x40;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

/* Round to the cache's format, store, and return what was stored. */
static float store_as(int64_t kind, void *base, int64_t index, float value) {
    if (kind == FP32) {
        ((float *)base)[index] = value;
        return value;
    }
    uint16_t stored = kind == BF16 ? to_bfloat(value) : to_half(value);
    ((uint16_t *)base)[index] = stored;
    return kind == BF16 ? float_of((uint32_t)stored << 16) : from_half(stored);
}

/* Time */

static _Thread_local char this_thread; /* its address tells threads apart */

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Phases */

static void sleep_on(Phase *phase, int seen) {
#if defined(__linux__)
    syscall(SYS_futex, &phase->done, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
#endif
}

static void finish_item(Phase *phase, int total) {
    if (atomic_fetch_add(&phase->done, 1) + 1 == total && atomic_load(&phase->sleepers)) {
#if defined(__linux__)
        syscall(SYS_futex, &phase->done, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
#endif
    }
}

/* Wait for other threads' items: briefly awake, then asleep, so that a thread that lost its
 * processor to another program can have this one. */
static void sleep_until_done(Phase *phase, int total) {
    for (int spin = 0; spin < SPINS; spin++) {
        if (atomic_load_explicit(&phase->done, memory_order_acquire) == total) return;
#if defined(__x86_64__)
        _mm_pause();
#endif
    }
    atomic_fetch_add(&phase->sleepers, 1);
    for (int seen; (seen = atomic_load(&phase->done)) != total;) sleep_on(phase, seen);
    atomic_fetch_sub(&phase->sleepers, 1);
}

/* Items */

static int64_t rows_of_item(const Matrix *matrix) {
    int64_t rows = ITEM_BYTES / matrix->row_bytes / 4 * 4;
    return rows < 4 ? 4 : rows > ITEM_ROWS ? ITEM_ROWS : rows;
}

static int items_of(const Matrix *matrix) {
    return (matrix->rows + rows_of_item(matrix) - 1) / rows_of_item(matrix);
}

static int is_skipped(const Run *run, int64_t layer, int what) {
    return run->step->skipped && run->step->skipped[layer] & what;
}

/* The first head of queries, keys and values that is projected. */
static int64_t first_head(const Run *run, int64_t layer) {
    return is_skipped(run, layer, SKIP_ATTENTION) ? run->model->num_heads : 0;
}

/* What an MLP's items are counted by. */
static const Matrix *into_mlp(const Layer *layer) {
    return layer->gate.data ? &layer->gate : &layer->up;
}

static int num_items(const Run *run, int64_t layer, int phase) {
    const Model *model = run->model;
    const Layer *at = &model->layers[layer];
    const int what = phase < MLP ? SKIP_ATTENTION : SKIP_MLP;
    if (phase != QKV && is_skipped(run, layer, what)) return 0;
    switch (phase) {
    case QKV: return model->num_heads + 2 * model->num_kv_heads - first_head(run, layer);
    case ATTEND: return model->num_kv_heads * run->num_chunks;
    case RECORD:
        if (!run->step->weights || !run->step->weights[layer]) return 0;
        return run->step->n * run->num_chunks;
    case OUTPUT: return items_of(&at->output);
    case MLP: return items_of(into_mlp(at));
    default: return items_of(&at->down);
    }
}

static void await_items(Run *run, Phase *phase, int total) {
    if (atomic_load_explicit(&phase->done, memory_order_acquire) == total) return;
    const double start = now();
    sleep_until_done(phase, total);
    if (run->caller == &this_thread) run->waited += now() - start;
}

/* The first item of a thread's share. */
static int start_of(const Run *run, int thread, int total) {
    return (int)((int64_t)thread * total / run->step->num_threads);
}

/* Take the next item of a phase, from the thread's own share first; -1 if none is left. */
static int take_item(Run *run, Private *own, int64_t phase, int total) {
    const int threads = (int)run->step->num_threads;
    for (; own->turn < threads; own->turn++) {
        const int from = (own->index + own->turn) % threads;
        const int item = start_of(run, from, total) +
                         atomic_fetch_add(&run->shares[phase * threads + from].taken, 1);
        if (item < start_of(run, from + 1, total)) return item;
    }
    return -1;
}

/* Have a thread's first weights of a phase on their way while it waits for the one before. */
static void fetch_ahead(const Run *run, int64_t layer, int phase, int thread) {
    if (phase == NUM_PHASES) layer++, phase = QKV;
    if (layer == run->model->num_layers) return;
    const Layer *at = &run->model->layers[layer];
    const int total = num_items(run, layer, phase);
    if (!total) return;
    const Matrix *matrix = phase == QKV      ? first_head(run, layer) ? &at->keys : &at->queries
                           : phase == OUTPUT ? &at->output
                           : phase == MLP    ? into_mlp(at)
                           : phase == DOWN   ? &at->down
                                             : NULL;
    if (!matrix) return;
    int64_t row = phase == QKV ? run->model->head_dim : rows_of_item(matrix);
    row *= start_of(run, thread, total);
    if (row >= matrix->rows) return;
    const uint8_t *data = matrix->data + row * matrix->row_bytes;
    for (int line = 0; line < 32; line++) __builtin_prefetch(data + line * 64);
}

/* Count what the calling thread did of a phase. */
static void count_items(Run *run, int own, int total) {
    if (run->caller != &this_thread) return;
    run->own_items += own;
    run->all_items += total;
}

static Private private_of(Run *run) {
    int64_t n = run->step->n, at = atomic_fetch_add(&run->joined, 1);
    Private own = {.tile_stride = ROUND_UP(run->model->head_dim, 32), .index = (int)at};
    if (own.tile_stride < ITEM_ROWS) own.tile_stride = ITEM_ROWS;
    own.normed = run->threads + at * run->thread_stride;
    own.tile = own.normed + n * run->hidden_stride;
    own.scores = own.tile + 2 * n * own.tile_stride;
    return own;
}

/* The instruction sets */

#define ISA(name) name##_generic
#define ISA_LEVEL GENERIC
#define TARGET
#include "cpu_step_ops.h"
#if defined(__x86_64__)
#define ISA(name) name##_avx2
#define ISA_LEVEL AVX2
#define TARGET __attribute__((target("avx2,fma,f16c")))
#include "cpu_step_ops.h"
#define ISA(name) name##_avx512
#define ISA_LEVEL AVX512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")))
#include "cpu_step_ops.h"
#endif

/* The interface */

/* The best instruction set here: 0 generic, 1 AVX2 with FMA and F16C, 2 AVX512. */
API int keyturn_best_isa(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return GENERIC;
    if (!__builtin_cpu_supports("f16c")) return GENERIC;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return AVX512;
    return AVX2;
#endif
    return GENERIC;
}

/* Lay out the scratch; returns its size. `run` holds offsets from NULL if there is no scratch. */
static int64_t lay_out(Run *run, const Model *model, const Step *step) {
    char *base = step->scratch;
    int64_t used = 0, n = step->n, heads = model->num_heads, count = 0;
#define TAKE(type, number)                                                    \
    (used = ROUND_UP(used, 64), count = (number) * (int64_t)sizeof(type), used += count, \
     (type *)(base + used - count))
    run->model = model;
    run->step = step;
    run->group = heads / model->num_kv_heads;
    run->num_chunks = step->logits ? 0 : (step->num_slots + SLOTS - 1) / SLOTS;
    run->chunk_stride = ROUND_UP(run->num_chunks, 16);
    run->head_stride = ROUND_UP(model->head_dim, 16);
    run->hidden_stride = ROUND_UP(model->hidden_size, 32);
    run->width_stride = ROUND_UP(heads * model->head_dim, 32);
    run->inner_stride = ROUND_UP(model->intermediate_size, 32);
    int64_t num_phases = step->logits ? 1 : model->num_layers * NUM_PHASES;
    run->phases = TAKE(Phase, num_phases);
    run->shares = TAKE(Share, num_phases * step->num_threads);
    run->head_done = TAKE(atomic_int, model->num_layers * model->num_kv_heads);
    run->hidden = TAKE(float, n * run->hidden_stride);
    run->queries = TAKE(float, n * heads * run->head_stride);
    run->mixed = TAKE(float, n * run->width_stride);
    run->active = TAKE(float, n * run->inner_stride);
    /* What lies up to here starts as zeros. */
    run->parts = TAKE(float, heads * n * run->num_chunks * run->head_stride);
    run->part_max = TAKE(float, heads * n * run->chunk_stride);
    run->part_sum = TAKE(float, heads * n * run->chunk_stride);
    run->recorded = TAKE(float, step->weights ? heads * n * run->num_chunks * SLOTS : 0);
    int64_t tile = ROUND_UP(model->head_dim, 32);
    tile = tile < ITEM_ROWS ? ITEM_ROWS : tile;
    run->thread_stride = ROUND_UP(n * (run->hidden_stride + 2 * tile + run->group * SLOTS), 16);
    run->threads = TAKE(float, step->num_threads * run->thread_stride);
#undef TAKE
    return used;
}

/* Bytes of 64-byte aligned scratch that `keyturn_run` needs for this step. */
API int64_t keyturn_scratch_bytes(const Model *model, const Step *step) {
    Run run;
    Step dry = *step;
    dry.scratch = NULL;
    return lay_out(&run, model, &dry);
}

/* Run all layers, or with `step->logits` the final norm and the head.
 *
 * Returns how long the calling thread would have taken alone, by the items that it did, over how
 * long it took: below 1 where threads have lost their processors to other programs. */
API double keyturn_run(const Model *model, const Step *step) {
    Run run;
    lay_out(&run, model, step);
    memset(step->scratch, 0, (char *)run.parts - (char *)step->scratch);
    atomic_init(&run.joined, 0);
    for (int64_t row = 0; row < step->n; row++)
        memcpy(run.hidden + row * run.hidden_stride, step->hidden + row * model->hidden_size,
               model->hidden_size * sizeof(float));
    run.last_position = INT64_MIN;
    for (int64_t slot = 0; !step->logits && slot < step->num_slots; slot++)
        if (step->slot_positions[slot] > run.last_position)
            run.last_position = step->slot_positions[slot];
    void (*work)(void *) = step->logits ? logits_generic : layers_generic;
#if defined(__x86_64__)
    if (step->isa == AVX2) work = step->logits ? logits_avx2 : layers_avx2;
    if (step->isa == AVX512) work = step->logits ? logits_avx512 : layers_avx512;
#endif
    run.caller = &this_thread;
    run.waited = 0;
    run.own_items = run.all_items = 0;
    const double start = now();
    if (step->parallel && step->num_threads > 1)
        step->parallel(work, &run, (unsigned)step->num_threads, 0);
    else
        work(&run);
    const double taken = now() - start, own = run.ended - start - run.waited;
    const double alone = own * (double)run.all_items / (double)(run.own_items ? run.own_items : 1);
    for (int64_t row = 0; !step->logits && row < step->n; row++)
        memcpy(step->hidden + row * model->hidden_size, run.hidden + row * run.hidden_stride,
               model->hidden_size * sizeof(float));
    return alone / taken;
}
