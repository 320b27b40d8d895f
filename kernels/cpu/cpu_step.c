/* All decoder layers for a few rows in one call: the decode step of a CPU, without torch.
 *
 * Plain C, loaded with ctypes by cpu_step.py, which describes the semantics. Compiled once for
 * three instruction sets (cpu_step_ops.h, included per set); the caller picks one at run time.
 *
 * Threads: every phase of a layer is a list of items. A thread takes those of its own share, which
 * lie side by side in memory, then what is left of the others', and goes on to the next phase when
 * all items are done. No thread is ever waited for unless it holds an item, so a thread that gets
 * no processor costs nothing but its part of the work. Which thread takes an item never changes a
 * result: an item's sums lie within it. Where matrices have low-rank updates, a phase before theirs
 * has the first products. Nobody waits at its end: an item of the next phase does, when its own
 * product is done.
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

#include "cpu_step_types.h"

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

#include "cpu_step_items.h"

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

/* Sizes of what callers describe to it, 12 bits each: another version's caller would be misread. */
API int64_t keyturn_layout(void) {
    const int64_t sizes[] = {sizeof(Update), sizeof(Matrix), sizeof(Layer), sizeof(Model),
                             sizeof(Step)};
    int64_t all = 0;
    for (int i = 0; i < 5; i++) all = all << 12 | sizes[i];
    return all;
}

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
    run->shrunk_stride = ROUND_UP(model->shrunk_width, 16);
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
    run->shrunk = TAKE(float, n * run->shrunk_stride);
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
