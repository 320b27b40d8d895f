/* Who computes what of a step, and when: phases and their items, as cpu_step.c says. */

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

/* The shrink matrix that a phase multiplies; NULL where it multiplies none. */
static const Matrix *shrink_of(const Layer *layer, int phase) {
    const Matrix *found = phase == QKV_SHRINK      ? &layer->qkv_shrink
                          : phase == OUTPUT_SHRINK ? &layer->output_shrink
                          : phase == MLP_SHRINK    ? &layer->mlp_shrink
                          : phase == DOWN_SHRINK   ? &layer->down_shrink
                                                   : NULL;
    return found && found->data ? found : NULL;
}

/* Where 16 features of an update's second factor are. */
static const uint8_t *panel_of(const Update *update, int64_t number) {
    return update->expand + number * 16 * update->rank * (update->kind == FP32 ? 4 : 2);
}

/* Have what some features need of it on its way, while the product before it runs. */
static void fetch_update(const Update *update, int64_t first, int64_t end) {
    const uint8_t *stop = panel_of(update, (end + 15) / 16);
    for (const uint8_t *at = panel_of(update, first / 16); at < stop; at += 64)
        __builtin_prefetch(at);
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
    const int what = phase < MLP_SHRINK ? SKIP_ATTENTION : SKIP_MLP;
    if (phase > QKV && is_skipped(run, layer, what)) return 0;
    switch (phase) {
    case QKV: return model->num_heads + 2 * model->num_kv_heads - first_head(run, layer);
    case ATTEND: return model->num_kv_heads * run->num_chunks;
    case RECORD:
        if (!run->step->weights || !run->step->weights[layer]) return 0;
        return run->step->n * run->num_chunks;
    case OUTPUT: return items_of(&at->output);
    case MLP: return items_of(into_mlp(at));
    case DOWN: return items_of(&at->down);
    }
    const Matrix *shrink = shrink_of(at, phase);
    return shrink ? items_of(shrink) : 0;
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
    int total = 0;
    for (; !total; phase += !total) {
        if (phase == NUM_PHASES) layer++, phase = 0;
        if (layer == run->model->num_layers) return;
        total = num_items(run, layer, phase);
    }
    const Layer *at = &run->model->layers[layer];
    const Matrix *matrix = phase == QKV      ? first_head(run, layer) ? &at->keys : &at->queries
                           : phase == OUTPUT ? &at->output
                           : phase == MLP    ? into_mlp(at)
                           : phase == DOWN   ? &at->down
                                             : shrink_of(at, phase);
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
